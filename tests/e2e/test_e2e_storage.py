"""Binds, volumes, tmpfs and images in containers, by every way the stock client has to ask for them."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View, eventually


def sh(node: View, *args: str, script: str) -> str:
    return node("run", "--rm", *args, "busybox", "sh", "-c", script)


def refusal(node: View, *args: str) -> str:
    done = node.run("run", "--rm", *args, "busybox", "true")
    found = re.search(r"Error response from daemon: (.*)", done.stderr.decode())
    assert done.returncode and found, (done.returncode, done.stderr)
    return found[1]


# --- binds


def test_binds_of_folders_files_and_what_is_not_there(node: View, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert sh(node, "-v", f"{tmp_path}:/x", script="cat /x/file; touch /x/made") == "content"
    assert (tmp_path / "made").exists()
    assert sh(node, "-v", f"{tmp_path}/file:/etc/one", script="cat /etc/one") == "content"
    sh(node, "-v", f"{tmp_path}/new/deep:/x", script="touch /x/in")
    assert (tmp_path / "new/deep/in").exists()
    missing = f"type=bind,src={tmp_path}/none,dst=/x"
    assert refusal(node, "--mount", missing) == (
        f'invalid mount config for type "bind": bind source path does not exist: {tmp_path}/none'
    )
    assert not (tmp_path / "none").exists()
    assert "Are you trying to mount a directory onto a file" in refusal(node, "-v", f"{tmp_path}/file:/etc")


def test_read_only_reaches_what_is_mounted_below(node: View, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
    try:
        try_both = "touch /x/a; touch /x/inner/b; ls /x/inner"
        for words in (("-v", f"{tmp_path}:/x:ro"), ("--mount", f"type=bind,src={tmp_path},dst=/x,readonly")):
            done = node.run("run", "--rm", *words, "busybox", "sh", "-c", try_both)
            assert done.stderr.count(b"Read-only file system") == 2, done.stderr
            # As clients of before API 1.44 know it.
            older = {"DOCKER_API_VERSION": "1.43"}
            done = node.run("run", "--rm", *words, "busybox", "sh", "-c", try_both, env=older)
            assert (done.stderr.count(b"Read-only file system"), done.stdout) == (1, b"b\n"), done.stderr
            (inner / "b").unlink()
        shallow = f"type=bind,src={tmp_path},dst=/x,readonly,bind-recursive=writable"
        assert sh(node, "--mount", shallow, script="touch /x/inner/b && ls /x/inner") == "b"
        alone = f"type=bind,src={tmp_path},dst=/x,bind-recursive=disabled"
        assert sh(node, "--mount", alone, script="ls /x/inner") == ""
    finally:
        subprocess.run(["umount", str(inner)], check=True)


def test_propagation_follows_the_source(node: View, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    assert "is not a shared mount" in refusal(node, "-v", f"{tmp_path}:/x:shared")
    assert "is not a shared or slave mount" in refusal(node, "-v", f"{tmp_path}:/x:rslave")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        (shared / "late").mkdir()
        node("run", "-d", "--name", "follower", "-v", f"{shared}:/x:rslave", "busybox", "sleep", "600")
        node("run", "-d", "--name", "private", "-v", f"{shared}:/x", "busybox", "sleep", "600")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared / "late")], check=True)
        (shared / "late" / "seen").touch()
        assert node("exec", "follower", "ls", "/x/late") == "seen"
        assert node("exec", "private", "ls", "/x/late") == ""
        assert node.json("inspect", "follower")[0]["Mounts"][0]["Propagation"] == "rslave"
        node("rm", "-f", "follower", "private")
        (shared / "back").mkdir()
        mount = "mount -t tmpfs tmpfs /x/back && touch /x/back/mine"
        for how in ("shared", "rshared"):
            sh(node, "--privileged", "-v", f"{shared}:/x:{how}", script=mount)
            assert (shared / "back" / "mine").exists()
            subprocess.run(["umount", str(shared / "back")], check=True)
        sh(node, "--privileged", "-v", f"{shared}:/x:slave", script=mount)
        assert not (shared / "back" / "mine").exists()
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=True)


def test_binds_of_the_engines_own_folder_hear_of_unmounts_there(cluster: Cluster, node: View) -> None:
    """moby TestMountDaemonRoot."""
    root = node.json("info", "--format", "{{json .DockerRootDir}}")
    for source in (root, f"{root}/containers", "/"):
        node("run", "--name", "inside", "-v", f"{source}:/x", "busybox", "ls", "/x")
        assert node.json("inspect", "inside")[0]["Mounts"][0]["Propagation"] == "rslave"
        node("rm", "inside")
        assert 'must use either propagation mode "rslave" or "rshared"' in refusal(node, "-v", f"{source}:/x:private")


def test_a_folder_of_a_volume_is_mounted_alone(node: View) -> None:
    """moby TestRunMountVolumeSubdir."""
    made = "mkdir -p /v/sub /v/bin /v/hack; echo world > /v/sub/hello; ln -s / /v/hack/root; ln -s ../sub /v/hack/good"
    sh(node, "-v", "parted:/v", script=made)

    def part(path: str, target: str = "/x") -> tuple[str, str]:
        return "--mount", f"type=volume,src=parted,dst={target},volume-subpath={path}"

    assert sh(node, *part("sub"), script="ls /x") == "hello"
    assert sh(node, *part("hack/good"), script="ls /x") == "hello"
    assert sh(node, *part("sub/hello"), script="cat /x") == "world"
    # An empty one is filled with what the image has there, as a whole volume is.
    assert sh(node, *part("bin", "/bin"), script="ls /bin/busybox") == "/bin/busybox"
    assert sh(node, "-v", "parted:/v", script="ls /v; ls /v/bin/busybox") == "bin\nhack\nsub\n/v/bin/busybox"
    assert "cannot access path" in refusal(node, *part("nothing"))
    assert "path concatenation escapes the base directory" in refusal(node, *part("hack/root"))
    node("volume", "rm", "parted")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-v", "/tmp:x"),
         "invalid volume specification: '/tmp:x': invalid mount config for type \"bind\": invalid mount path: 'x'"),
        (("-v", "/tmp:/"), "invalid mount config for type \"bind\": invalid specification: destination can't be '/'"),
        (("-v", "/tmp:/x:bad"), "invalid mode: bad"),
        (("-v", "/tmp:/x:ro,rw"), "invalid mode: ro,rw"),
        (("-v", "a/b:/x"), '"a/b" includes invalid characters for a local volume name'),
        (("-v", "/tmp:/x", "-v", "/etc:/x"), "Duplicate mount point: /x"),
        (("-v", "/tmp:/x", "--tmpfs", "/x"), "Duplicate mount point: /x"),
        (("-v", "/tmp:/x", "--mount", "type=tmpfs,dst=/x"), "Duplicate mount point: /x"),
        (("--tmpfs", "x"), "invalid mount path: 'x' mount path must be absolute"),
        (("--tmpfs", "/x:odd=1"), 'invalid tmpfs option ["odd" "1"]'),
        (("--mount", "type=bind,src=rel,dst=/x"), "invalid mount path: 'rel' mount path must be absolute"),
        (("--mount", "type=bind,src=/tmp,dst=/x,bind-propagation=odd"), "invalid propagation mode: odd"),
        (("--mount", "type=tmpfs,src=/tmp,dst=/x"), "field Source must not be specified"),
        (("--mount", "type=odd,dst=/x"), 'invalid mount config for type "odd": mount type unknown'),
        (("--mount", "type=volume,dst=/x,readonly"), "must not set ReadOnly mode when using anonymous volumes"),
        (("--mount", "type=volume,src=some,dst=/x,volume-subpath=../up"), "must be a relative path within the volume"),
        (("--mount", "type=image,src=nosuch,dst=/x"), 'invalid mount config for type "image": No such image: nosuch'),
        (("--mount", "type=image,src=busybox,dst=/x,image-subpath=/bin"), "must be a relative path within the image"),
        (("--volume-driver", "nosuch", "-v", "some:/x"),
         'error looking up volume plugin nosuch: plugin "nosuch" not found'),
        (("--volumes-from", "nobody"), "No such container: nobody"),
    ],
)  # fmt: skip
def test_mounts_that_cannot_be_are_refused_by_name(node: View, args: tuple[str, ...], text: str) -> None:
    assert text in refusal(node, *args)


# --- volumes


def test_a_new_volume_is_filled_from_the_image_with_owners_and_once_only(node: View) -> None:
    listed = sh(node, "-v", "filled:/etc", script="ls /etc/passwd; rm /etc/passwd; chown 33:44 /etc/group")
    assert listed == "/etc/passwd"
    # What the engine itself puts into /etc has its places in the volume.
    there = sh(node, "-v", "filled:/etc", script="ls /etc").split()
    assert there == ["group", "hostname", "hosts", "mtab", "resolv.conf"]
    assert sh(node, "-v", "filled:/etc", script="stat -c %u:%g:%a /etc/group") == "33:44:644"
    assert sh(node, "-v", "bare:/etc:nocopy", script="ls /etc/passwd || echo none") == "none"
    bare = "type=volume,src=bare2,dst=/etc,volume-nocopy=true"
    assert sh(node, "--mount", bare, script="ls /etc/group || echo none") == "none"
    node("volume", "rm", "filled", "bare", "bare2")


def test_anonymous_volumes_go_with_rm_v_and_named_ones_stay(node: View) -> None:
    before = set(node("volume", "ls", "-q").split())
    node("create", "--name", "holder", "-v", "/anon", "-v", "kept:/kept", "busybox")
    made = set(node("volume", "ls", "-q").split()) - before
    assert "kept" in made and len(made) == 2
    done = node.run("volume", "rm", "kept")
    ident = node("inspect", "-f", "{{.Id}}", "holder")
    assert done.stderr.decode().strip() == (
        f"Error response from daemon: remove kept: volume is in use - [{ident}]"
    )
    node("rm", "-v", "holder")
    assert set(node("volume", "ls", "-q").split()) - before == {"kept"}
    node("volume", "rm", "kept")
    sh(node, "-v", "/anon", script="true")  # --rm takes it away
    assert set(node("volume", "ls", "-q").split()) == before


def test_volumes_of_another_container(node: View, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1")
    node("create", "--name", "giver", "-v", "given:/data", "-v", "/anon", "-v", f"{tmp_path}:/bind:ro", "busybox")
    script = "touch /data/a /anon/b; cat /bind/f; touch /bind/x"
    done = node.run("run", "--rm", "--volumes-from", "giver", "busybox", "sh", "-c", script)
    assert done.stdout == b"1" and b"/bind/x: Read-only" in done.stderr
    done = node.run("run", "--rm", "--volumes-from", "giver:ro", "busybox", "sh", "-c", "ls /data; touch /data/c")
    assert done.stdout == b"a\n" and b"Read-only" in done.stderr
    assert "invalid mode: odd" in refusal(node, "--volumes-from", "giver:odd")
    node("rm", "-v", "giver")
    node("volume", "rm", "given")


def test_the_local_driver_mounts_tmpfs_and_binds_and_says_why_it_cannot(node: View, tmp_path: Path) -> None:
    options = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=2m,uid=7")
    node("volume", "create", "-d", "local", *options, "fleeting")
    shown = sh(node, "-v", "fleeting:/x", script="df -k /x | tail -1; ls -lnd /x").split()
    assert "2048" in shown and "7" in shown
    (tmp_path / "seen").touch()
    node("volume", "create", "-o", "type=none", "-o", f"device={tmp_path}", "-o", "o=bind", "elsewhere")
    assert sh(node, "-v", "elsewhere:/x", script="ls /x") == "seen"
    inline = f"type=volume,src=inline,dst=/x,volume-opt=type=none,volume-opt=device={tmp_path},volume-opt=o=bind"
    assert sh(node, "--mount", inline, script="ls /x") == "seen"
    node("volume", "create", "-o", "type=none", "-o", f"device={tmp_path}/none", "-o", "o=bind", "nowhere")
    text = refusal(node, "-v", "nowhere:/x")
    assert "failed to mount local volume: mount " in text and text.endswith("no such file or directory")
    node("volume", "create", "-o", "type=nfs", "-o", "device=:/export", "-o", "o=addr=127.0.0.1,soft,timeo=1", "away")
    assert "failed to mount local volume: mount :/export:" in refusal(node, "-v", "away:/x")
    for args, text in (
        (("-o", "odd=1"), 'invalid option: "odd"'),
        (("-o", "o=bind"), "missing required option"),
        (("-o", "size=1m"), "quota size requested but no quota support"),
        (("-d", "nosuch"), 'error looking up volume plugin nosuch: plugin "nosuch" not found'),
    ):
        done = node.run("volume", "create", *args, "refused")
        assert done.returncode and text in done.stderr.decode(), done.stderr
    node("volume", "rm", "fleeting", "elsewhere", "inline", "nowhere", "away")


def test_volumes_are_listed_filtered_and_pruned(node: View) -> None:
    node("volume", "prune", "-a", "-f")
    node("volume", "create", "--label", "tier=db", "one")
    assert node("volume", "create", "one") == "one"  # twice is once
    node("volume", "create", "two")
    anonymous = node("volume", "create")
    node("create", "--name", "user", "-v", "two:/x", "busybox")

    def listed(*filters: str) -> set[str]:
        return set(node("volume", "ls", "-q", *(word for each in filters for word in ("-f", each))).split())

    assert listed() == {"one", "two", anonymous}
    assert listed("dangling=true") == {"one", anonymous} and listed("dangling=false") == {"two"}
    assert listed("label=tier") == listed("label=tier=db") == {"one"}
    assert listed("name=tw") == {"two"} and listed("driver=local") == listed() and listed("driver=nfs") == set()
    done = node.run("volume", "ls", "-f", "odd=1")
    assert done.returncode and b"invalid filter 'odd'" in done.stderr
    shown = node.json("volume", "inspect", "one")[0]
    assert shown["Labels"] == {"tier": "db"} and shown["Scope"] == "local" and Path(shown["Mountpoint"]).is_dir()
    assert anonymous in node("volume", "prune", "-f") and listed() == {"one", "two"}
    assert "one" not in node("volume", "prune", "-a", "-f", "--filter", "label!=tier=db")
    assert "one" in node("volume", "prune", "-a", "-f") and listed() == {"two"}
    node("rm", "user")
    node("volume", "rm", "two")
    assert b"get two: no such volume" in node.run("volume", "inspect", "two").stderr
    assert node("volume", "rm", "-f", "two") == "two"


def test_a_part_of_a_volume_is_mounted_and_a_link_in_it_leads_nowhere(node: View) -> None:
    sh(node, "-v", "parts:/v", script="mkdir -p /v/a/b; echo in > /v/a/b/f; ln -s /etc /v/out; ln -s a /v/link")
    part = "type=volume,src=parts,dst=/x,volume-subpath="
    assert sh(node, "--mount", f"{part}a/b", script="cat /x/f") == "in"
    assert sh(node, "--mount", f"{part}link/b", script="cat /x/f") == "in"
    assert "path concatenation escapes the base directory" in refusal(node, "--mount", f"{part}out/hostname")
    assert "no such file or directory" in refusal(node, "--mount", f"{part}none")
    node("volume", "rm", "parts")


# --- tmpfs and images


def test_tmpfs_takes_size_mode_and_flags(node: View) -> None:
    shown = sh(node, "--tmpfs", "/t", script="grep ' /t ' /proc/mounts")
    assert {"nosuid", "nodev", "noexec"} <= set(shown.split()[3].split(","))
    shown = sh(node, "--tmpfs", "/t:exec,size=64k,mode=711,uid=5", script="grep ' /t ' /proc/mounts; ls -lnd /t")
    assert "noexec" not in shown and "size=64k" in shown and "drwx--x--x" in shown and " 5 " in shown
    mount = "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1750"
    assert "drwxr-x--T" in sh(node, "--mount", mount, script="ls -ld /t; df -k /t | tail -1")


def test_an_image_is_mounted_whole_or_in_part_and_cannot_be_removed_meanwhile(node: View) -> None:
    whole = "type=image,src=busybox,dst=/image"
    assert sh(node, "--mount", whole, script="ls /image/bin/busybox; touch /image/new && ls /image/new").split() == [
        "/image/bin/busybox", "/image/new",
    ]  # fmt: skip
    assert sh(node, "--mount", f"{whole},image-subpath=etc", script="ls /image") == "group\npasswd"
    done = node.run("run", "--rm", "--mount", f"{whole},readonly", "busybox", "touch", "/image/x")
    assert b"Read-only" in done.stderr
    assert "no such file or directory" in refusal(node, "--mount", f"{whole},image-subpath=none")
    node("tag", "busybox", "lent:1")
    node("import", "-", "lender:1", input=small_tar("hello"))
    node("run", "-d", "--name", "reader", "--mount", "type=image,src=lender:1,dst=/i", "busybox", "sleep", "600")
    assert node("exec", "reader", "cat", "/i/f") == "hello"
    shown = node.json("inspect", "reader")[0]["Mounts"][0]
    assert (shown["Type"], shown["Destination"], shown["RW"]) == ("image", "/i", True)
    done = node.run("rmi", "lender:1")
    assert done.returncode and b"conflict" in done.stderr and b"is using" in done.stderr, done.stderr
    node("restart", "-t", "0", "reader")
    assert node("exec", "reader", "cat", "/i/f") == "hello"
    node("rm", "-f", "reader")
    node("rmi", "lender:1", "lent:1")


def small_tar(text: str) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("f")
        member.size = len(text)
        tar.addfile(member, BytesIO(text.encode()))
    return file.getvalue()


# --- nothing leads out, and nothing stays behind


def test_a_link_that_changes_under_a_copy_never_leads_out(node: View, tmp_path: Path) -> None:
    """The container turns a folder into a link to the host's path and back, as fast as it can."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("host")
    spin = f"mkdir -p /real; cd /; while :; do ln -sfn /real swing; ln -sfn {outside} swing; done"
    node("run", "-d", "--name", "racer", "busybox", "sh", "-c", spin)
    eventually(lambda: node.run("exec", "racer", "readlink", "/swing").returncode == 0)
    payload = small_tar("planted")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            node.run("cp", "-", "racer:/swing", input=payload)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            got = node.run("cp", "racer:/swing/secret", "-").stdout
            assert b"host" not in got
    finally:
        stop.set()
        writer.join()
    assert sorted(os.listdir(outside)) == ["secret"]
    node("rm", "-f", "racer")


def test_mounts_and_folders_are_gone_with_the_container(cluster: Cluster, tmp_path: Path) -> None:
    node, data = cluster.node(2), cluster.host(2).data_dir / "data"
    ident = node(
        "run", "-d", "-v", "gone:/v", "-v", "/anon", "-v", f"{tmp_path}:/b", "--tmpfs", "/t", "--ipc", "shareable",
        "--mount", "type=image,src=busybox,dst=/i", "busybox", "sleep", "600",
    )  # fmt: skip
    assert ident in Path("/proc/self/mountinfo").read_text()
    node("rm", "-f", "-v", ident)

    def traces() -> list[str]:
        found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if ident in line]
        return found + [str(path) for path in (*data.glob(f"*/{ident}*"), *cluster.host(2).run_dir.glob(f"*/{ident}*"))]

    eventually(lambda: not traces())
    node("volume", "rm", "gone")
