"""Options of containers whose effect only the real kernel shows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_lab import Lab, on_the_kernel

from swarmlet.model.container import HostConfig, LogConfig

pytestmark = pytest.mark.kernel


async def _write_and_die(lab: Lab) -> None:
    await lab.load_busybox()
    config = {"syslog-address": "tcp://127.0.0.1:5514", "tag": "web"}
    script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); usleep 50000; done"
    log_config = LogConfig(type="syslog", config=config)
    await lab.run("sh", "-c", script, name="web", host=HostConfig(log_config=log_config))
    await asyncio.sleep(0.5)


@on_the_kernel
async def test_syslog_gets_every_line_although_the_agent_is_killed(lab: Lab) -> None:
    arrived: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            arrived.append(line)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 5514)
    async with server:
        await asyncio.to_thread(lab.killed_agent, _write_and_die)
        async with lab.agent() as engine, asyncio.timeout(30):
            await engine.wait("web")
            while not any(line.endswith(b"line 39\n") for line in arrived):
                await asyncio.sleep(0.05)
            numbers = [int(line.rsplit(b" ", 1)[1]) for line in arrived]
            assert sorted(set(numbers)) == list(range(40))
            assert b" web[" in arrived[0] and arrived[0].startswith(b"<30>")
            assert "line 39" in Path(engine.get("web").log_path).read_text()
