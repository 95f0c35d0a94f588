"""Attach and exec: every byte arrives, slow readers slow the process, terminals behave like terminals."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal

import pytest

from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet_agent.runtime.types import StartFailed

pytestmark = pytest.mark.kernel

INTERACTIVE = ContainerConfig(open_stdin=True, stdin_once=True)
TTY = ContainerConfig(tty=True, open_stdin=True, stdin_once=True)


async def gather_output(streams) -> dict[int, bytes]:
    found: dict[int, bytearray] = {}
    async for number, data in streams:
        found.setdefault(number, bytearray()).extend(data)
    return {number: bytes(data) for number, data in found.items()}


async def test_attached_before_the_start_nothing_is_lost(bench) -> None:
    ident = await bench.create(bench.plan("sh", "-c", "echo out; echo err >&2"))
    streams = await bench.runtime.attach(ident, tty=False)

    await bench.runtime.start(ident)

    assert await gather_output(streams) == {1: b"out\n", 2: b"err\n"}
    await streams.close()


async def test_ten_megabytes_go_through_cat_and_the_end_of_input_ends_it(bench) -> None:
    ident = await bench.create(bench.plan("cat", config=INTERACTIVE))
    streams = await bench.runtime.attach(ident, tty=False)
    await bench.runtime.start(ident)
    data = os.urandom(10 << 20)

    async def feed() -> None:
        for offset in range(0, len(data), 100_000):
            await streams.write(data[offset : offset + 100_000])
        await streams.close_stdin()

    async with asyncio.timeout(60):
        feeding = asyncio.ensure_future(feed())
        output = await gather_output(streams)
        await feeding
        found = await bench.runtime.wait(ident)
    await streams.close()

    assert found.code == 0
    assert hashlib.sha256(output[1]).digest() == hashlib.sha256(data).digest()


async def test_a_slow_reader_stops_the_process_and_memory_stays_small(bench) -> None:
    ident = await bench.create(bench.plan("sh", "-c", "yes | head -c 30000000", host=HostConfig()))
    streams = await bench.runtime.attach(ident, tty=False)
    await bench.runtime.start(ident)

    await asyncio.sleep(0.7)
    assert await bench.runtime.alive(ident) is not None
    assert streams._queue._size < 1 << 20

    async with asyncio.timeout(60):
        output = await gather_output(streams)
    assert len(output[1]) == 30_000_000
    assert (await bench.runtime.wait(ident)).code == 0
    await streams.close()


async def test_a_client_that_does_not_read_does_not_hide_the_exit(bench) -> None:
    ident = await bench.create(bench.plan("sh", "-c", "yes"))
    streams = await bench.runtime.attach(ident, tty=False)
    await bench.runtime.start(ident)
    await asyncio.sleep(0.3)

    await bench.runtime.kill(ident, signal.SIGKILL)

    async with asyncio.timeout(30):
        assert (await bench.runtime.wait(ident)).code == 137
    await streams.close()


async def test_several_clients_see_the_same_and_one_may_leave(bench) -> None:
    ident = await bench.create(bench.plan("cat", config=INTERACTIVE))
    first = await bench.runtime.attach(ident, tty=False)
    second = await bench.runtime.attach(ident, tty=False)
    await bench.runtime.start(ident)

    await second.write(b"one\n")
    assert await anext(aiter(first)) == (1, b"one\n")
    assert await anext(aiter(second)) == (1, b"one\n")
    await second.close()  # detaching does not close the container's stdin
    await first.write(b"two\n")
    assert await anext(aiter(first)) == (1, b"two\n")
    await first.close_stdin()

    async with asyncio.timeout(30):
        assert (await bench.runtime.wait(ident)).code == 0
    assert await gather_output(first) == {}
    await first.close()


async def test_without_stdin_once_a_client_s_end_of_input_is_its_own(bench) -> None:
    ident = await bench.create(bench.plan("cat", config=ContainerConfig(open_stdin=True)))
    await bench.runtime.start(ident)
    first = await bench.runtime.attach(ident, tty=False)
    await first.write(b"one\n")
    assert await anext(aiter(first)) == (1, b"one\n")
    await first.close_stdin()
    await first.close()
    await asyncio.sleep(0.1)

    second = await bench.runtime.attach(ident, tty=False)
    await second.write(b"two\n")

    async with asyncio.timeout(30):
        assert await anext(aiter(second)) == (1, b"two\n")
    assert await bench.runtime.alive(ident) is not None
    await second.close()


async def test_without_open_stdin_the_program_reads_nothing(bench) -> None:
    found, _ = await bench.run("cat")

    assert found.code == 0


async def test_a_terminal_has_a_size_that_can_change_and_one_stream(bench) -> None:
    ident = await bench.create(bench.plan("sh", config=TTY))
    streams = await bench.runtime.attach(ident, tty=True)
    await bench.runtime.start(ident)
    await bench.runtime.resize(ident, 33, 111)
    await streams.write(b"stty size; tty; echo err >&2; exit 4\n")

    async with asyncio.timeout(30):
        output = await gather_output(streams)
        assert (await bench.runtime.wait(ident)).code == 4
    await streams.close()

    assert set(output) == {1}
    assert b"33 111" in output[1]
    assert b"/dev/pts/0" in output[1]
    assert b"err\r\n" in output[1]


async def test_a_client_detaches_from_a_terminal_and_another_goes_on(bench) -> None:
    ident = await bench.create(bench.plan("sh", config=TTY))
    await bench.runtime.start(ident)
    first = await bench.runtime.attach(ident, tty=True)
    await first.write(b"X=kept\n")
    await first.close()

    second = await bench.runtime.attach(ident, tty=True)
    await second.write(b"echo value $X; exit\n")

    async with asyncio.timeout(30):
        output = await gather_output(second)
    await second.close()
    assert b"value kept" in output[1]


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_an_exec_gives_its_streams_and_exit_code(open_bench, name: str) -> None:
    bench = await open_bench(name)
    ident = await bench.launch("sleep", "100")

    code, out, err = await bench.exec(ident, "sh", "-c", "echo out; echo err >&2; pwd; exit 9", cwd="/tmp")

    assert (code, out, err) == (9, b"out\n/tmp\n", b"err\n")
    assert os.listdir(bench.folder / "run" / "execs") == []


async def test_ten_megabytes_go_through_an_exec(bench) -> None:
    ident = await bench.launch("sleep", "100")
    running = await bench.runtime.exec(ident, bench.exec_plan("cat", open_stdin=True))
    data = os.urandom(10 << 20)

    async def feed() -> None:
        await running.streams.write(data)
        await running.streams.close_stdin()

    async with asyncio.timeout(60):
        feeding = asyncio.ensure_future(feed())
        output = await gather_output(running.streams)
        await feeding
        assert await running.wait() == 0
    assert hashlib.sha256(output[1]).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("name", ["crun", "runc"])
@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("nope", 127, 'exec: "nope": executable file not found in $PATH'),
        ("/nope", 127, 'exec: "/nope": stat /nope: no such file or directory'),
        ("/etc/plain", 126, 'exec: "/etc/plain": permission denied'),
    ],
)
async def test_an_exec_that_cannot_start_fails_as_docker_says(
    open_bench, name: str, tty: bool, program: str, code: int, text: str
) -> None:
    bench = await open_bench(name)
    ident = await bench.launch("sleep", "100")

    with pytest.raises(StartFailed) as raised:
        await bench.runtime.exec(ident, bench.exec_plan(program, tty=tty))

    assert raised.value.exit_code == code
    assert str(raised.value) == (
        f"OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown"
    )
    assert await bench.runtime.alive(ident) is not None
    assert os.listdir(bench.folder / "run" / "execs") == []


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_an_exec_with_a_terminal_is_resized_and_gets_input(open_bench, name: str) -> None:
    bench = await open_bench(name)
    ident = await bench.launch("sleep", "100")
    running = await bench.runtime.exec(ident, bench.exec_plan("sh", tty=True, open_stdin=True, console_size=(20, 70)))
    await running.streams.write(b"stty size\n")
    seen = b""
    async with asyncio.timeout(30):
        async for _, data in running.streams:
            seen += data
            if b"20 70" in seen:
                break
        await running.resize(41, 99)
        await running.streams.write(b"stty size; exit 6\n")
        output = await gather_output(running.streams)
        assert await running.wait() == 6
    assert b"41 99" in output[1]


async def test_an_exec_runs_beside_the_program_with_the_same_confinement(bench) -> None:
    ident = await bench.launch("sleep", "100")
    running = await bench.runtime.exec(ident, bench.exec_plan("sleep", "5"))

    assert running.pid in await bench.runtime.pids(ident)
    code, out, _ = await bench.exec(ident, "grep", "-E", "CapEff|CapBnd|Seccomp:", "/proc/self/status")
    assert code == 0
    assert out.decode().split() == ["CapEff:", "00000000a80425fb", "CapBnd:", "00000000a80425fb", "Seccomp:", "2"]
    await bench.runtime.kill(ident, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await running.wait() == 137


async def test_an_exec_as_another_user_has_no_capabilities(bench) -> None:
    ident = await bench.launch("sleep", "100")

    _, out, _ = await bench.exec(
        ident, "sh", "-c", "id; grep CapEff /proc/self/status", uid=1000, gid=1001, groups=(1002,)
    )

    assert out.startswith(b"uid=1000 gid=1001 groups=1002")
    assert out.endswith(b"CapEff:\t0000000000000000\n")


async def test_a_background_child_does_not_keep_an_exec_s_streams_open(bench) -> None:
    ident = await bench.launch("sleep", "100")

    async with asyncio.timeout(30):
        code, out, _ = await bench.exec(ident, "sh", "-c", "sleep 50 & echo done")

    assert (code, out) == (0, b"done\n")


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_a_detached_exec_outlives_the_agent_and_has_no_streams(open_bench, name: str) -> None:
    bench = await open_bench(name)
    ident = await bench.launch("sleep", "100")
    script = "echo started; sleep 0.4; echo still writing && touch /dev/shm/done"
    running = await bench.runtime.exec(ident, bench.exec_plan("sh", "-c", script, detached=True))
    assert await gather_output(running.streams) == {}

    await bench.runtime.close()
    later = await open_bench(name)
    async with asyncio.timeout(30):
        while await later.exec(ident, "ls", "/dev/shm") != (0, b"done\n", b""):
            await asyncio.sleep(0.05)

    with pytest.raises(StartFailed, match="executable file not found") as raised:
        await later.runtime.exec(ident, later.exec_plan("nope", detached=True))
    assert raised.value.exit_code == 127
    assert os.listdir(later.folder / "run" / "execs") == []


async def test_an_exec_goes_on_after_its_client_has_left(bench) -> None:
    ident = await bench.launch("sleep", "100")
    running = await bench.runtime.exec(ident, bench.exec_plan("sh", "-c", "yes | head -c 1000000 && exit 5"))

    await running.streams.close()

    async with asyncio.timeout(30):
        assert await running.wait() == 5


async def test_many_execs_leave_no_descriptor_open(bench) -> None:
    ident = await bench.launch("sleep", "100")
    await bench.exec(ident, "true")
    before = len(os.listdir("/proc/self/fd"))

    await asyncio.gather(*(bench.exec(ident, "echo", "x", tty=number % 2 == 1) for number in range(10)))
    with pytest.raises(StartFailed):
        await bench.exec(ident, "nope", tty=True)

    assert len(os.listdir("/proc/self/fd")) == before
