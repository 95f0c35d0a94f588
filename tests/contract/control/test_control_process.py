"""The manager as a process on a real etcd: killed, started again, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from swarmlet.process import identify, read_pid_file

pytestmark = pytest.mark.etcd


class ManagerUnderTest:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> list[str]:
        return [
            sys.executable, "-m", "swarmlet_manager.app", "--data-dir", str(self.folder / "data"), "--run-dir",
            str(self.folder / "run"), "--advertise-addr", "127.0.0.1", "--port", str(self.port),
        ]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, start_new_session=True)

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = await asyncio.to_thread(self.process.wait, 20)
        self.process = None
        return code

    async def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The answer's JSON, once it has one."""
        async with asyncio.timeout(30):
            while True:
                try:
                    async with (
                        aiohttp.ClientSession(
                            connector=aiohttp.UnixConnector(str(self.folder / "run" / "manager.sock"))
                        ) as client,
                        client.request(method, f"http://manager{path}", json=body) as answer,
                    ):
                        if answer.status < 400:
                            return await answer.json()
                        if answer.status != 503:
                            raise AssertionError(await answer.text())
                except (aiohttp.ClientError, OSError):
                    assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.05)

    @property
    def etcd_pid(self) -> int | None:
        found = read_pid_file(self.folder / "data" / "etcd" / "etcd.pid")
        return None if found is None else found.pid


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ManagerUnderTest]:
    tested = ManagerUnderTest(tmp_path)
    tested.start()
    yield tested
    if tested.process is not None:
        await tested.end(signal.SIGKILL)
    done = await asyncio.to_thread(
        subprocess.run, [*tested.argv, "--only-stop-etcd"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert tested.etcd_pid is None


async def test_killed_at_any_moment_it_comes_back_with_everything_acknowledged(manager: ManagerUnderTest) -> None:
    cluster = await manager.ask("/swarm")
    spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}
    made = await manager.ask("/services/create", "POST", spec)
    etcd = manager.etcd_pid
    await manager.end(signal.SIGKILL)
    assert manager.etcd_pid == etcd
    manager.start()
    services = await manager.ask("/services")
    assert [service["ID"] for service in services] == [made["ID"]]
    again = await manager.ask("/swarm")
    assert (again["ID"], again["JoinTokens"]) == (cluster["ID"], cluster["JoinTokens"])
    assert manager.etcd_pid == etcd
    async with asyncio.timeout(30):
        while not (tasks := await manager.ask("/tasks")):  # made by the next leader, if not before the kill
            await asyncio.sleep(0.05)
    assert len(tasks) == 1


async def test_sigterm_ends_it_in_order_and_leaves_etcd_running(manager: ManagerUnderTest) -> None:
    await manager.ask("/swarm")
    etcd = manager.etcd_pid
    assert await manager.end(signal.SIGTERM) == 0
    assert etcd is not None and identify(etcd) is not None


async def test_a_second_one_on_the_same_folder_is_refused(manager: ManagerUnderTest) -> None:
    await manager.ask("/swarm")
    done = await asyncio.to_thread(subprocess.run, manager.argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "another manager runs" in done.stderr


async def test_etcd_killed_under_it_is_started_again_and_nothing_is_lost(manager: ManagerUnderTest) -> None:
    await manager.ask("/services/create", "POST", {"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "x"}}})
    assert manager.etcd_pid is not None
    os.kill(manager.etcd_pid, signal.SIGKILL)
    await manager.ask("/services/create", "POST", {"Name": "b", "TaskTemplate": {"ContainerSpec": {"Image": "x"}}})
    assert {service["Spec"]["Name"] for service in await manager.ask("/services")} == {"a", "b"}


async def test_the_tcp_port_answers_only_members_but_shows_its_ca(manager: ManagerUnderTest) -> None:
    await manager.ask("/swarm")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as client:
        base = f"https://127.0.0.1:{manager.port}"
        async with client.get(f"{base}/v1.50/services") as answer:
            assert answer.status == 401
        async with client.get(f"{base}/swarmlet/v1/ca") as answer:
            assert "BEGIN CERTIFICATE" in await answer.text()
        async with client.post(f"{base}/swarmlet/v1/local-join", json={"csr": ""}) as answer:
            assert answer.status == 401
        async with client.get(f"{base}/swarmlet/v1/session") as answer:
            assert answer.status == 401
