"""An agent is killed with -9 in the middle of its work; the next one goes on with its containers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from swarmlet.errors import NotFound
from swarmlet_agent.runtime.bundle import Bundle
from swarmlet_agent.runtime.types import StartFailed

pytestmark = pytest.mark.kernel

#: What the first agent does: make containers, say which, and wait to be killed.
_FIRST = """
import asyncio, sys
from pathlib import Path
from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet_agent.runtime.conmon_runtime import ConmonRuntime
from swarmlet_agent.runtime.types import ContainerPlan

run, data, parent = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def plan(ident, *args, **config):
    return ContainerPlan(
        id=ident, config=ContainerConfig(**config), host=HostConfig(), rootfs=data / "rootfs", args=args,
        env=("PATH=/bin",), cwd="/", uid=0, gid=0, groups=(), hostname="box",
        cgroup_path=f"{parent}/{ident}", netns_path=None)

async def main():
    runtime = ConmonRuntime(run, data_dir=data, cgroup_parent=parent)
    await runtime.open()
    plans = {
        "a" * 64: plan("a" * 64, "sh", "-c", "trap 'exit 42' TERM; while :; do echo tick; sleep 0.02; done"),
        "b" * 64: plan("b" * 64, "sh", "-c", "sleep 0.3; exit 17"),
        "c" * 64: plan("c" * 64, "cat", open_stdin=True),
        "d" * 64: plan("d" * 64, "echo", "never started before"),
    }
    for ident, made in plans.items():
        await runtime.create(made, log_path=data / "logs" / ident)
        if ident[0] != "d":
            await runtime.start(ident)
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.fixture
async def adopted(open_bench, bench_parent: str):
    """A bench whose containers were made by a process that is dead now."""
    before = await open_bench()
    await before.runtime.close()
    words = [sys.executable, "-c", textwrap.dedent(_FIRST), str(before.folder / "run"), str(before.folder / "data")]
    with subprocess.Popen([*words, bench_parent], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        try:
            assert await asyncio.to_thread(first.stdout.readline) == "ready\n"
        finally:
            first.send_signal(signal.SIGKILL)
    return await open_bench()


async def test_containers_live_on_and_everything_works_on_them(adopted) -> None:
    runtime = adopted.runtime
    assert runtime.containers() == [A, B, C, D]
    async with asyncio.timeout(30):
        assert (await runtime.wait(B)).code == 17
        assert await runtime.alive(B) is None

        assert await runtime.alive(A) is not None
        code, out, _ = await adopted.exec(A, "echo", "still here")
        assert (code, out) == (0, b"still here\n")
        lines = len(adopted.log(A).splitlines())
        waiting = asyncio.ensure_future(runtime.wait(A))
        while len(adopted.log(A).splitlines()) == lines:
            await asyncio.sleep(0.05)
        await runtime.kill(A, signal.SIGTERM)
        assert (await waiting).code == 42

        streams = await runtime.attach(C, tty=False)
        await streams.write(b"through\n")
        assert await anext(aiter(streams)) == (1, b"through\n")
        await streams.close()
        await runtime.kill(C, signal.SIGKILL)
        assert (await runtime.wait(C)).code == 137

        await runtime.start(D)
        assert (await runtime.wait(D)).code == 0
        assert adopted.log(D) == "never started before\n"


async def test_a_recycled_pid_is_not_taken_for_the_container(adopted) -> None:
    box = Bundle(adopted.folder / "run", A)
    init = await adopted.runtime.alive(A)
    (box.path / "init").write_text(f"{os.getpid()} 1")

    assert await adopted.runtime.alive(A) is None
    await adopted.runtime.kill(A, signal.SIGKILL)  # would be us

    # Without a remembered start time the process must be in the container's own cgroup.
    (box.path / "init").unlink()
    assert await adopted.runtime.alive(A) == init
    (box.path / "pidfile").write_text(str(os.getpid()))
    assert await adopted.runtime.alive(A) is None


async def test_a_conmon_that_was_not_remembered_is_found_again(adopted) -> None:
    box = Bundle(adopted.folder / "run", A)
    known = box.process("conmon")
    (box.path / "conmon").unlink()

    assert known is not None
    assert box.process("conmon") == known
    await adopted.runtime.kill(A, signal.SIGTERM)
    async with asyncio.timeout(30):
        assert (await adopted.runtime.wait(A)).code == 42


async def test_a_creation_cut_off_at_any_file_is_cleaned_up(adopted) -> None:
    runtime = adopted.runtime
    for ident in (A, B, C, D):
        box = Bundle(adopted.folder / "run", ident)
        if ident == B:
            (box.path / "meta").write_bytes(b"")
        if ident == C:
            (box.path / "init").unlink()
            (box.path / "conmon").unlink()
    half = adopted.folder / "run" / "containers" / ("e" * 64)
    half.mkdir()

    for ident in runtime.containers():
        await runtime.delete(ident)

    assert runtime.containers() == []
    with pytest.raises(NotFound):
        await runtime.start(A)


async def test_closing_the_runtime_leaves_containers_running(bench, open_bench) -> None:
    ident = await bench.launch("sleep", "100")
    running = await bench.runtime.exec(ident, bench.exec_plan("sleep", "100"))
    await bench.runtime.close()

    later = await open_bench()

    assert await later.runtime.alive(ident) is not None
    assert running.pid in await later.runtime.pids(ident)
    with pytest.raises(StartFailed):
        await later.exec(ident, "nope")
