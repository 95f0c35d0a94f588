"""Log drivers that send lines away: what arrives, once the server is there, and once the agent is again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swarmlet.journald import entry, field_name
from swarmlet.model.container import HostConfig, LogConfig
from swarmlet.model.times import NS, rfc3339
from swarmlet_agent.logs.lines import LogLine, parse_block
from swarmlet_agent.logs.syslog import message
from swarmlet_agent.runtime.types import StartFailed

START = 1_700_000_000 * NS  # 2023-11-14T22:13:20Z


def piece(text: str, stream: str = "stdout", flag: str = "F", at: int = START) -> bytes:
    return f"{rfc3339(at)[:-1]}+00:00 {stream} {flag} {text}\n".encode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def listener(path: Path) -> AsyncIterator[list[bytes]]:
    """What arrives at a datagram socket."""
    arrived: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(server, lambda: arrived.append(server.recv(1 << 16)))
        try:
            yield arrived
        finally:
            loop.remove_reader(server)
            path.unlink()


def syslog(path: Path, **options: str) -> HostConfig:
    config = {"syslog-address": f"unixgram://{path}", "tag": "{{.Name}}", **options}
    return HostConfig(log_config=LogConfig(type="syslog", config=config))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("", b"<30>Nov 14 22:13:20 web[7]: hello\n"),
        ("rfc3164", b"<30>Nov 14 22:13:20 host web[7]: hello\n"),
        ("rfc5424", b"<30>1 2023-11-14T22:13:20Z host web 7 web - hello\n"),
        ("rfc5424micro", b"<30>1 2023-11-14T22:13:20.000123Z host web 7 web - hello\n"),
    ],
)
def test_syslog_messages(form, expected, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    line = LogLine(START + 123_456, stderr=False, whole=True, text=b"hello")
    assert message(line, facility=3, form=form, tag="web", hostname="host", pid=7) == expected


def test_what_a_program_says_on_stderr_is_an_error():
    line = LogLine(START, stderr=True, whole=True, text=b"")
    assert message(line, facility=16, form="", tag="t", hostname="h", pid=1).startswith(b"<131>")


def test_lines_that_are_not_conmons_are_passed_over():
    block = piece("one", "stderr") + b"\0\0\0garbage\n" + piece("two", flag="P", at=START + 5)
    assert parse_block(block) == [
        LogLine(START, True, True, b"one"), LogLine(START + 5, False, False, b"two"),
    ]  # fmt: skip


def test_a_journal_entry_carries_any_bytes():
    value = b"two\nlines"
    assert entry({"A": b"x=y", "MESSAGE": value}) == b"A=x=y\nMESSAGE\n" + struct.pack("<Q", 9) + value + b"\n"
    assert [field_name(name) for name in ("com.shop/x", "_HIDDEN", "9a", "--")] == ["COM_SHOP_X", "HIDDEN", "A", ""]


async def test_lines_reach_syslog_in_order_and_the_log_stays_readable(node, tmp_path):
    async with listener(tmp_path / "s") as arrived:
        ident = await node.run("sleep", "1000", name="web", host=syslog(tmp_path / "s", **{"syslog-format": "rfc5424"}))
        path = Path(node.engine.get(ident).log_path)
        path.write_bytes(b"".join(piece(f"line {number}", at=START + number) for number in range(50)))
        await until(lambda: len(arrived) == 50)

    assert [data.split()[-1] for data in arrived] == [str(number).encode() for number in range(50)]
    assert b" web " in arrived[0]
    assert path.stat().st_size > 0


async def test_an_unreachable_server_keeps_the_container_from_starting(node, tmp_path):
    for driver in ("syslog", "journald"):
        node.engine._shipping._journal_socket = str(tmp_path / "nobody")
        host = syslog(tmp_path / "nobody") if driver == "syslog" else HostConfig(log_config=LogConfig(type="journald"))
        with pytest.raises(StartFailed, match="failed to initialize logging driver"):
            await node.run("sleep", "1000", host=host)
    assert not node.world.processes


async def test_nothing_is_lost_or_sent_twice_while_the_server_is_away_or_the_agent_is_dead(node, tmp_path):
    async with listener(tmp_path / "s") as first:
        ident = await node.run("sleep", "1000", host=syslog(tmp_path / "s"))
        path = Path(node.engine.get(ident).log_path)
        marked = path.with_name(path.name + ".sent")
        path.write_bytes(piece("one"))
        await until(lambda: first and marked.exists())
    with path.open("ab") as log:  # the server is away
        log.write(piece("two", at=START + 1))
    await asyncio.sleep(0.1)
    await node.again()
    with path.open("ab") as log:
        log.write(piece("three", at=START + 2))
    async with listener(tmp_path / "s") as second:
        await until(lambda: len(second) >= 2)
        await asyncio.sleep(0.1)

    assert [data.split()[-1] for data in (*first, *second)] == [b"one", b"two", b"three"]


async def test_what_was_written_at_the_very_end_arrives_even_from_a_later_agent(node, tmp_path):
    async with listener(tmp_path / "s") as arrived:
        ident = await node.run("sleep", "1000", host=syslog(tmp_path / "s"))
        path = Path(node.engine.get(ident).log_path)
        path.write_bytes(piece("before"))
        # Sent, and marked as sent: what a killed agent could not mark is sent again by the next one.
        await until(lambda: arrived and path.with_name(path.name + ".sent").exists())
    with path.open("ab") as log:
        log.write(piece("last words", at=START + 1))
    node.world.end(ident, 0)
    await until(lambda: node.engine.get(ident).state.status == "exited")
    await node.again()
    async with listener(tmp_path / "s") as later:
        await until(lambda: later)

    assert later[0].endswith(b"last words\n")
    await until(lambda: not node.engine._shipping._jobs)  # nothing is followed any more


async def test_journald_learns_whose_line_it_is(node, tmp_path):
    async with listener(tmp_path / "j") as arrived:
        node.engine._shipping._journal_socket = str(tmp_path / "j")
        host = HostConfig(log_config=LogConfig(type="journald", config={"labels": "com.shop"}))
        ident = await node.run("sleep", "1000", name="web", host=host, labels={"com.shop": "blue"})
        Path(node.engine.get(ident).log_path).write_bytes(piece("oops", "stderr", "P"))
        await until(lambda: arrived)

    fields = dict(line.split(b"=", 1) for line in arrived[0].splitlines())
    expected = {
        b"MESSAGE": b"oops", b"PRIORITY": b"3", b"CONTAINER_NAME": b"web", b"CONTAINER_ID_FULL": ident.encode(),
        b"CONTAINER_TAG": ident[:12].encode(), b"COM_SHOP": b"blue", b"CONTAINER_PARTIAL_MESSAGE": b"true",
        b"IMAGE_NAME": b"busybox",
    }  # fmt: skip
    assert expected.items() <= fields.items()
