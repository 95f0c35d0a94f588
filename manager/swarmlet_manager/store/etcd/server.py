"""The embedded etcd: one member that this host's manager ensures, and that outlives it.

    server = EtcdServer(EtcdSettings(data_dir=Path("/var/lib/swarmlet/etcd"), name=node_id))
    await server.start()                  # adopts a running one, else starts it; serving when this returns
    client = EtcdClient(server.endpoints)
    ...
    await server.detach()                 # the manager goes, etcd stays
    await server.stop()                   # or both go

etcd runs in a session of its own, logs to a file, and is started again (with a growing pause) when it ends.
A lock on the directory makes sure that only one manager ensures it. Nothing else is remembered: whoever
comes next finds the process by its pid file, or by asking the kernel who listens on its socket.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import secrets
import subprocess
from pathlib import Path

import msgspec

from swarmlet import process
from swarmlet.errors import Conflict, Internal
from swarmlet.log import get_logger
from swarmlet_manager.store.etcd import binary
from swarmlet_manager.store.etcd.binary import EtcdSettings
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.kv import NoAnswer

log = get_logger(__name__)

#: Pause before the next start: doubled each time, back to the first once it has served for a while.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SERVED_WELL_S = 60.0
#: A start may have to read a large log of changes first.
READY_S = 60.0
#: etcd ends within milliseconds of SIGTERM unless its disk is stuck.
END_PATIENCE_S = 10.0
LOCK_S = 5.0
LOG_MAX_BYTES = 10 << 20


class EtcdServer:
    """Use from one loop. `start` once, then `stop` or `detach`."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._dir = settings.data_dir
        self._pid_file = self._dir / "etcd.pid"
        self._log_file = self._dir / "etcd.log"
        self._lock: int | None = None
        self._command: list[str] = []
        self._running: process.Held | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """For clients on this host, in any network namespace."""
        return (f"unix:{self._settings.socket}",)

    @property
    def pid(self) -> int | None:
        return self._running.process.pid if self._running and not self._running.over else None

    async def start(self, *, ready_s: float = READY_S) -> None:
        """Serving when it returns. Internal: no usable etcd, or it does not start (with its last words);
        Conflict: another manager ensures this directory."""
        path, version = await asyncio.to_thread(binary.find, self._settings.binary)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._dir.chmod(0o700)
        await self._take_lock()
        try:
            self._command = binary.command_line(self._settings, path, self._token())
            if not await self._adopt(ready_s):
                self._spawn()
                await self._ready(ready_s)
        except BaseException:  # cancelled, too: undo, and pass it on
            await self._end_own()
            self._release()
            raise
        log.info("etcd serves", pid=self.pid, version=".".join(map(str, version)))
        self._supervisor = asyncio.create_task(self._supervise(), name="etcd-supervisor")

    async def detach(self) -> None:
        """Stop ensuring it and leave it running."""
        await self._end_supervision()
        if self._running is not None:
            self._running.close()
            self._running = None
        self._release()

    async def stop(self) -> None:
        """End etcd; its data stays."""
        await self._end_supervision()
        await self._end_own()
        self._release()

    async def wait(self) -> None:
        """For the process's task group: returns when stopped or detached, raises if supervising has failed."""
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor})
            if not self._supervisor.cancelled():
                self._supervisor.result()

    async def _adopt(self, ready_s: float) -> bool:
        """Take over one that runs here already, if it is as it should be; else end it."""
        found = process.read_pid_file(self._pid_file) or process.listener_of(self._settings.socket)
        if found is None:
            return False
        try:
            running = process.Held(found)
        except ProcessLookupError:
            return False
        self._running = running
        if process.arguments(found) == self._command:
            try:
                await self._ready(ready_s)
            except Internal as err:
                log.warning("the running etcd does not serve; starting it again", pid=found.pid, reason=err)
            else:
                process.write_pid_file(self._pid_file, found)
                log.info("etcd adopted", pid=found.pid)
                return True
        else:
            log.info("etcd runs with other settings; starting it again", pid=found.pid)
        await self._end_own()
        return False

    def _spawn(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() == "aarch64":
            environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 insists on being told
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_MAX_BYTES:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        for leftover in ("etcd:0", "peer:0"):  # a killed one leaves them, and its successor will not bind over them
            (self._dir / leftover).unlink(missing_ok=True)
        with self._log_file.open("ab") as output:
            child = subprocess.Popen(
                self._command,
                cwd=self._dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        identity = process.identify(child.pid)
        # Waiting for it is Held's affair, the same way as for an adopted one: Popen must not complain.
        child.returncode = 0
        if identity is None:
            os.waitpid(child.pid, 0)
            raise Internal(f"etcd ended at once: {self._last_words()}")
        self._running = process.Held(identity)
        process.write_pid_file(self._pid_file, identity)

    async def _ready(self, ready_s: float) -> None:
        """Until it answers. The socket alone says nothing: it accepts well before it serves."""
        assert self._running is not None
        client = EtcdClient(self.endpoints)
        status = asyncio.create_task(client.status(timeout_s=ready_s))
        ended = asyncio.create_task(self._running.wait())
        try:
            await asyncio.wait({status, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not status.done():
                raise Internal(f"etcd ended instead of starting: {self._last_words()}")
            status.result()
        except NoAnswer as err:
            raise Internal(f"etcd does not serve after {ready_s:g} s: {self._last_words()}") from err
        finally:
            status.cancel()
            ended.cancel()
            await asyncio.gather(status, ended, return_exceptions=True)
            await client.close()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while True:
            assert self._running is not None
            since = loop.time()
            await self._running.wait()
            if loop.time() - since > SERVED_WELL_S:
                pause = FIRST_PAUSE_S
            log.warning("etcd has ended; starting it again", in_s=pause, last_words=self._last_words())
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
            self._running.close()
            try:
                self._spawn()
                await self._ready(READY_S)
            except (Internal, OSError) as err:
                log.error("etcd does not start", reason=err)
                await self._end_own(keep=True)
            else:
                log.info("etcd serves again", pid=self.pid)

    async def _end_supervision(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None

    async def _end_own(self, keep: bool = False) -> None:
        """End the process we hold; keep: the supervisor still looks at it."""
        if self._running is None:
            return
        if not self._running.over:
            await self._running.end(END_PATIENCE_S)
        if not keep:
            self._running.close()
            self._running = None
            self._pid_file.unlink(missing_ok=True)

    async def _take_lock(self) -> None:
        """A manager that is just ending may still hold it for a moment."""
        self._lock = os.open(self._dir / "manager.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = asyncio.get_running_loop().time() + LOCK_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    self._release()
                    raise Conflict(f"another manager runs the etcd in {self._dir}") from None
            await asyncio.sleep(0.1)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _token(self) -> str:
        """Makes this cluster's id unlike any other's, also one restored from its backup under the same name."""
        path = self._dir / "cluster-token"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            token = secrets.token_hex(8)
            draft = path.with_name(path.name + ".new")
            draft.write_text(token + "\n")
            draft.replace(path)
            return token

    def _last_words(self) -> str:
        return _tail(self._log_file)


def _tail(path: Path) -> str:
    """What the last line of a log says, shortened; for error messages."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "(no log)"
    if not lines:
        return "(nothing was logged)"
    try:
        fields = msgspec.json.decode(lines[-1], type=dict[str, object])
    except msgspec.MsgspecError:
        return lines[-1][:500]
    return ": ".join(str(fields[name]) for name in ("msg", "error") if name in fields)[:500]
