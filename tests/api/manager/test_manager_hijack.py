"""The cluster view: attach and exec, carried through to the node and back."""

from __future__ import annotations

import asyncio
import json
import select
from typing import Any

import pytest
from manager_lab import Lab, fake_node


async def read_head(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode()


def upgraded(writer: asyncio.StreamWriter) -> None:
    head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n"
    writer.write((head + "Upgrade: tcp\r\n\r\n").encode())


async def attached(lab: Lab, dialogue: Any) -> None:
    node = fake_node(lab, 1)
    node.talks(dialogue)
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"


async def test_attach_carries_bytes_both_ways(lab: Lab) -> None:
    heads: list[str] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_head(reader))
        upgraded(writer)
        writer.write(b"hello ")
        while data := await reader.read(4096):
            writer.write(data.upper())
            await writer.drain()
        writer.write(b"bye")

    await attached(lab, echo)
    client = await lab.hijack("/containers/web/attach?stream=1&stdin=1&stdout=1")
    assert "101 UPGRADED" in await client.head()
    client.writer.write(b"some text")
    assert await client.read(15) == b"hello SOME TEXT"
    client.writer.write_eof()  # the client ends its input and goes on reading
    assert await client.rest() == b"bye"
    await client.close()
    assert heads[0].startswith("POST /v1.50/containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\n")
    assert "Upgrade: tcp" in heads[0]


async def test_input_sent_together_with_the_request_is_not_lost(lab: Lab) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        upgraded(writer)
        writer.write(str(len(await reader.read(-1))).encode())

    await attached(lab, count)
    client = await lab.hijack("/containers/web/attach?stream=1&stdin=1")
    client.writer.write(b"x" * 200_000)
    client.writer.write_eof()
    assert "101" in await client.head()
    assert await client.rest() == b"200000"
    await client.close()


async def test_a_lot_of_output_arrives_whole_and_in_order(lab: Lab) -> None:
    size = 3_000_000

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        upgraded(writer)
        for start in range(0, size, 50_000):
            writer.write(bytes([start // 50_000]) * 50_000)
            await writer.drain()

    await attached(lab, pour)
    client = await lab.hijack("/containers/web/attach?stream=1&stdout=1")
    await client.head()
    data = await client.rest()
    assert len(data) == size and data == b"".join(bytes([n]) * 50_000 for n in range(size // 50_000))
    await client.close()


async def test_a_client_that_goes_away_ends_the_nodes_stream(lab: Lab) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        upgraded(writer)
        try:
            while True:
                writer.write(b"tick")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            ended.set()

    await attached(lab, wait)
    client = await lab.hijack("/containers/web/attach?stream=1&stdin=1&stdout=1")
    await client.head()
    assert await client.read(4) == b"tick"
    await client.close()
    async with asyncio.timeout(30):
        await ended.wait()


async def test_a_client_that_goes_away_while_all_is_quiet_is_noticed(lab: Lab) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        upgraded(writer)
        await reader.read()  # the end of its input, which says nothing of whether it still reads
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), 0)
        while not any(event & select.POLLHUP for _, event in poll.poll(0)):
            await asyncio.sleep(0.02)
        ended.set()

    await attached(lab, wait)
    client = await lab.hijack("/containers/web/attach?stream=1&stdin=1&stdout=1")
    await client.head()
    await client.close()
    async with asyncio.timeout(30):
        await ended.wait()


@pytest.mark.parametrize("upgrade", [True, False])
async def test_a_node_that_refuses_is_heard_with_its_status_and_words(lab: Lab, upgrade: bool) -> None:
    body = b'{"message":"container web is not running"}\n'

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\n")
        writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(body[10:])

    await attached(lab, refuse)
    client = await lab.hijack("/containers/web/attach?stream=1", upgrade=upgrade)
    head = await client.head()
    assert head.startswith("HTTP/1.1 409 ")
    length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
    assert json.loads(await client.read(length)) == {"message": "container web is not running"}
    await client.close()


@pytest.mark.parametrize(("answer", "says"), [(b"", "without an answer"), (b"nonsense\r\n\r\n", "not HTTP")])
async def test_a_node_that_answers_nonsense_is_an_error_of_the_server(lab: Lab, answer: bytes, says: str) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(answer)

    await attached(lab, break_off)
    status, refused = await lab.ask("POST", "/containers/web/attach?stream=1")
    assert status == 500 and says in refused["message"]


async def test_exec_start_sends_its_body_first(lab: Lab) -> None:
    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        upgraded(writer)
        writer.write(json.dumps(body).encode() + await reader.read(-1))

    node = fake_node(lab, 1)
    node.says("GET", "/exec/{id}/json", {"ID": "e1"})
    node.talks(run)
    await lab.join(node)
    client = await lab.hijack("/exec/e1/start", b'{"Detach":false,"Tty":true}')
    await client.head()
    client.writer.write(b"typed")
    client.writer.write_eof()
    assert await client.rest() == b'{"Detach": false, "Tty": true}typed'
    await client.close()
