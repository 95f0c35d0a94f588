"""The shared HTTP plumbing on a real unix socket: versions, errors, heads, hijacking, disconnection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from swarmlet.engine_api import streams
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.engine_api.streams import JsonStream, hijack
from swarmlet.errors import Conflict

GONE: asyncio.Event


async def echo(call: Call) -> web.StreamResponse:
    body = await call.raw_json()
    if body == {"refuse": True}:
        raise Conflict("not now")
    stream, response = await hijack(call, tty=True)
    try:
        while data := await stream.read():
            await stream.write(data)
        await stream.write(b"<end>")
    finally:
        stream.close()
    return response


async def forever(call: Call) -> web.StreamResponse:
    stream = JsonStream(call)
    try:
        async with WhileConnected(call.request):
            await stream.send({"hello": 1})
            await asyncio.Event().wait()
    finally:
        GONE.set()
    return await stream.end()


async def broken(call: Call) -> web.StreamResponse:
    """Fails before the answer, after its head, or after taking the connection over."""
    error = Conflict("cannot go on") if call.flag("known") else RuntimeError("a defect")
    if call.text("when") == "streaming":
        await JsonStream(call).send({"hello": 1})
    elif call.text("when") == "hijacked":
        stream, _ = await hijack(call, tty=True)
        await stream.write(b"hello")
    raise error


async def size(call: Call) -> web.StreamResponse:
    total = 0
    async for part in call.request.content.iter_any():
        total += len(part)
    return web.json_response({"size": total})


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Path]:
    global GONE
    GONE = asyncio.Event()
    running = Server([
        Route("POST", "/containers/{id}/attach", echo),
        Route("POST", "/exec/{id}/start", echo),
        Route("GET", "/forever", forever),
        Route("POST", "/size", size),
        Route("POST", "/broken/attach", broken),
    ])
    path = tmp_path / "s.sock"
    await running.listen_unix(path)
    yield path
    await running.close()


async def talk(path: Path, *parts: bytes, end: bool = True) -> bytes:
    """Send each part in a packet of its own; everything that comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        if end:
            writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes = b"", *, upgrade: bool = True, chunked: bool = False) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: d"]
    if upgrade:
        lines += ["Connection: Upgrade", "Upgrade: tcp"]
    if chunked:
        return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + (
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
async def test_bytes_behind_an_exec_request_reach_the_handler(server: Path, upgrade: bool, chunked: bool) -> None:
    head = post("/v1.41/exec/x/start", b'{"Tty": true}', upgrade=upgrade, chunked=chunked)

    answer = await talk(server, head + b"tail ", b"later")

    status, _, body = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 101 " if upgrade else b"HTTP/1.1 200 ")
    assert body == b"tail later<end>"


async def test_a_client_that_ends_its_input_with_the_request_still_gets_the_output(server: Path) -> None:
    answer = await talk(server, post("/containers/x/attach") + b"all of it")

    assert answer.endswith(b"\r\n\r\nall of it<end>")


async def test_a_refused_upgrade_is_answered_and_the_connection_goes_on(server: Path) -> None:
    refused = post("/v1.41/exec/x/start", b'{"refuse": true}')
    second = post("/size", b"12345", upgrade=False)

    for parts in ([refused + second], [refused, second]):
        answer = await talk(server, *parts, b"GET /x HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", end=False)
        statuses = [line for line in answer.split(b"\r\n") if line.startswith((b"HTTP/1.1", b'{"message'))]
        assert b"409" in statuses[0]
        assert b'{"size": 5}' in answer
        assert b"page not found" in answer.rpartition(b"\r\n\r\n")[2]


async def test_a_refused_upgrade_of_a_client_that_ended_its_input_is_answered(server: Path) -> None:
    answer = await talk(server, post("/v1.41/exec/x/start", b'{"refuse": true}'))

    assert b" 409 " in answer
    assert b"not now" in answer


async def test_a_slow_reader_stops_the_writer_and_its_end_is_noticed(tmp_path: Path) -> None:
    global GONE
    GONE = asyncio.Event()
    sent = [0]

    async def counted(call: Call) -> web.StreamResponse:
        stream, response = await hijack(call, tty=True)
        try:
            while True:
                await stream.write(b"x" * 65536)
                sent[0] += 65536
        except ConnectionResetError:
            GONE.set()
        return response

    running = Server([Route("POST", "/containers/{id}/attach", counted)])
    await running.listen_unix(tmp_path / "s.sock")
    _, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"), limit=1 << 16)
    writer.write(post("/containers/x/attach"))
    settled = -1
    async with asyncio.timeout(30):
        while not 0 < settled == sent[0]:  # it stops some time after the first bytes
            settled = sent[0]
            assert settled < 2 << 20
            await asyncio.sleep(0.2)

    writer.transport.abort()
    async with asyncio.timeout(30):
        await GONE.wait()
    await running.close()


async def test_nothing_follows_an_answers_head_before_the_client_has_read_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker-py reads the head through a buffer, and loses what comes into that together with the head."""
    monkeypatch.setattr(streams, "TAKEN_S", 60.0)
    writing = asyncio.Event()

    async def both(call: Call) -> web.StreamResponse:
        """Two streams of a process, each with a writer of its own."""
        stream, response = await hijack(call, tty=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.write(b"said"))
            group.create_task(stream.write(b"said"))
            await asyncio.sleep(0)
            writing.set()
        stream.close()
        return response

    running = Server([Route("POST", "/containers/{id}/attach", both)])
    await running.listen_unix(tmp_path / "s.sock")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(tmp_path / "s.sock"))
        await loop.sock_sendall(client, post("/containers/x/attach"))
        async with asyncio.timeout(30):
            await writing.wait()
            await asyncio.sleep(0.05)  # time for what must not come
            head = await loop.sock_recv(client, 1 << 16)
            said = b""
            while data := await loop.sock_recv(client, 1 << 16):
                said += data
    await running.close()

    assert head.endswith(b"\r\n\r\n") and said == b"saidsaid"


async def test_input_that_nobody_reads_is_not_kept_in_memory(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def late(call: Call) -> web.StreamResponse:
        await go_on.wait()
        stream, response = await hijack(call, tty=True)
        total = 0
        while data := await stream.read():
            total += len(data)
        await stream.write(str(total).encode())
        stream.close()
        return response

    running = Server([Route("POST", "/containers/{id}/attach", late)])
    await running.listen_unix(tmp_path / "s.sock")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
    writer.write(post("/containers/x/attach") + b"y" * (8 << 20))
    await asyncio.sleep(0.3)
    stuck = writer.transport.get_write_buffer_size()  # type: ignore[attr-defined]
    go_on.set()
    await writer.drain()
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()

    assert stuck > 6 << 20
    assert answer.endswith(b"\r\n\r\n%d" % (8 << 20))
    writer.close()
    await running.close()


async def test_a_waiting_handler_ends_when_its_client_goes(server: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server))
    writer.write(b"GET /forever HTTP/1.1\r\nHost: d\r\n\r\n")
    await reader.readuntil(b"hello")
    writer.close()

    async with asyncio.timeout(30):
        await GONE.wait()
    await asyncio.sleep(0.05)
    assert not caplog.records  # clients may go: nothing is wrong


@pytest.mark.parametrize("known", ["0", "1"])
@pytest.mark.parametrize("when", ["streaming", "hijacked"])
async def test_an_error_within_a_stream_cuts_it_off(server: Path, when: str, known: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server))
    writer.write(post(f"/broken/attach?known={known}&when={when}", upgrade=when == "hijacked"))
    answer = b""
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(100):
                answer += data

    # No second head, and no end of the chunked body: the client can tell that it is not complete.
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(("known", "status"), [("0", 500), ("1", 409)])
async def test_an_error_before_the_answer_has_a_status(server: Path, known: str, status: int) -> None:
    answer = await talk(server, post(f"/broken/attach?known={known}"))

    assert answer.startswith(b"HTTP/1.1 %d " % status)



@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/nowhere", 404, "page not found"),
        ("/v1.41/nowhere", 404, "page not found"),
        ("/v1.99/x", 400, "client version 1.99 is too new. Maximum supported API version is 1.50"),
        (
            "/v1.12/x", 400,
            "client version 1.12 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
    ],
)
async def test_what_is_not_there_is_refused_in_dockerds_words(
    server: Path, path: str, status: int, message: str
) -> None:
    answer = await talk(server, f"GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode(), end=False)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body) == {"message": message}
    assert b"Api-Version: 1.50" in head


async def test_chunked_uploads_and_long_queries_pass(server: Path) -> None:
    body = b"z" * 300_000
    answer = await talk(
        server, post("/size?filters=" + "a" * 100_000, body, upgrade=False, chunked=True).replace(
            b"Host: d", b"Host: d\r\nConnection: close"
        ), end=False,
    )

    assert answer.endswith(b'{"size": 300000}')


async def test_head_is_answered_without_a_body(server: Path) -> None:
    answer = await talk(server, b"HEAD /nowhere HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", end=False)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_hijacked_connections_are_forgotten_once_closed(server: Path, tmp_path: Path) -> None:
    running = Server([Route("POST", "/containers/{id}/attach", echo)])
    await running.listen_unix(tmp_path / "t.sock")
    for _ in range(3):
        await talk(tmp_path / "t.sock", post("/containers/x/attach") + b"hi")

    async with asyncio.timeout(30):
        while running.connections():
            await asyncio.sleep(0.01)
    await running.close()
