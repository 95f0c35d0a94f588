"""docker cp, diff, export and commit with the stock client, through a node and through the cluster view."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import docker
import pytest
from e2e_cluster import Cluster, View, eventually

#: What the container is given: files and folders to copy from and to.
MAKE = (
    "mkdir -p /w/src/sub /w/dir; echo one >/w/file; echo a >/w/src/a; echo b >/w/src/sub/b; echo old >/w/other;"
    " ln -s /w/file /w/lnk; ln -s src /w/dlnk; ln -s /w/src/a /w/src/l; chown 12:34 /w/src/a; chmod 4750 /w/src/a;"
)


def box(view: View, *options: str, running: bool = True, name: str = "box") -> str:
    """A container with something to copy."""
    view("run", "-d", "--name", name, *options, "busybox", "sh", "-c", MAKE + "touch /w/ready; sleep 600")
    eventually(lambda: view.run("exec", name, "test", "-e", "/w/ready").returncode == 0)
    if not running:
        view("stop", "-t", "0", name)
    return name


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: info for info in archive.getmembers()}


def copied(view: View, source: str, *options: str) -> dict[str, tarfile.TarInfo]:
    done = view.run("cp", *options, source, "-")
    assert done.returncode == 0, done.stderr
    return members(done.stdout)


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_copying_out_follows_the_rules(view: View, tmp_path: Path, running: bool) -> None:
    box(view, running=running)
    (tmp_path / "dir").mkdir()
    (tmp_path / "there").write_text("before")

    view("cp", "box:/w/file", str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "one\n"
    assert b"no such directory" in view.run("cp", "box:/w/file", f"{tmp_path}/none/").stderr
    view("cp", "box:/w/file", str(tmp_path / "there"))
    assert (tmp_path / "there").read_text() == "one\n"
    view("cp", "box:w/file", str(tmp_path / "dir"))
    assert (tmp_path / "dir/file").read_text() == "one\n"

    view("cp", "box:/w/src", str(tmp_path / "made"))
    assert (tmp_path / "made/sub/b").read_text() == "b\n" and os.readlink(tmp_path / "made/l") == "/w/src/a"
    assert b"cannot copy directory" in view.run("cp", "box:/w/src", str(tmp_path / "there")).stderr
    view("cp", "box:/w/src", str(tmp_path / "dir"))
    assert (tmp_path / "dir/src/sub/b").exists()
    view("cp", "box:/w/src/.", str(tmp_path / "dir"))
    assert (tmp_path / "dir/sub/b").exists()
    assert (tmp_path / "dir/a").stat().st_mode & 0o7777 == 0o4750

    view("cp", "box:/w/lnk", str(tmp_path / "l"))
    assert os.readlink(tmp_path / "l") == "/w/file"
    view("cp", "-L", "box:/w/lnk", str(tmp_path / "followed"))
    assert (tmp_path / "followed").read_text() == "one\n"
    view("cp", "box:/w/dlnk/", str(tmp_path / "through"))
    assert (tmp_path / "through/sub/b").exists()

    for path, why in (("/nothing", b"Could not find the file"), ("/w/file/", b"not a directory")):
        done = view.run("cp", f"box:{path}", str(tmp_path / "x"))
        assert done.returncode == 1 and why in done.stderr


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_copying_in_follows_the_rules(view: View, tmp_path: Path, running: bool) -> None:
    box(view, running=running)
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/a").write_text("A")
    (tmp_path / "src/sub/b").write_text("B")
    (tmp_path / "src/l").symlink_to("a")
    source = tmp_path / "src"

    view("cp", f"{source}/a", "box:/w/new")
    assert b"no such directory" in view.run("cp", f"{source}/a", "box:/w/none/").stderr
    view("cp", f"{source}/a", "box:/w/other")
    view("cp", f"{source}/a", "box:/w/dir")
    view("cp", f"{source}/a", "box:/w/lnk")
    view("cp", str(source), "box:/w/made")
    assert b"cannot copy directory" in view.run("cp", str(source), "box:/w/file").stderr
    view("cp", str(source), "box:/w/dir")
    view("cp", f"{source}/.", "box:/w/dlnk")
    view("cp", "-L", f"{source}/l", "box:/w/real")
    view("cp", f"{source}/l", "box:/w/still")
    assert view.run("cp", f"{source}/a", "box:/no/such/place").returncode == 1

    found = copied(view, "box:/w/.")
    assert {"./new", "./dir/a", "./dir/src/sub/b", "./made/sub/b", "./src/sub/b"} <= set(found)
    assert found["./lnk"].issym() and found["./real"].isreg() and found["./still"].linkname == "a"
    assert (found["./file"].size, found["./other"].size) == (1, 1)
    assert view("logs", "box") == ""


def test_a_tar_goes_in_and_out_by_the_standard_streams(view: View) -> None:
    box(view)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        info = tarfile.TarInfo("in/deep")
        info.size, info.uid, info.gid, info.mode = 5, 77, 88, 0o600
        archive.addfile(info, io.BytesIO(b"hello"))
    done = view.run("cp", "-", "box:/w/dir", input=target.getvalue())
    assert done.returncode == 0, done.stderr
    assert view("exec", "box", "stat", "-c", "%u %g %a %s", "/w/dir/in/deep") == "77 88 600 5"

    found = copied(view, "box:/w/src")
    assert set(found) == {"src", "src/a", "src/l", "src/sub", "src/sub/b"}
    assert (found["src/a"].uid, found["src/a"].gid, found["src/a"].mode) == (12, 34, 0o4750)
    refused = view.run("cp", "-", "box:/w/file", input=target.getvalue())
    assert refused.returncode == 1 and b"must be a directory" in refused.stderr
    broken = view.run("cp", "-", "box:/w/dir", input=b"this is no tar" * 100)
    assert broken.returncode == 1 and b"invalid tar header" in broken.stderr


def test_links_never_lead_out_of_the_container(view: View, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    box(view)
    links = f"ln -s {tmp_path} /w/out; ln -s ../../../../../..{tmp_path} /w/up; ln -s / /w/root"
    view("exec", "box", "sh", "-c", links)

    for path in (f"/w/out/{secret.name}", f"/w/up/{secret.name}", f"/w/root{secret}"):
        assert b"Could not find the file" in view.run("cp", f"box:{path}", "-").stderr
        assert view.run("cp", "-L", f"box:{path}", "-").returncode == 1
    (tmp_path / "mine").write_text("from outside")
    assert view.run("cp", str(tmp_path / "mine"), "box:/w/out/mine2").returncode == 1
    view("cp", str(tmp_path / "mine"), "box:/w/root/w/mine")
    assert view("exec", "box", "cat", "/w/mine") == "from outside"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "secret"]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_volumes_and_binds_are_reached(view: View, tmp_path: Path, running: bool) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "x").write_text("x")
    box(view, "-v", "/data", "-v", f"{tmp_path}/bound:/bound", "-v", f"{tmp_path}/bound:/ro:ro", running=running)

    view("cp", str(tmp_path / "x"), "box:/data/x")
    view("cp", str(tmp_path / "x"), "box:/bound/y")
    assert "data/x" in copied(view, "box:/data")
    assert "ro/y" in copied(view, "box:/ro")
    assert (tmp_path / "bound/y").read_text() == "x"
    refused = view.run("cp", str(tmp_path / "x"), "box:/ro/z")
    assert refused.returncode == 1 and b"mounted volume is marked read-only" in refused.stderr
    if not running:
        view("start", "box")
    assert view("exec", "box", "cat", "/data/x") == "x"
    view("rm", "-f", "-v", "box")


def test_a_read_only_root_is_refused_and_a_volume_in_it_is_not(view: View, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    view("run", "-d", "--name", "box", "--read-only", "-v", "/data", "busybox", "sleep", "600")

    refused = view.run("cp", str(tmp_path / "x"), "box:/x")
    assert refused.returncode == 1 and b"container rootfs is marked read-only" in refused.stderr
    view("cp", str(tmp_path / "x"), "box:/data")
    assert view("exec", "box", "cat", "/data/x") == "x"
    view("rm", "-f", "-v", "box")


def test_the_containers_own_mounts_survive_what_is_copied_over_them(view: View) -> None:
    box(view, "--tmpfs", "/scratch")
    view("exec", "box", "touch", "/scratch/kept")
    for name in ("scratch", "proc", "etc/hosts"):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name))
        # curl's way: without the guard that the docker command asks for.
        answer = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", str(view.socket), "-X", "PUT",
             "-T", "-", "-H", "Content-Type: application/x-tar", "http://d/containers/box/archive?path=/"],
            input=target.getvalue(), capture_output=True, timeout=30,
        )
        assert answer.stdout == b"500", (name, answer)
    assert view("exec", "box", "sh", "-c", "ls /scratch; test -d /proc/1 && grep -c localhost /etc/hosts").startswith(
        "kept\n"
    )


def test_diff_shows_what_the_container_changed(view: View) -> None:
    view("run", "--name", "box", "busybox", "true")
    assert view("diff", "box") == ""
    view("rm", "box")
    view("run", "-d", "--name", "box", "busybox", "sh", "-c", (
        "mkdir /new; touch /new/f; rm /etc/group; echo x >>/etc/passwd; rm -r /bin/sleep; touch /w; exec cat /dev/zero"
        " >/dev/null"
    ))
    wanted = ["A /new", "A /new/f", "A /w", "C /bin", "C /etc", "C /etc/passwd", "D /bin/sleep", "D /etc/group"]
    eventually(lambda: sorted(view("diff", "box").splitlines()) == wanted)
    view("kill", "box")
    assert sorted(view("diff", "box").splitlines()) == wanted


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_export_gives_the_whole_root_and_import_takes_it(view: View, running: bool, tmp_path: Path) -> None:
    box(view, "-v", "/data", running=running)
    out = tmp_path / "root.tar"
    view("export", "-o", str(out), "box")

    with tarfile.open(out) as archive:
        found = {info.name: info for info in archive.getmembers()}
    assert {"bin/busybox", "w/src/sub/b", "data"} <= set(found) and found["w/lnk"].linkname == "/w/file"
    assert not [name for name in found if name.startswith(("proc/", "sys/"))]
    image = view("import", "--change", 'CMD ["cat", "/w/file"]', str(out))
    assert view("run", "--rm", image) == "one"
    view("rm", "-f", "-v", "box")
    view("rmi", image)


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_container_becomes_an_image(view: View, running: bool) -> None:
    box(view, "-e", "OLD=1", "-v", "/data", running=running)
    if running:
        view("exec", "box", "sh", "-c", "rm /etc/group; rm -r /w/dir; mkdir /w/dir; echo v >/data/not-in-the-image")
    image = view(
        "commit", "-a", "me <m@e>", "-m", "why", "-c", 'CMD ["cat", "/w/file"]', "-c", "ENV NEW=2", "-c", "USER 12",
        "-c", "EXPOSE 80", "-c", "LABEL k=v", "-c", "WORKDIR /w", "box", "made:1",
    )
    try:
        assert view("run", "--rm", "made:1") == "one"
        shown = view("run", "--rm", "made:1", "sh", "-c", "echo $OLD$NEW; id -u; pwd; ls /data /w/dir; ls /etc")
        assert shown.split()[:3] == ["12", "12", "/w"] and ("group" in shown) is not running
        assert "not-in-the-image" not in shown
        details = view.json("image", "inspect", "made:1")[0]
        assert (details["Id"], details["Author"], details["Comment"]) == (image, "me <m@e>", "why")
        assert details["Config"]["Labels"] == {"k": "v"} and set(details["Config"]["ExposedPorts"]) == {"80/tcp"}
        history = view.rows("history", "made:1")
        assert history[0]["Comment"] == "why" and len(history) == 2
        assert view.json("container", "inspect", "box")[0]["State"]["Paused"] is False
        refused = view.run("commit", "-c", "RUN x", "box")
        assert refused.returncode == 1 and b"not a valid change command" in refused.stderr
    finally:
        view("rmi", "-f", "made:1")
        view("rm", "-f", "-v", "box")


def test_an_image_of_an_image_of_a_container_keeps_every_layer(cluster: Cluster) -> None:
    view = cluster.node(2)
    view("run", "--name", "first", "busybox", "sh", "-c", "echo 1 >/one; chmod 1777 /one; rm /etc/group")
    view("commit", "first", "made:a")
    view("run", "--name", "second", "made:a", "sh", "-c", "echo 2 >/two; rm /one")
    view("commit", "second", "made:b")
    same = view("commit", view("create", "--name", "third", "made:b", "true"))
    try:
        assert view("run", "--rm", "made:b", "sh", "-c", "cat /two; ls /one /etc/group 2>/dev/null || echo gone") == (
            "2\ngone"
        )
        assert len(view.json("image", "inspect", "made:b")[0]["RootFS"]["Layers"]) == 3
        assert len(view.json("image", "inspect", same)[0]["RootFS"]["Layers"]) == 3  # nothing was changed
        saved = view.run("save", "made:b").stdout
        view("rm", "second", "third")
        view("rmi", "made:b", same)
        assert b"made:b" in view.run("load", input=saved).stdout
        assert view("run", "--rm", "made:b", "cat", "/two") == "2"
    finally:
        view.run("rm", "-f", "first", "second", "third")
        view.run("rmi", "-f", "made:a", "made:b")


def test_much_data_goes_in_and_out_while_memory_stays_small(cluster: Cluster, tmp_path: Path) -> None:
    view = cluster.node(2)
    box(view)
    size = 512 << 20
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with (tmp_path / "big").open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
            digest.update(block)
    agent = cluster.pid(2, "swarmlet-agent")
    Path(f"/proc/{agent}/clear_refs").write_text("5")  # the peak is counted from here on
    before = _peak_kb(agent)

    view("cp", str(tmp_path / "big"), "box:/w/big", timeout=120)
    assert view("exec", "box", "sha256sum", "/w/big").split()[0] == digest.hexdigest()
    done = view.run("cp", "box:/w/big", f"{tmp_path}/back", timeout=120)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest.hexdigest()
    assert _peak_kb(agent) - before < 64 << 10


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_an_upload_that_is_broken_off_leaves_the_container_usable(cluster: Cluster) -> None:
    view = cluster.node(2)
    box(view, running=False)
    info = tarfile.TarInfo("half")
    info.size = 100 << 20
    uppers = cluster.host(2).data_dir / "data/containers-rootfs"
    for how in ("client", "agent"):
        process = view.popen("cp", "-", "box:/w", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(info.tobuf() + bytes(5 << 20))
        process.stdin.flush()
        eventually(lambda: list(uppers.glob("*/upper/w/half")))
        if how == "agent":
            agent = cluster.pid(2, "swarmlet-agent")
            os.kill(agent, signal.SIGKILL)
            eventually(lambda: cluster.pid(2, "swarmlet-agent") != agent and view.run("ps").returncode == 0)  # noqa: B023
        process.kill()
        process.wait(30)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

        assert view("inspect", "-f", "{{.State.Status}}", "box") == "exited"
        eventually(lambda: str(uppers) not in _mounts(cluster))
        view("start", "box", timeout=20)
        assert view("exec", "box", "sh", "-c", "rm /w/half; ls /w/file") == "/w/file"
        view("stop", "-t", "0", "box")


def _mounts(cluster: Cluster) -> str:
    """As the second node's agent has them; hosts on one machine share them."""
    return Path(f"/proc/{cluster.pid(2, 'swarmlet-agent')}/mounts").read_text()


def test_docker_py_copies_both_ways(view: View) -> None:
    box(view)
    client = docker.DockerClient(base_url=view.url)
    try:
        container = client.containers.get("box")
        pieces, found = container.get_archive("/w/src/a")
        assert members(b"".join(pieces))["a"].size == found["size"] == 2
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:xz") as archive:
            archive.addfile(tarfile.TarInfo("put"))
        assert container.put_archive("/w", target.getvalue())
        assert {"Path": "/w/put", "Kind": 1} in container.diff()
        assert "w/put" in members(b"".join(container.export()))
        image = container.commit("made", "py", changes="CMD ls /w/put", pause=False, author="me")
        assert client.containers.run(image.id, remove=True) == b"/w/put\n"
        with pytest.raises(docker.errors.NotFound):
            container.get_archive("/missing")
        client.images.remove("made:py")
    finally:
        client.close()


def test_what_was_done_is_told_as_events(view: View) -> None:
    box(view)
    started = view.json("info", "--format", "{{json .SystemTime}}")
    copied(view, "box:/w/file")
    view.run("cp", "-", "box:/w", input=bytes(1024))
    view.run("export", "box")
    image = view("commit", "-m", "why", "box")
    until = view.json("info", "--format", "{{json .SystemTime}}")
    try:
        told = view("events", "--since", started, "--until", until, "--filter", "type=container", "--format",
                    "{{.Action}} {{.Actor.Attributes.comment}}").splitlines()  # fmt: skip
        actions = [line.split()[0] for line in told]
        assert actions == ["archive-path", "extract-to-dir", "export", "pause", "unpause", "commit"]
        assert told[-1] == "commit why"
    finally:
        view("rm", "-f", "box")
        view("rmi", image)
