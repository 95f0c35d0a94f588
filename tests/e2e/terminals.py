"""The stock docker command on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from e2e_cluster import View


class Terminal:
    """The docker command on a pseudo-terminal."""

    def __init__(self, view: View, *args: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            ["docker", *args], stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"DOCKER_HOST": view.url},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, text: str, timeout_s: float = 20) -> str:
        """What has been shown since the last call, once it contains the text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
        shown, self.shown = self.shown, ""
        return shown

    def wait(self, timeout_s: float = 20) -> int:
        """Its exit code; reads what it still shows."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running, {self.shown!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(30)


@contextmanager
def terminal(view: View, *args: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    found = Terminal(view, *args, rows=rows, columns=columns)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.wait(30)
        os.close(found.master)
