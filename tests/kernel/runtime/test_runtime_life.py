"""Containers from creation to deletion, on real conmon and OCI runtimes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from swarmlet.errors import Conflict, NotFound
from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet_agent.runtime.conmon_runtime import UNKNOWN_EXIT_CODE
from swarmlet_agent.runtime.types import MountPlan, StartFailed

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_a_program_runs_its_output_is_logged_and_its_exit_code_kept(open_bench, name: str) -> None:
    bench = await open_bench(name)
    assert bench.runtime.supports().name == name
    before = time.time_ns()

    found, text = await bench.run("sh", "-c", "echo out; sleep 0.05; echo err >&2; sleep 0.05; printf last; exit 3")

    assert found.code == 3
    assert not found.oom_killed
    assert before <= found.at <= time.time_ns()
    assert text == "out\nerr\nlast"


async def test_nothing_of_a_deleted_container_is_left(bench) -> None:
    ident = await bench.launch("sleep", "100")
    pid = await bench.runtime.alive(ident)

    await bench.runtime.delete(ident)

    assert not Path(f"/proc/{pid}").exists()
    for folder in ("containers", "exits", "oci", "execs"):
        assert os.listdir(bench.folder / "run" / folder) == []
    assert not any(folder.endswith(f"/{ident}") for folder, _, _ in os.walk("/sys/fs/cgroup"))
    await bench.runtime.delete(ident)
    assert await bench.runtime.alive(ident) is None
    with pytest.raises(NotFound):
        await bench.runtime.wait(ident)


async def test_a_created_container_waits_for_its_start(bench) -> None:
    ident = await bench.create(bench.plan("echo", "hello"))

    assert await bench.runtime.alive(ident) is not None
    assert bench.log(ident) == ""

    await bench.runtime.start(ident)

    assert (await bench.runtime.wait(ident)).code == 0
    assert bench.log(ident) == "hello\n"
    assert await bench.runtime.alive(ident) is None


async def test_the_same_id_can_be_created_again(bench) -> None:
    plan = bench.plan("sh", "-c", "exit 5")
    for _ in range(2):
        ident = await bench.create(plan)
        await bench.runtime.start(ident)
        assert (await bench.runtime.wait(ident)).code == 5


@pytest.mark.parametrize("name", ["crun", "runc"])
@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("nope", 127, 'exec: "nope": executable file not found in $PATH'),
        ("/bin/nope", 127, 'exec: "/bin/nope": stat /bin/nope: no such file or directory'),
        ("/etc/plain", 126, 'exec: "/etc/plain": permission denied'),
        ("/etc", 126, "/etc"),
    ],
)
async def test_a_program_that_cannot_run_fails_as_docker_says_and_leaves_nothing(
    open_bench, name: str, program: str, code: int, text: str
) -> None:
    bench = await open_bench(name)

    with pytest.raises(StartFailed) as raised:
        await bench.launch(program)

    assert raised.value.exit_code == code
    assert text in str(raised.value)
    assert str(raised.value).startswith(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
    )
    assert bench.runtime.containers() == []
    assert os.listdir(bench.folder / "run" / "oci") == []


async def test_a_program_that_fails_in_exec_exits_the_container(bench) -> None:
    """The interpreter is missing: found out after the runtime has let go."""
    try:
        found, _ = await bench.run("/etc/broken")
    except StartFailed as err:
        assert err.exit_code in (126, 127)
    else:
        assert found.code != 0


async def test_a_signal_reaches_the_program_and_its_death_is_told(bench) -> None:
    ident = await bench.launch("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    await until(lambda: "ready" in bench.log(ident))

    await bench.runtime.kill(ident, signal.SIGTERM)
    assert (await bench.runtime.wait(ident)).code == 7
    await bench.runtime.kill(ident, signal.SIGTERM)

    other = await bench.launch("sleep", "100")
    await bench.runtime.kill(other, signal.SIGKILL)
    assert (await bench.runtime.wait(other)).code == 137


async def test_every_process_can_be_signalled(bench) -> None:
    # Not a shell that waits: it would end by itself, once the others are gone.
    ident = await bench.launch("sh", "-c", "sleep 101 & sleep 102 & exec sleep 103")
    await until_async(lambda: _count(bench, ident, 3))

    await bench.runtime.kill(ident, signal.SIGKILL, everything=True)

    assert (await bench.runtime.wait(ident)).code == 137
    assert await bench.runtime.pids(ident) == []


async def test_a_paused_container_stands_still_and_can_be_deleted(bench) -> None:
    ident = await bench.launch("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")
    await until(lambda: len(bench.log(ident)) > 10)

    await bench.runtime.pause(ident)
    frozen = ""
    async with asyncio.timeout(30):
        while frozen != (frozen := bench.log(ident)):  # conmon may still have something to write
            await asyncio.sleep(0.2)

    await bench.runtime.resume(ident)
    await until(lambda: len(bench.log(ident)) > len(frozen) + 5)

    await bench.runtime.pause(ident)
    await bench.runtime.delete(ident)
    assert bench.runtime.containers() == []


async def test_many_containers_at_once(bench) -> None:
    async def one(number: int) -> int:
        return (await bench.run("sh", "-c", f"exit {number}"))[0].code

    assert await asyncio.gather(*(one(number) for number in range(12))) == list(range(12))


async def test_files_and_binds_appear_and_read_only_is_read_only(bench) -> None:
    shared = bench.folder / "outside"
    shared.mkdir()
    (shared / "file").write_text("from outside")
    hosts = bench.folder / "hosts"
    hosts.write_text("127.0.0.1 me\n")
    mounts = (
        MountPlan("/mnt/rw", str(shared), "bind", ("rbind", "rprivate")),
        MountPlan("/mnt/ro", str(shared), "bind", ("rbind", "ro")),
        MountPlan("/mnt/tmp", "", "tmpfs", ("size=64k",)),
    )
    script = (
        "cat /etc/hosts /mnt/ro/file; echo new > /mnt/rw/new; touch /mnt/ro/x; hostname;"
        "grep -c /mnt/tmp /proc/mounts; touch /rootfs-is-writable || echo read-only root"
    )

    found, text = await bench.run(
        "sh", "-c", script, mounts=mounts, files={"/etc/hosts": hosts}, host=HostConfig(readonly_rootfs=True)
    )

    assert found.code == 0
    assert "127.0.0.1 me\nfrom outside" in text
    assert "touch: /mnt/ro/x: Read-only file system" in text
    # Its complaint has a pipe of its own, and may come before or after.
    assert "read-only root" in text.splitlines()
    assert "box\n1\n" in text
    assert (shared / "new").read_text() == "new\n"


async def test_a_mount_made_after_the_runtime_was_opened_is_seen(bench) -> None:
    """The runtime lives in a mount namespace of its own on hybrid hosts."""
    folder = bench.folder / "later"
    folder.mkdir()
    mounts = (MountPlan("/mnt", str(folder), "bind", ("rbind",)),)
    await bench.run("true")
    await _command("mount", "-t", "tmpfs", "tmpfs", str(folder))
    try:
        (folder / "file").write_text("seen")
        _, text = await bench.run("cat", "/mnt/file", mounts=mounts)
    finally:
        await _command("umount", str(folder))

    assert text == "seen"


async def test_a_root_mounted_later_can_be_unmounted_while_another_container_runs(bench) -> None:
    """What is mounted below the data folder must also disappear wherever conmon lives."""
    other = await bench.launch("sleep", "100")
    root = bench.folder / "data" / "later"
    root.mkdir()
    await _command("mount", "--bind", str(bench.root), str(root))
    try:
        found, _ = await bench.run("true", rootfs=root)
    finally:
        await _command("umount", str(root))

    assert found.code == 0
    watcher = int((bench.folder / "run" / "containers" / other / "conmon").read_text().split()[0])
    assert str(root) not in Path(f"/proc/{watcher}/mounts").read_text()


async def test_conmon_and_the_container_are_outside_the_agents_cgroup(bench) -> None:
    ident = await bench.launch("sleep", "100")
    watcher = (bench.folder / "run" / "containers" / ident / "conmon").read_text().split()[0]
    init = await bench.runtime.alive(ident)

    assert f"{_parent(bench, ident)}/conmon\n" in Path(f"/proc/{watcher}/cgroup").read_text()
    assert f"/{ident}\n" in Path(f"/proc/{init}/cgroup").read_text()


async def test_what_conmon_notes_in_its_working_directory_lies_in_the_bundle(bench) -> None:
    ident = await bench.launch("sleep", "100")
    folder = bench.folder / "run" / "containers" / ident
    watcher = (folder / "conmon").read_text().split()[0]

    assert Path(f"/proc/{watcher}/cwd").readlink() == folder
    assert Path.cwd() != folder


async def test_if_conmon_is_killed_the_end_of_the_container_is_still_told(bench) -> None:
    ident = await bench.launch("sleep", "100")
    watcher = int((bench.folder / "run" / "containers" / ident / "conmon").read_text().split()[0])
    waiting = asyncio.ensure_future(bench.runtime.wait(ident))
    await asyncio.sleep(0.05)

    os.kill(watcher, signal.SIGKILL)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await bench.runtime.kill(ident, signal.SIGKILL)

    async with asyncio.timeout(30):
        assert (await waiting).code == UNKNOWN_EXIT_CODE


async def test_an_unknown_container_cannot_be_used(bench) -> None:
    with pytest.raises(NotFound):
        await bench.runtime.start("nope")
    with pytest.raises(Conflict):
        await bench.runtime.attach("nope", tty=False)
    with pytest.raises(Conflict):
        await bench.runtime.exec("nope", bench.exec_plan("true"))
    await bench.runtime.kill("nope", signal.SIGTERM)
    await bench.runtime.delete("nope")


async def test_the_log_goes_on_in_a_new_file_after_it_is_renamed(bench) -> None:
    ident = await bench.launch("sh", "-c", "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.02; done")
    await until(lambda: len(bench.log(ident).split()) > 5)
    log = bench.log_path(ident)

    log.rename(f"{log}.1")
    await bench.runtime.reopen_log(ident)
    await bench.runtime.wait(ident)

    first = [line.split(" ", 3)[3] for line in Path(f"{log}.1").read_text().splitlines()]
    assert [*first, *bench.log(ident).split()] == [str(number) for number in range(1, 41)]


async def test_an_init_program_is_refused_or_used(bench) -> None:
    plan = bench.plan("sleep", "100", host=HostConfig(init=True))
    if not bench.runtime.supports().init_path:
        with pytest.raises(Exception, match="no static init program was found"):
            await bench.create(plan)
        assert bench.runtime.containers() == []
        return
    ident = await bench.create(plan)
    await bench.runtime.start(ident)
    code, out, _ = await bench.exec(ident, "cat", "/proc/1/cmdline")
    assert (code, out.split(b"\0")[0]) == (0, b"/sbin/docker-init")


async def test_a_shared_ipc_namespace_shares_dev_shm(bench) -> None:
    owner = await bench.launch(
        "sh", "-c", "echo mine > /dev/shm/file; sleep 100", host=HostConfig(ipc_mode="shareable")
    )
    pid = await bench.runtime.alive(owner)
    await until(lambda: (bench.folder / "run" / "containers" / owner / "shm" / "file").exists())

    _, text = await bench.run("cat", "/dev/shm/file", joined={"ipc": f"/proc/{pid}/ns/ipc"})

    assert text == "mine\n"


async def test_domain_name_host_name_and_sysctls_are_set(bench) -> None:
    _, text = await bench.run(
        "sh",
        "-c",
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax",
        config=ContainerConfig(domainname="example.org"),
        host=HostConfig(sysctls={"kernel.msgmax": "4096"}),
    )

    assert text.split() == ["box", "example.org", "4096"]


async def test_the_bundle_is_plain_oci(bench) -> None:
    ident = await bench.create(bench.plan("true"))
    config = json.loads((bench.folder / "run" / "containers" / ident / "config.json").read_text())

    assert config["ociVersion"].startswith("1.0")
    assert config["process"]["args"] == ["true"]


async def _count(bench, ident: str, wanted: int) -> bool:
    return len(await bench.runtime.pids(ident)) == wanted


async def _command(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words)
    assert await process.wait() == 0


def _parent(bench, ident: str) -> str:
    return next(iter(bench.plan("x").cgroup_path.rsplit("/", 1)))


async def until(ready) -> None:
    async def ask() -> bool:
        return ready()

    await until_async(ask)


async def until_async(ready) -> None:
    """For what the kernel does not announce."""
    async with asyncio.timeout(30):
        while not await ready():
            await asyncio.sleep(0.01)
