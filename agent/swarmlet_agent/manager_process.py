"""The manager of this host: started when it does not run, adopted when it does, never ended with the agent.

It is a session of its own, named by its pid file; whoever comes later, this agent or the next, finds it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from swarmlet.config import MANAGER_SOCKET, AgentSettings, TlsFiles
from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet.loops import Backoff
from swarmlet.process import Held, identify, read_pid_file

log = get_logger(__name__)

#: Pauses between starts of a manager that keeps ending.
RESTART_BASE_S, RESTART_LIMIT_S = 0.2, 5.0
#: A manager that ran so long was well: the next pause is the shortest again.
WELL_S = 10.0
#: What a manager gets to end by itself.
STOP_S = 10.0
PING_S = 2.0


class ManagerProcess:
    """address: where this host is reached; port: where the manager listens, None as the settings say. Both are asked
    for whenever a manager is started."""

    def __init__(
        self, settings: AgentSettings, address: Callable[[], str], port: Callable[[], int] | None = None
    ) -> None:
        self._settings = settings
        self._address = address
        self._port = port or (lambda: settings.manager_port)
        self._data_dir = Path(settings.data_dir) / "manager"
        self._log = Path(settings.data_dir) / "manager.log"
        self._task: asyncio.Task[None] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    async def ensure(self) -> None:
        """Start it if it does not run, and from now on whenever it ends."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="manager process")

    async def close(self) -> None:
        """Look after it no more; it goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def remove(self) -> None:
        """Stop it and its etcd, and delete its data."""
        await self.close()
        if (running := read_pid_file(self._data_dir / "manager.pid")) is not None:
            with contextlib.suppress(ProcessLookupError), contextlib.closing(Held(running)) as held:
                await held.end(STOP_S)
        self._reap()
        await asyncio.to_thread(self._run_to_end, "--only-stop-etcd")
        await asyncio.to_thread(shutil.rmtree, self._data_dir, ignore_errors=True)

    async def answers(self) -> bool:
        """Does its API answer?"""
        connector = aiohttp.UnixConnector(str(Path(self._settings.run_dir) / MANAGER_SOCKET))
        try:
            async with (
                asyncio.timeout(PING_S),
                aiohttp.ClientSession(connector=connector) as client,
                client.get("http://manager/_ping") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _keep(self) -> None:
        backoff: Backoff[str] = Backoff(RESTART_BASE_S, RESTART_LIMIT_S)
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._watch_one()
            except OSError as err:
                log.error("the manager cannot be started", reason=err)
            if loop.time() - began > WELL_S:
                backoff.forget("")
            await asyncio.sleep(backoff.next(""))

    async def _watch_one(self) -> None:
        """Adopt or start a manager; returns when it has ended."""
        running = read_pid_file(self._data_dir / "manager.pid")
        if running is None:
            child = self._child = await asyncio.to_thread(self._start)
            running = identify(child.pid)
            log.info("manager started", pid=child.pid)
        else:
            log.info("manager adopted", pid=running.pid)
        if running is not None:
            with contextlib.suppress(ProcessLookupError), contextlib.closing(Held(running)) as held:
                await held.wait()
        log.warning("the manager has ended; its log tells why", log=self._log, exit_code=self._reap())

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
                env={name: value for name, value in os.environ.items() if not name.startswith("SWARMLET_")},
            )

    def _run_to_end(self, flag: str) -> None:
        done = subprocess.run([*self._argv(), flag], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise Internal(f"swarmlet-manager {flag}: {done.stderr.strip()}")

    def _argv(self) -> list[str]:
        settings, etcd = self._settings, self._settings.etcd
        argv = [
            str(Path(sys.executable).with_name("swarmlet-manager")),
            "--data-dir", str(self._data_dir), "--run-dir", settings.run_dir,
            "--advertise-addr", self._address(), "--port", str(self._port()),
            "--log-level", settings.log_level,
        ]
        if ":" in self._address():
            argv += ["--listen-addr", "::"]
        if settings.socket_group:
            argv += ["--socket-group", settings.socket_group]
        for endpoint in etcd.endpoints:
            argv += ["--etcd", endpoint]
        for host in settings.cluster_hosts:
            argv += ["--host", host]
        tls = settings.hosts_tls if settings.cluster_hosts else TlsFiles()
        for option, value in (
            ("--etcd-ca", etcd.ca), ("--etcd-cert", etcd.cert), ("--etcd-key", etcd.key),
            ("--hosts-ca", tls.ca), ("--hosts-cert", tls.cert), ("--hosts-key", tls.key),
        ):
            if value:
                argv += [option, value]
        return argv

    def _reap(self) -> int | None:
        """The exit code of a manager that this agent had started."""
        if self._child is None:
            return None
        code = self._child.wait() if identify(self._child.pid) is None else self._child.poll()
        if code is not None:
            self._child = None
        return code
