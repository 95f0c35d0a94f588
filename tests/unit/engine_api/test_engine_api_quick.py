"""Answers on the spot: which requests get one, and that they are what aiohttp would have sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from swarmlet.engine_api.answers import ready_answer
from swarmlet.engine_api.quick import QuickAnswer, QuickAnswers, QuickCall
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import NotFound

PLAIN = b"GET /v1.41/list?all=1&name=%2Fa HTTP/1.1\r\nHost: docker\r\nConnection: keep-alive\r\n\r\n"


def answers() -> QuickAnswers:
    def quick(call: QuickCall) -> QuickAnswer | None:
        if call.text("refuse"):
            raise NotFound("thing", "x")
        shown = f"{call.method} {call.version} {call.flag('all')} {call.text('name')}"
        return None if call.text("none") else QuickAnswer(shown.encode(), headers=(("Swarm", "inactive"),))

    return QuickAnswers(lambda method, path: quick if path == "/list" else None, {"Server": "S"})


def test_a_plain_question_is_answered_with_all_headers() -> None:
    answer = answers()(PLAIN)

    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"GET 1.41 True /a"
    lines = head.split(b"\r\n")
    assert lines[:4] == [b"HTTP/1.1 200 OK", b"Server: S", b"Content-Type: application/json", b"Swarm: inactive"]
    assert lines[4].startswith(b"Date: ") and lines[4].endswith(b" GMT")
    assert lines[5] == b"Content-Length: %d" % len(body)


def test_head_is_answered_without_the_body() -> None:
    answer = answers()(b"HEAD /list HTTP/1.1\r\nHost: a\r\n\r\n")

    assert answer is not None and answer.endswith(b"Content-Length: 16\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(PLAIN + PLAIN, id="two at once"),
        pytest.param(PLAIN[:-2], id="half a head"),
        pytest.param(b"", id="nothing"),
        pytest.param(PLAIN.replace(b"GET", b"POST"), id="another method"),
        pytest.param(PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), id="an old client"),
        pytest.param(PLAIN.replace(b"Host: docker\r\n", b""), id="no host"),
        pytest.param(PLAIN.replace(b"keep-alive", b"close"), id="last request"),
        pytest.param(PLAIN.replace(b"keep-alive", b"Upgrade\r\nUpgrade: h2c"), id="upgrade"),
        pytest.param(PLAIN.replace(b"Connection: keep-alive", b"Content-Length: 2"), id="a body"),
        pytest.param(PLAIN.replace(b"Connection: keep-alive", b"transfer-encoding: chunked"), id="a chunked body"),
        pytest.param(PLAIN.replace(b"Connection:", b"Connec tion:"), id="no header at all"),
        pytest.param(PLAIN.replace(b"Connection:", b" Connection:"), id="a folded header"),
        pytest.param(PLAIN.replace(b"docker", b"a\0b"), id="a zero byte"),
        pytest.param(PLAIN.replace(b"docker", b"a" * 5000), id="a long head"),
        pytest.param(PLAIN.replace(b"v1.41", b"v1.99"), id="a version too new"),
        pytest.param(PLAIN.replace(b"/list", b"/other"), id="another path"),
        pytest.param(PLAIN.replace(b"all=1", b"none=1"), id="nothing ready"),
        pytest.param(PLAIN.replace(b"all=1", b"refuse=1"), id="an error"),
    ],
)
def test_everything_else_is_left_to_the_handler(request_bytes: bytes) -> None:
    assert answers()(request_bytes) is None


#: Requests that the handler was asked.
HANDLED: list[str] = []
#: What the answer to a request with slow=2 waits for.
GO_ON = asyncio.Event()


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    global GO_ON
    HANDLED.clear()
    GO_ON = asyncio.Event()

    def quick(call: QuickCall) -> QuickAnswer | None:
        return None if call.flag("slow") else QuickAnswer(b"[1]\n")

    async def slow(call: Call) -> web.Response:
        HANDLED.append(call.text("slow"))
        if call.text("slow") == "2":
            await GO_ON.wait()
        return ready_answer(QuickAnswer(b"[1]\n"))

    server = Server([Route("GET", "/list", slow, quick)])
    await server.listen_unix(tmp_path / "s.sock")
    yield tmp_path / "s.sock"
    await server.close()


async def _exchange(path: Path, *requests: bytes) -> list[tuple[list[str], bytes]]:
    reader, writer = await asyncio.open_unix_connection(path)
    got = []
    try:
        async with asyncio.timeout(30):
            for request in requests:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length:")[2].split()[0])
                got.append((head.splitlines(), await reader.readexactly(length)))
    finally:
        writer.close()
        await writer.wait_closed()
    return got


async def test_both_ways_give_the_same_answer_on_one_connection(socket: Path) -> None:
    requests = [f"GET /list?slow={slow} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for slow in (0, 0, 1, 0, 1)]

    answered = await _exchange(socket, *requests)

    shown = [({line for line in head if not line.startswith("Date")}, body) for head, body in answered]
    assert all(each == shown[0] for each in shown) and len(shown) == 5
    assert HANDLED == ["1", "1"]


async def test_what_takes_the_connection_over_or_breaks_it_ends_quick_answers(socket: Path) -> None:
    quick = b"GET /list HTTP/1.1\r\nHost: a\r\n\r\n"
    reader, writer = await asyncio.open_unix_connection(socket)

    writer.write(quick)
    await reader.readuntil(b"[1]\n")
    writer.write(b"nonsense\r\n\r\n")
    async with asyncio.timeout(30):
        rest = await reader.read()

    writer.close()
    assert rest.startswith(b"HTTP/1.") and b" 400 " in rest.splitlines()[0]


async def test_answers_come_in_the_order_of_their_questions(socket: Path) -> None:
    slow, quick = (f"GET /list?slow={slow} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for slow in (2, 0))
    reader, writer = await asyncio.open_unix_connection(socket)

    writer.write(quick)
    await reader.readuntil(b"[1]\n")
    writer.write(slow)
    async with asyncio.timeout(30):
        while not HANDLED:
            await asyncio.sleep(0.001)
    # The second of the two arrives while the first is being answered.
    writer.write(quick.replace(b"Host: a", b"Host: a\r\nConnection: close"))
    await asyncio.sleep(0.01)
    GO_ON.set()
    async with asyncio.timeout(30):
        rest = await reader.read()

    writer.close()
    assert rest.count(b"HTTP/1.1 200 OK") == 2 and rest.count(b"[1]\n") == 2
    assert HANDLED == ["2", "0"]
