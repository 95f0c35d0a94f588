"""Tests in two pytest processes beside each other: `./dev test --shared`, `./dev test-vm --shared`.

Much of it waits: for a grace period to end, for a container to stop, for a node to be missed. Both processes collect
everything and take turns at claiming what comes next, so they end at about the same time on any machine. A claim is a
module of tests/e2e (each process has a cluster of its own, by name) or of tests/vm (each has hosts of its own), and
elsewhere a whole folder: what a folder's tests name alike, on this one kernel, is never there twice.

With `--beside COMMAND` as the first argument the shell runs that command meanwhile; what it ends with counts as well.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

#: Names the folder of claims to the processes that share the suite.
SHARE = "SWARMLET_TEST_SHARE"


class Shared:
    """A plugin for pytest: runs what no other process with the same folder has claimed."""

    def __init__(self, claims: Path) -> None:
        self._claims = claims
        self._mine: dict[Path, bool] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """As pytest's own, which does it where nothing is to run."""
        if session.testsfailed or session.config.option.collectonly:
            return None
        mine = self._claimed(session.items)
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)  # fixtures that it does not need any more end with this one
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _claimed(self, items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
        """Claims the next part only when it is reached: who is quicker takes more."""
        for part, tests in itertools.groupby(items, _part):
            if part not in self._mine:
                self._mine[part] = self._claim(part)
            if self._mine[part]:
                yield from tests

    def _claim(self, part: Path) -> bool:
        name = re.sub(r"\W", "_", str(part))
        try:
            os.close(os.open(self._claims / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True


def _part(item: pytest.Item) -> Path:
    return item.path if item.path.parent.name in ("e2e", "vm") else item.path.parent


class Run:
    """One of the processes; each of its lines is shown once it is whole, behind the run's name."""

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.last = ""
        # A session of its own: Ctrl-C at the terminal reaches it once, through `stop`, and it takes its cluster down.
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True, env=os.environ | environ,
        )  # fmt: skip
        self._shown = threading.Thread(target=self._show, daemon=True)
        self._shown.start()

    def _show(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last = line.strip() or self.last
            print(f"{self.name}| {line}", end="", flush=True)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._interrupt()

    def _interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Its exit status; 128 and the signal's number if one ended it."""
        status = self._process.wait()
        self._shown.join(5)  # a daemon that a failed test has left may hold the pipe open
        return status if status >= 0 else 128 - status


class Beside(Run):
    """A command of the shell; all that it has started ends with it."""

    def __init__(self, command: str) -> None:
        super().__init__("+", ["sh", "-c", command], {})

    def _interrupt(self) -> None:
        os.killpg(self._process.pid, signal.SIGINT)


def main(arguments: Sequence[str]) -> int:
    """The exit status: the first that is not 0."""
    beside = ""
    if arguments[:1] == ["--beside"]:
        beside, arguments = arguments[1], arguments[2:]
    name = os.environ.get("SWARMLET_E2E_NAME", "e2e")
    with tempfile.TemporaryDirectory(prefix="swarmlet-tests-") as claims:
        runs: list[Run] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: [run.stop() for run in runs])
        for number, cluster in enumerate((name, f"{name}b"), 1):
            pytest_argv = [sys.executable, "-m", "pytest", "-q", *arguments]
            runs.append(Run(str(number), pytest_argv, {SHARE: claims, "SWARMLET_E2E_NAME": cluster}))
        if beside:
            runs.append(Beside(beside))
        statuses = [run.wait() for run in runs]
    print("dev: two runs shared the tests:")
    for run, status in zip(runs, statuses, strict=True):
        print(f"{run.name}| {run.last} (exit status {status})")
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
