"""conmon: its command line and its answer. One per container; it keeps the log, the terminal and the exit code."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swarmlet.errors import Internal
from swarmlet_agent.runtime.bundle import Bundle

#: Descriptors conmon finds: where it tells the pid or the failure, and where it waits for permission to begin.
SYNC_FD, START_FD = 3, 4
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "_OCI_SYNCPIPE": str(SYNC_FD),
    "_OCI_STARTPIPE": str(START_FD),
}
#: conmon's answer is one line; a runtime's complaint in it is short.
_ANSWER_BYTES = 256 << 10


class Answer(msgspec.Struct):
    """data: the pid of the container's first process; negative with the runtime's complaint in `message`."""

    data: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """The programs, and the runtime's own arguments that go before its command."""

    conmon: str
    runtime: str
    runtime_args: tuple[str, ...]

    @property
    def is_crun(self) -> bool:
        return os.path.basename(self.runtime) == "crun"

    def oci(self, *words: str) -> list[str]:
        """argv of the OCI runtime."""
        return [self.runtime, *self.runtime_args, *words]

    def conmon_argv(
        self, bundle: Bundle, log_path: Path, *, tty: bool, stdin: bool, leave_stdin_open: bool
    ) -> list[str]:
        """argv of a container's conmon. It stays our child (--sync), so its pid is known before it does anything.

        No fsync of the log at the end (--no-sync-log): a container's exit is not to wait for the disk.
        """
        argv = [self.conmon, "--api-version", "1", "-c", bundle.id, "-u", bundle.id, "-r", self.runtime]
        for word in self.runtime_args:
            argv += ["--runtime-arg", word]
        argv += ["-b", str(bundle.path), "-p", str(bundle.path / "pidfile"), "-P", str(bundle.path / "conmon.pid")]
        argv += ["--exit-dir", str(bundle.exit_file.parent), "-0", str(bundle.path / "persist")]
        argv += ["-l", f"k8s-file:{log_path}", "--log-level", "error", "--full-attach", "--sync", "--no-sync-log"]
        if tty:
            argv.append("-t")
        if stdin:
            argv.append("-i")
            if leave_stdin_open:
                argv.append("--leave-stdin-open")
        return argv


async def read_answer(descriptor: int, timeout_s: float) -> Answer:
    """The line conmon writes once the container is made or has failed. Internal if it ends or lasts too long."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    collected = bytearray()
    done: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        try:
            data = os.read(descriptor, 4096)
        except BlockingIOError:
            return
        collected.extend(data)
        if (not data or b"\n" in data or len(collected) > _ANSWER_BYTES) and not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        async with asyncio.timeout(timeout_s):
            await done
    except TimeoutError as err:
        raise Internal(f"the container was not made within {timeout_s:g} s") from err
    finally:
        loop.remove_reader(descriptor)
    line, separator, _ = bytes(collected).partition(b"\n")
    try:
        return msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError as err:
        text = line.decode(errors="replace") if separator else "it ended without an answer"
        raise Internal(f"conmon gave no usable answer: {text}") from err
