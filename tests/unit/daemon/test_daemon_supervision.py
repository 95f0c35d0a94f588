"""What systemd is told, and what reaches its journal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmlet import log as logs
from swarmlet.supervision import Supervision


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Systemd's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "end"))
        end.settimeout(5)
        yield end


def environment(listener: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(listener.getsockname()), "PATH": "/bin", **more}


async def test_ready_and_stopping_are_told(listener: socket.socket) -> None:
    async with Supervision.found(environment(listener)) as supervision:
        supervision.tell_ready("release 1")
        supervision.tell_stopping()
    assert listener.recv(100) == b"READY=1\nSTATUS=release 1"
    assert listener.recv(100) == b"STOPPING=1"


async def test_signs_of_life_are_given_as_often_as_asked(listener: socket.socket) -> None:
    async with Supervision.found(environment(listener, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid()))):
        for _ in range(3):
            assert await asyncio.to_thread(listener.recv, 100) == b"WATCHDOG=1"


async def test_a_watchdog_of_another_process_is_none_of_ours(listener: socket.socket) -> None:
    async with Supervision.found(environment(listener, WATCHDOG_USEC="1000", WATCHDOG_PID="1")) as supervision:
        await asyncio.sleep(0.01)
        supervision.tell_ready("x")
    assert listener.recv(100).startswith(b"READY=1")


async def test_children_do_not_inherit_the_right_to_speak(listener: socket.socket) -> None:
    environ = environment(listener, WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getpid()))
    async with Supervision.found(environ):
        assert environ == {"PATH": "/bin"}


async def test_an_abstract_socket_is_found() -> None:
    name = f"swarmlet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(5)
        async with Supervision.found({"NOTIFY_SOCKET": f"@{name}"}) as supervision:
            supervision.tell_ready("")
        assert end.recv(100) == b"READY=1\nSTATUS="


async def test_without_systemd_nothing_is_told_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with Supervision.found({}) as supervision:
        supervision.tell_ready("x")
    async with Supervision.found({"NOTIFY_SOCKET": "/nowhere/at/all"}) as supervision:
        supervision.tell_ready("x")
    assert [record.getMessage() for record in caplog.records] == [
        "systemd cannot be told reason='[Errno 2] No such file or directory'"
    ]


def test_the_journal_gets_the_line_and_each_field(listener: socket.socket) -> None:
    handler = logs.JournalHandler("swarmlet-agent", str(listener.getsockname()))
    logger = logging.getLogger("swarmlet.test.journal")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with logs.log_context(loop="scheduler"):
            logs.get_logger(logger.name).warning("task failed", task_id="t1", reason="two\nlines")
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = listener.recv(2000)
    for part in (
        b"PRIORITY=4\n", b"SYSLOG_IDENTIFIER=swarmlet-agent\n", b"SWARMLET_LOOP=scheduler\n", b"SWARMLET_TASK_ID=t1\n",
        b"MESSAGE=task failed loop=scheduler task_id=t1 reason='two\\nlines'\n",
        b"SWARMLET_REASON\n\x09\0\0\0\0\0\0\0two\nlines\n",
    ):  # fmt: skip
        assert part in lines


def test_only_the_stream_of_the_journal_itself_counts(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        found = os.fstat(file.fileno())
        assert logs._is_journal(file.fileno(), f"{found.st_dev}:{found.st_ino}")
        assert not logs._is_journal(file.fileno(), f"{found.st_dev}:{found.st_ino + 1}")
        assert not logs._is_journal(file.fileno(), "")
