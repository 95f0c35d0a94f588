"""The engine with everything real behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_lab import Lab, on_the_kernel

from swarmlet.errors import SwarmletError
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import ContainerCreate, HostConfig, LogConfig, PortBinding, RestartPolicy

pytestmark = pytest.mark.kernel


@on_the_kernel
async def test_a_container_lives_and_leaves_nothing(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        ident = await lab.run("sh", "-c", "echo out; echo err >&2; exit 42", host=HostConfig(binds=("data:/etc",)))
        assert (await engine.wait(ident)).exit_code == 42
        lines = Path(engine.get(ident).log_path).read_text().splitlines()
        assert sorted(line.split(" ", 1)[1] for line in lines) == ["stderr F err", "stdout F out"]
        volume = lab.folder / "data" / "volumes" / "data" / "_data"
        assert (volume / "passwd").read_text().startswith("root:")  # filled from the image
        await engine.remove(ident)
        await engine.close()
        assert lab.leftovers() == []


@on_the_kernel
async def test_failed_starts_tell_why_and_leave_nothing_running(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        for program, code, words in (("nosuch", 127, "executable file not found"), ("/etc", 126, "is a directory")):
            record, _ = await engine.create("", ContainerCreate(image="busybox", cmd=(program,)))
            try:
                await engine.start_container(record.id)
            except SwarmletError as err:
                assert words in str(err)
            else:
                raise AssertionError(f"{program} started")
            assert engine.get(record.id).state.exit_code == code
            await engine.remove(record.id)
        await engine.close()
        assert lab.leftovers() == []


@on_the_kernel
async def test_who_attaches_before_the_start_sees_all_and_its_input_arrives(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        record, _ = await engine.create(
            "", ContainerCreate(image="busybox", cmd=("cat",), open_stdin=True, stdin_once=True, attach_stdin=True)
        )
        streams = await engine.attach(record.id)
        waiter = engine.register_wait(record.id, "next-exit")
        await engine.start_container(record.id)
        await streams.write(b"hello")
        await streams.close_stdin()
        assert b"".join([piece async for _, piece in streams]) == b"hello"
        await streams.close()
        assert (await waiter.result()).exit_code == 0


@on_the_kernel
async def test_user_folder_environment_and_hostname_are_the_images_and_the_requests(lab: Lab) -> None:
    async with lab.agent():
        await lab.load_busybox(Cmd=["sh"], Env=["PATH=/bin", "FROM=image"], WorkingDir="/made/here", User="33")
        ident = await lab.run("sleep", "100", env=("MINE=1",), hostname="boxed")
        _, text = await lab.output(ident, "sh", "-c", 'echo "$(id -u) $(pwd) $FROM $MINE $(hostname)"')
        assert text.split() == ["33", "/made/here", "image", "1", "boxed"]
        _, text = await lab.output(ident, "id", "-u", user="0")
        assert text == "0\n"
        code, _ = await lab.output(ident, "sh", "-c", "exit 9")
        assert code == 9


@on_the_kernel
async def test_a_published_port_answers_and_is_free_again_after_stop(lab: Lab) -> None:
    ports = HostConfig(port_bindings={"80/tcp": (PortBinding(host_port="8080"),)})
    async with lab.agent() as engine:
        await lab.load_busybox()
        for _ in range(2):
            ident = await lab.run("sh", "-c", "while true; do echo served | nc -l -p 80; done", host=ports)
            assert await _fetch() == b"served\n"
            await engine.stop(ident, 0)


async def _fetch() -> bytes:
    async with asyncio.timeout(30):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", 8080)
            except ConnectionRefusedError:  # nc is not there yet, or between two clients
                await asyncio.sleep(0.02)
                continue
            try:
                if data := await reader.read():
                    return data
            except ConnectionResetError:
                await asyncio.sleep(0.02)
            finally:
                writer.close()


async def start_some_and_die(lab: Lab) -> None:
    await lab.load_busybox()
    await lab.run("sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 33", name="waits")
    ending = [await lab.run("sh", "-c", "sleep 0.3; exit 7", name="ends")]
    await lab.run("true", name="always", host=HostConfig(restart_policy=RestartPolicy(name="always")))
    ending.append(await lab.run("sleep", "0.3", name="passing", host=HostConfig(auto_remove=True)))
    await lab.run("sleep", "100", name="stopped", host=HostConfig(restart_policy=RestartPolicy(name="unless-stopped")))
    await lab.engine.stop("stopped", 0)
    (lab.folder / "ending").write_text(" ".join(ending))


@on_the_kernel
async def test_an_agent_killed_with_9_is_taken_over_without_a_trace(lab: Lab) -> None:
    lab.killed_agent(start_some_and_die)
    ending = (lab.folder / "ending").read_text().split()
    async with asyncio.timeout(30):  # they end while there is no agent, unless they had before
        while any((lab.folder / "run/containers" / ident).exists() and not (lab.folder / "run/exits" / ident).exists()
                  for ident in ending):
            await asyncio.sleep(0.05)
    async with lab.agent() as engine:
        assert engine.get("waits").state.status == "running"
        assert engine.get("ends").state.exit_code == 7
        assert engine.get("stopped").state.status == "exited"
        assert "passing" not in {record.name for record in engine.list()}
        waiter = engine.register_wait("waits")
        assert (await lab.output("waits", "touch", "/go"))[0] == 0
        assert (await waiter.result()).exit_code == 33
        async with asyncio.timeout(30):
            while not engine.get("always").restart_count:
                await asyncio.sleep(0.05)
        await engine.stop("always", 0)


@on_the_kernel
async def test_logs_rotate_without_losing_a_line(lab: Lab) -> None:
    host = HostConfig(log_config=LogConfig(type="json-file", config={"max-size": "20k", "max-file": "50"}))
    async with lab.agent() as engine:
        await lab.load_busybox()
        script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; [ $((i%100)) = 0 ] && sleep 0.02; done"
        ident = await lab.run("sh", "-c", script, host=host)
        while engine.get(ident).state.status == "running":
            await engine._rotation.check()
            await asyncio.sleep(0.05)
        path = Path(engine.get(ident).log_path)
        files = sorted(path.parent.glob(path.name + "*"), key=lambda file: -int(file.suffix[1:]) if file != path else 1)
        numbers = [int(line.split()[-1]) for file in files for line in file.read_text().splitlines()]
        assert len(files) > 2
        assert numbers == list(range(1, 3001))


@on_the_kernel
async def test_a_health_check_runs_inside_and_changes_its_mind(lab: Lab) -> None:
    check = HealthConfig(test=("CMD-SHELL", "test -e /tmp/ok"), interval=100_000_000, retries=2)
    async with lab.agent() as engine:
        await lab.load_busybox()
        ident = await lab.run("sleep", "100", healthcheck=check)
        async with asyncio.timeout(20):
            while engine.get(ident).state.health.status != "unhealthy":
                await asyncio.sleep(0.02)
            await lab.output(ident, "touch", "/tmp/ok")
            while engine.get(ident).state.health.status != "healthy":
                await asyncio.sleep(0.02)
