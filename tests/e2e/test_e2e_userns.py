"""userns_remap: a container's root is nobody on the host, and all that shows its files agrees on who owns them."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View, eventually
from test_e2e_isolation import pid_of, status

FIRST = 300000


@pytest.fixture(scope="module")
def node(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """The third host's engine with `userns_remap`; it is as before afterwards."""
    folder = tmp_path_factory.mktemp("etc")
    for name in ("subuid", "subgid"):
        (folder / name).write_text(f"# ranges\nother:100000:65536\ndockremap:{FIRST}:65536\n")
    host, view = whole_cluster.host(3), whole_cluster.node(3)
    before = host.config_file.read_text()

    def restarted(config: str) -> None:
        host.config_file.write_text(config)
        old = whole_cluster.pid(3, "swarmlet-agent")
        os.kill(old, signal.SIGKILL)
        eventually(lambda: whole_cluster.pid(3, "swarmlet-agent") != old and view.run("info").returncode == 0)

    # Ahead of any table: these are keys of the whole.
    restarted(f'userns_remap = "default"\nsubid_dir = "{folder}"\n{before}')
    try:
        yield view
        left = view("ps", "-aq").split()
        if left:
            view("rm", "-f", "-v", *left)
        view("volume", "prune", "-a", "-f")
    finally:
        restarted(before)


def sh(node: View, *args: str, script: str) -> str:
    return node("run", "--rm", *args, "busybox", "sh", "-c", script)


def test_secrets_and_configs_have_the_containers_ids(whole_cluster: Cluster, node: View) -> None:
    view = whole_cluster.view
    view("secret", "create", "mapped", "-", input=b"for one")
    view("config", "create", "mapped", "-", input=b"for all")
    try:
        view(
            "service", "create", "-d", "--name", "mapped", "--constraint", "node.hostname==node-3", "--user", "1000",
            "--secret", "source=mapped,target=mine,uid=1000,gid=7,mode=0400", "--config", "source=mapped,target=/all",
            "--secret", "source=mapped,target=roots,mode=0400", "busybox", "sleep", "600",
        )  # fmt: skip
        whole_cluster.wait_running("mapped", 1)
        ident = node("ps", "-q", "--filter", "label=com.docker.swarm.service.name=mapped")
        assert node("exec", ident, "cat", "/run/secrets/mine", "/all") == "for onefor all"
        assert node("exec", ident, "stat", "-c", "%u:%g %a", "/run/secrets/mine", "/all").splitlines() == [
            "1000:7 400", "0:0 444"
        ]
        assert node.run("exec", ident, "cat", "/run/secrets/roots").returncode
        pid = node("inspect", "-f", "{{.State.Pid}}", ident)
        info = os.stat(f"/proc/{pid}/root/run/secrets/mine")
        assert (info.st_uid, info.st_gid) == (FIRST + 1000, FIRST + 7)
    finally:
        view.run("service", "rm", "mapped")
        view("secret", "rm", "mapped")
        view("config", "rm", "mapped")


def test_the_containers_root_is_nobody_on_the_host(node: View) -> None:
    assert "name=userns" in node("info", "-f", "{{.SecurityOptions}}")
    node("run", "-d", "--name", "mapped", "busybox", "sh", "-c", "touch /mine; chown 5:6 /mine; sleep 600")
    pid = pid_of(node, "mapped")
    assert status(Path(f"/proc/{pid}/status").read_text(), "Uid").split() == [str(FIRST)] * 4
    assert node("exec", "mapped", "cat", "/proc/self/uid_map").split() == ["0", str(FIRST), "65536"]
    assert node("exec", "mapped", "ls", "-ln", "/bin/busybox", "/etc/hosts").split()[2:4] == ["0", "0"]
    eventually(lambda: node("exec", "mapped", "stat", "-c", "%u:%g", "/mine") == "5:6")
    info = os.stat(f"/proc/{pid}/root/mine")
    assert (info.st_uid, info.st_gid) == (FIRST + 5, FIRST + 6)
    assert node("exec", "-u", "7:8", "mapped", "sh", "-c", "id -u; id -g; echo said > /dev/stdout") == "7\n8\nsaid"
    node("restart", "-t", "0", "mapped")
    assert node("exec", "mapped", "stat", "-c", "%u", "/mine") == "5"
    node("rm", "-f", "mapped")


def test_it_has_its_network_files_streams_and_limits(node: View) -> None:
    own = "ip link set lo down && ip link set lo up && echo netadmin; cat /proc/sys/net/core/somaxconn"
    assert sh(node, "--cap-add", "NET_ADMIN", "--sysctl", "net.core.somaxconn=77", script=own) == "netadmin\n77"
    assert sh(node, script="echo 1.2.3.4 x >> /etc/hosts && echo out > /dev/stdout") == "out"
    assert sh(node, "-u", "1000", script="echo out > /dev/stdout; touch /tmp/x && stat -c %u /tmp/x") == "out\n1000"
    assert sh(node, "-w", "/made/deep", script="touch here && stat -c %u /made /made/deep here") == "0\n0\n0"
    assert sh(node, "--tmpfs", "/t:uid=5", "--init", script="stat -c %u /t") == "5"
    assert sh(node, "-m", "64m", "--read-only", script="touch /dev/shm/x && echo ok") == "ok"
    node("run", "-d", "--name", "first", "--ipc", "shareable", "busybox", "sh", "-c", "touch /dev/shm/a; sleep 600")
    sharing = ("--network", "container:first", "--pid", "container:first", "--ipc", "container:first")
    eventually(lambda: sh(node, *sharing, script="stat -c %u /dev/shm/a; ps | grep -c sleep").split()[0] == "0")
    node("rm", "-f", "first")


def test_volumes_belong_to_it_and_the_hosts_files_do_not(node: View, tmp_path: Path) -> None:
    script = "touch /etc/new /anon/new && stat -c %u /etc/passwd"
    assert sh(node, "-v", "mapped:/etc", "-v", "/anon", script=script) == "0"
    folder = Path(node("volume", "inspect", "-f", "{{.Mountpoint}}", "mapped"))
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (folder, *folder.iterdir())} == {(FIRST, FIRST)}
    tmp_path.chmod(0o755)
    (tmp_path / "f").touch()
    for above in (tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)
    done = node.run("run", "--rm", "-v", f"{tmp_path}:/x", "busybox", "sh", "-c", "stat -c %u /x/f; touch /x/new")
    assert done.stdout == b"65534\n" and b"Permission denied" in done.stderr
    node("volume", "rm", "mapped")


def test_copies_differences_exports_and_images_have_the_containers_ids(node: View, tmp_path: Path) -> None:
    node("run", "-d", "--name", "source", "busybox", "sh", "-c", "touch /f; chown 5:6 /f; sleep 600")
    eventually(lambda: node("exec", "source", "stat", "-c", "%u", "/f") == "5")
    assert owners(node.run("cp", "source:/f", "-").stdout) == {"f": (5, 6)}
    node("cp", "-", "source:/", input=tar_with("in", 7, 8))
    assert node("exec", "source", "stat", "-c", "%u:%g", "/in") == "7:8"
    node("cp", "-", "source:/etc", input=tar_with("in", 9, 9))
    done = node.run("cp", "-", "source:/", input=tar_with("far", 70000, 0))
    assert done.returncode and b"cannot be mapped to a host ID" in done.stderr, done.stderr
    exported = owners(node.run("export", "source").stdout)
    assert (exported["f"], exported["in"], exported["bin/busybox"]) == ((5, 6), (7, 8), (0, 0))
    assert set(node("diff", "source").splitlines()) == {"A /f", "A /in", "C /etc", "A /etc/in"}
    node("commit", "source", "mapped:1")
    for userns in ((), ("--userns", "host")):
        shown = node("run", "--rm", *userns, "mapped:1", "stat", "-c", "%u:%g", "/f", "/in", "/etc/in", "/bin/busybox")
        assert shown.splitlines() == ["5:6", "7:8", "9:9", "0:0"]
    node("stop", "-t", "0", "source")
    node("cp", "-", "source:/", input=tar_with("late", 3, 4))
    assert owners(node.run("cp", "source:/late", "-").stdout) == {"late": (3, 4)}
    node("start", "source")
    assert node("exec", "source", "stat", "-c", "%u:%g", "/late") == "3:4"
    node("rm", "-f", "source")
    node("rmi", "mapped:1")


def test_builds_run_mapped_and_their_images_have_the_right_owners(node: View, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("copied")
    (tmp_path / "f").chmod(0o600)
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN cat /proc/self/uid_map > /map && chown 5:6 /map\nCOPY f /f\n"
        "RUN --mount=type=cache,target=/c touch /c/x\nRUN --mount=type=bind,source=f,target=/b cat /b > /seen\n"
        "USER 9\nRUN touch /tmp/u\n"
    )
    done = node.run("build", "-q", "-t", "built:1", str(tmp_path), env={"DOCKER_BUILDKIT": "0"})
    assert done.returncode == 0, done.stderr
    shown = node("run", "--rm", "-u", "0", "built:1", "sh", "-c", "cat /map /seen; stat -c %u:%g /map /f /tmp/u")
    assert shown.split() == ["0", str(FIRST), "65536", "copied5:6", "0:0", "9:0"]
    node("rmi", "built:1")


def test_what_cannot_be_mapped_is_refused_unless_the_hosts_ids_are_asked_for(node: View) -> None:
    for args, text in (
        (("--privileged",), "privileged mode is incompatible with user namespaces."),
        (("--network", "host"), "cannot share the host's network namespace when user namespaces are enabled"),
        (("--pid", "host"), "cannot share the host PID namespace when user namespaces are enabled"),
    ):
        done = node.run("run", "--rm", *args, "busybox", "true")
        assert done.returncode == 125 and text in done.stderr.decode(), done.stderr
        shown = node("run", "--rm", "--userns", "host", *args, "busybox", "cat", "/proc/self/uid_map")
        assert shown.split() == ["0", "0", "4294967295"]
    assert sh(node, "--ipc", "host", script="id -u") == "0"


def test_a_mapped_container_outlives_the_agent(whole_cluster: Cluster, node: View) -> None:
    node("run", "-d", "--name", "lasting", "-v", "data:/data", "busybox", "sleep", "600")
    old = whole_cluster.pid(3, "swarmlet-agent")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: whole_cluster.pid(3, "swarmlet-agent") != old and node.run("info").returncode == 0)
    assert node("exec", "lasting", "sh", "-c", "touch /x /data/x; stat -c %u /x /data/x") == "0\n0"
    node("restart", "-t", "0", "lasting")
    assert node("exec", "lasting", "stat", "-c", "%u", "/x") == "0"
    node("rm", "-f", "lasting")


def owners(archive: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        return {member.name: (member.uid, member.gid) for member in tar}


def tar_with(name: str, uid: int, gid: int) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.uid, member.gid = uid, gid
        tar.addfile(member)
    return file.getvalue()
