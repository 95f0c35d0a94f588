"""Attach, exec, logs, wait and stats over HTTP: the answers that go on."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from typing import Any

import aiohttp
import pytest
from node_lab import Node

STREAM = "stream=1&stdin=1&stdout=1&stderr=1"


def unframe(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        stream, size = struct.unpack(">BxxxL", data[:8])
        found.append((stream, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def joined(data: bytes, stream: int = 1) -> bytes:
    return b"".join(part for kind, part in unframe(data) if kind == stream)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(30):
        return await reader.read()


# docker run: create, attach, wait, start


async def test_run_in_the_foreground_loses_nothing_and_tells_the_exit_code(node: Node) -> None:
    ident = await node.make("both", start=False)
    head, reader, writer = await node.hijack(f"/v1.50/containers/{ident}/attach?{STREAM}")
    async with node.session.post(f"http://d/v1.50/containers/{ident}/wait?condition=next-exit") as waiting:
        assert (await node.call("POST", f"/containers/{ident}/start"))[0] == 204
        output = await rest(reader)
        async with asyncio.timeout(30):
            answer = json.loads(await waiting.content.read())
    writer.close()

    assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    assert b"application/vnd.docker.multiplexed-stream" in head
    assert unframe(output) == [(1, b"out\n"), (2, b"err\n")]
    assert answer == {"StatusCode": 0}


async def test_stdin_passes_through_and_its_end_ends_the_program(node: Node) -> None:
    ident = await node.make("cat", start=False, OpenStdin=True, StdinOnce=True, AttachStdin=True)
    _, reader, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}")
    await node.call("POST", f"/containers/{ident}/start")
    payload = bytes(range(256)) * 4096
    writer.write(payload)
    writer.write_eof()

    assert joined(await rest(reader)) == payload
    status, answer = await node.call("POST", f"/containers/{ident}/wait")
    assert (status, answer) == (200, {"StatusCode": 0})
    writer.close()


async def test_without_stdin_once_a_clients_end_detaches_it_and_the_container_goes_on(node: Node) -> None:
    ident = await node.make("cat", OpenStdin=True)
    _, reader, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}")
    _, other_reader, other = await node.hijack(f"/containers/{ident}/attach?stream=1&stdout=1")
    writer.write(b"hello\n")
    async with asyncio.timeout(30):
        assert joined(await reader.readexactly(14)) == b"hello\n"
        assert joined(await other_reader.readexactly(14)) == b"hello\n"
    writer.write_eof()

    assert await rest(reader) == b""
    _, shown = await node.call("GET", f"/containers/{ident}/json")
    assert shown["State"]["Running"] is True
    writer.close()
    other.close()


@pytest.mark.parametrize(("query", "keys"), [("", b"\x10\x11"), ("&detachKeys=ctrl-a,d", b"\x01d")])
async def test_the_detach_keys_end_a_terminals_attachment(node: Node, query: str, keys: bytes) -> None:
    ident = await node.make("cat", OpenStdin=True, Tty=True)
    head, reader, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}{query}")
    writer.write(b"abc" + keys[:1])
    await asyncio.sleep(0.05)
    writer.write(keys[1:] + b"never")

    assert b"application/vnd.docker.raw-stream" in head
    assert await rest(reader) == b"abc"
    _, shown = await node.call("GET", f"/containers/{ident}/json")
    assert shown["State"]["Running"] is True
    assert node.runtime.processes[ident].clients == []
    writer.close()


async def test_attach_replays_the_log_before_the_live_stream(node: Node) -> None:
    ident = await node.make("cat", OpenStdin=True, StdinOnce=True)
    await node.runtime.processes[ident].feed(b"before\n")
    await asyncio.sleep(0.05)
    _, reader, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}&logs=1")
    writer.write(b"after\n")
    writer.write_eof()

    assert joined(await rest(reader)) == b"before\nafter\n"
    writer.close()


async def test_a_client_that_reads_the_head_late_gets_it_alone(node: Node) -> None:
    """docker-py loses what it reads together with the head."""
    ident = await node.make("cat", OpenStdin=True, StdinOnce=True)
    await node.runtime.processes[ident].feed(b"before\n")
    await asyncio.sleep(0.05)
    request = f"POST /containers/{ident}/attach?stdout=1&logs=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await loop.sock_connect(client, str(node.socket))
        await loop.sock_sendall(client, f"{request}Connection: Upgrade\r\n\r\n".encode())
        await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            first = await loop.sock_recv(client, 1 << 16)
            assert first.startswith(b"HTTP/1.1 101") and first.endswith(b"\r\n\r\n")
            assert joined(await loop.sock_recv(client, 1 << 16)) == b"before\n"


async def test_only_the_streams_asked_for_are_sent(node: Node) -> None:
    ident = await node.make("both", start=False)
    _, reader, writer = await node.hijack(f"/containers/{ident}/attach?stream=1&stderr=1")
    await node.call("POST", f"/containers/{ident}/start")

    assert unframe(await rest(reader)) == [(2, b"err\n")]
    writer.close()


async def test_attaching_is_refused_with_a_status_where_it_makes_no_sense(node: Node) -> None:
    ident = await node.make("sleep")

    assert (await node.call("POST", "/containers/nope/attach?stream=1"))[0] == 404
    status, answer = await node.call("POST", f"/containers/{ident}/attach?stream=1&detachKeys=bad")
    assert (status, answer) == (400, {"message": "Invalid detach keys (bad) provided"})


async def test_a_client_that_vanishes_is_detached(node: Node) -> None:
    ident = await node.make("sleep", OpenStdin=True)
    _, _, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}")
    assert len(node.runtime.processes[ident].clients) == 1
    writer.transport.abort()

    async with asyncio.timeout(30):
        while node.runtime.processes[ident].clients:
            await asyncio.sleep(0.01)


async def test_a_client_that_vanishes_before_the_start_leaves_nothing_waiting(node: Node) -> None:
    ident = await node.make("sleep", start=False, OpenStdin=True, StdinOnce=True)
    _, _, writer = await node.hijack(f"/containers/{ident}/attach?{STREAM}")
    writer.write(b"typed too early")
    writer.transport.abort()
    async with asyncio.timeout(30):
        while node.server.connections() > 1:
            await asyncio.sleep(0.01)

    assert (await node.call("POST", f"/containers/{ident}/start"))[0] == 204
    assert node.runtime.processes[ident].clients == []


async def test_a_websocket_carries_raw_output_and_input(node: Node) -> None:
    ident = await node.make("cat", OpenStdin=True)
    async with node.session.ws_connect(f"http://d/containers/{ident}/attach/ws?{STREAM}") as socket:
        await socket.send_str("text ")
        await socket.send_bytes(b"bytes")
        received = b""
        async with asyncio.timeout(30):
            while len(received) < 10:
                received += (await socket.receive()).data
    async with asyncio.timeout(30):
        while node.runtime.processes[ident].clients:
            await asyncio.sleep(0.01)

    assert received == b"text bytes"


# wait


async def test_waiting_answers_its_head_at_once(node: Node) -> None:
    ident = await node.make("exit", "3", start=False)
    async with asyncio.timeout(30), node.session.post(f"http://d/containers/{ident}/wait?condition=removed") as waiting:
        assert waiting.status == 200
        await node.call("POST", f"/containers/{ident}/start")
        await node.call("POST", f"/containers/{ident}/wait")
        await node.call("DELETE", f"/containers/{ident}")
        assert json.loads(await waiting.content.read()) == {"StatusCode": 3}


async def test_a_wait_that_cannot_be_is_refused(node: Node) -> None:
    ident = await node.make("sleep")

    assert (await node.call("POST", "/containers/nope/wait"))[0] == 404
    status, answer = await node.call("POST", f"/containers/{ident}/wait?condition=tomorrow")
    assert (status, answer) == (400, {"message": 'invalid condition: "tomorrow"'})


# exec


async def make_exec(node: Node, ident: str, *command: str, **more: Any) -> str:
    body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, **more}
    status, answer = await node.call("POST", f"/containers/{ident}/exec", body)
    assert status == 201, answer
    return str(answer["Id"])


async def test_an_exec_runs_in_the_container_and_keeps_its_exit_code(node: Node) -> None:
    ident = await node.make("sleep", name="web")
    run = await make_exec(node, ident, "exit", "5")
    _, before = await node.call("GET", f"/exec/{run}/json")
    _, reader, writer = await node.hijack(f"/exec/{run}/start", b'{"Detach":false,"Tty":false}')

    assert await rest(reader) == b""
    _, after = await node.call("GET", f"/exec/{run}/json")
    assert (before["ExitCode"], after["ExitCode"], after["Running"]) == (None, 5, False)
    assert after["ProcessConfig"] == {"entrypoint": "exit", "arguments": ["5"], "privileged": False, "tty": False}
    assert after["ContainerID"] == ident
    assert (await node.call("POST", f"/exec/{run}/start", {"Detach": False}))[0] == 409
    writer.close()


async def test_input_sent_right_behind_the_request_reaches_the_program(node: Node) -> None:
    ident = await node.make("sleep")
    run = await make_exec(node, ident, "cat", AttachStdin=True)
    reader, writer = await asyncio.open_unix_connection(str(node.socket))
    body = b'{"Detach": false}'
    writer.write(
        f"POST /exec/{run}/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode() + body + b"at once"
    )
    writer.write_eof()

    answer = await rest(reader)
    assert joined(answer.partition(b"\r\n\r\n")[2]) == b"at once"
    writer.close()


async def test_a_command_that_is_not_there_is_told_in_the_stream_and_by_the_exit_code(node: Node) -> None:
    ident = await node.make("sleep")
    run = await make_exec(node, ident, "missing")
    head, reader, writer = await node.hijack(f"/exec/{run}/start", b"{}")

    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"executable file not found" in joined(await rest(reader))
    _, shown = await node.call("GET", f"/exec/{run}/json")
    assert shown["ExitCode"] == 127
    writer.close()


async def test_a_detached_exec_is_answered_when_it_runs(node: Node) -> None:
    ident = await node.make("sleep")
    run = await make_exec(node, ident, "sleep")

    assert (await node.call("POST", f"/exec/{run}/start", {"Detach": True}))[0] == 200
    assert (await node.call("POST", f"/exec/{run}/resize?h=10&w=20"))[0] == 200
    _, shown = await node.call("GET", f"/exec/{run}/json")
    assert shown["Running"] is True
    _, container = await node.call("GET", f"/containers/{ident}/json")
    assert container["ExecIDs"] == [run]


async def test_execs_that_cannot_be_are_refused(node: Node) -> None:
    ident = await node.make("sleep", start=False)

    status, answer = await node.call("POST", f"/containers/{ident}/exec", {"Cmd": ["x"]})
    assert (status, answer) == (409, {"message": f"container {ident} is not running"})
    assert await node.call("POST", f"/containers/{ident}/exec", {"Cmd": []}) == (
        400, {"message": "No exec command specified"},
    )
    assert await node.call("GET", "/exec/nope/json") == (404, {"message": "No such exec instance: nope"})
    assert (await node.call("POST", "/exec/nope/start", {"Detach": False}))[0] == 404


async def test_output_flows_fast_and_a_slow_client_stops_the_program(node: Node) -> None:
    ident = await node.make("sleep")
    size = 256 << 20
    run = await make_exec(node, ident, "flood", str(size))
    _, reader, writer = await node.hijack(f"/exec/{run}/start", b"{}")
    await asyncio.sleep(0.3)  # nobody reads: what is under way stays small
    assert (await node.call("GET", f"/exec/{run}/json"))[1]["Running"] is True
    received = 0
    async with asyncio.timeout(60):
        while data := await reader.read(1 << 20):
            received += len(data)

    assert received == size + size // 65536 * 8
    writer.close()


# logs


async def logs(node: Node, ident: str, query: str) -> bytes:
    async with asyncio.timeout(30):
        status, data = await node.call("GET", f"/containers/{ident}/logs?{query}")
    assert status == 200
    assert isinstance(data, bytes)
    return data


async def test_logs_are_framed_selected_and_stamped(node: Node) -> None:
    ident = await node.make("both")
    await node.call("POST", f"/containers/{ident}/wait")

    assert unframe(await logs(node, ident, "stdout=1&stderr=1")) == [(1, b"out\n"), (2, b"err\n")]
    assert unframe(await logs(node, ident, "stderr=1")) == [(2, b"err\n")]
    assert unframe(await logs(node, ident, "stdout=1&stderr=1&tail=1")) == [(2, b"err\n")]
    assert await logs(node, ident, "stdout=1&tail=0") == b""
    assert len(unframe(await logs(node, ident, "stdout=1&stderr=1&tail=all&follow=1"))) == 2
    (_, stamped), = unframe(await logs(node, ident, "stdout=1&timestamps=1"))
    assert stamped.endswith(b"Z out\n")
    assert await logs(node, ident, f"stdout=1&since={time.time() + 5:.3f}") == b""
    assert await logs(node, ident, "stdout=1&until=10") == b""


async def test_the_type_of_logs_depends_on_terminal_and_version(node: Node) -> None:
    plain = await node.make("echo", "hi")
    terminal = await node.make("echo", "hi", Tty=True)
    await node.call("POST", f"/containers/{terminal}/wait")

    for path, kind in (
        (f"/containers/{plain}", "multiplexed"),
        (f"/v1.41/containers/{plain}", "raw"),
        (f"/containers/{terminal}", "raw"),
    ):
        async with node.session.get(f"http://d{path}/logs?stdout=1") as answer:
            assert answer.content_type == f"application/vnd.docker.{kind}-stream"
    assert await logs(node, terminal, "stdout=1") == b"hi\n"


async def test_followed_logs_end_with_the_container(node: Node) -> None:
    ident = await node.make("cat", OpenStdin=True)
    async with node.session.get(f"http://d/containers/{ident}/logs?stdout=1&follow=1") as answer:
        for text in (b"one\n", b"two\n"):
            await node.runtime.processes[ident].feed(text)
            async with asyncio.timeout(30):
                assert joined(await answer.content.readexactly(8 + len(text))) == text
        await node.runtime.processes[ident].feed(b"")
        async with asyncio.timeout(30):
            assert await answer.content.read() == b""


async def test_logs_that_cannot_be_read_are_refused(node: Node) -> None:
    ident = await node.make("sleep")
    silent = await node.make("sleep", HostConfig={"LogConfig": {"Type": "none"}})

    assert await node.call("GET", f"/containers/{ident}/logs") == (
        400, {"message": "Bad parameters: you must choose at least one stream"},
    )
    status, answer = await node.call("GET", f"/containers/{silent}/logs?stdout=1")
    assert (status, answer) == (501, {"message": "configured logging driver does not support reading"})
    status, answer = await node.call("GET", f"/containers/{ident}/logs?stdout=1&since=yesterday")
    assert status == 400
    assert 'invalid value for "since"' in answer["message"]


# stats


async def test_one_sample_has_what_dockers_formula_needs(node: Node) -> None:
    ident = await node.make("sleep", name="web")

    _, once = await node.call("GET", f"/containers/{ident}/stats?stream=0&one-shot=1")
    _, pair = await node.call("GET", f"/containers/{ident}/stats?stream=0")

    assert once["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert once["name"] == "/web"
    cpu = pair["cpu_stats"]["cpu_usage"]["total_usage"] - pair["precpu_stats"]["cpu_usage"]["total_usage"]
    system = pair["cpu_stats"]["system_cpu_usage"] - pair["precpu_stats"]["system_cpu_usage"]
    assert 0.05 < cpu / 1e9 < 0.5  # the fake uses a tenth of a processor
    assert system > 0
    assert pair["cpu_stats"]["online_cpus"] >= 1
    assert pair["memory_stats"]["usage"] == 5 << 20
    assert pair["memory_stats"]["stats"]["inactive_file"] == 1 << 20
    assert pair["networks"]["eth0"]["rx_bytes"] == 10
    assert pair["blkio_stats"]["io_service_bytes_recursive"] == [{"major": 8, "minor": 0, "op": "read", "value": 77}]
    assert pair["pids_stats"] == {"current": 1}


async def test_stats_stream_until_the_container_is_removed(node: Node) -> None:
    ident = await node.make("sleep")
    async with node.session.get(f"http://d/containers/{ident}/stats") as answer:
        async with asyncio.timeout(30):
            first = json.loads(await answer.content.readline())
            second = json.loads(await answer.content.readline())
            await node.call("DELETE", f"/containers/{ident}?force=1")
            assert await answer.content.read() == b""

    assert second["preread"] == first["read"]


async def test_a_stopped_container_has_empty_stats(node: Node) -> None:
    ident = await node.make("sleep", start=False)

    status, shown = await node.call("GET", f"/containers/{ident}/stats?stream=0")
    assert (status, shown["id"], shown["memory_stats"]) == (200, ident, {})


async def test_a_closing_server_ends_every_stream(node: Node) -> None:
    ident = await node.make("sleep")
    _, reader, writer = await node.hijack(f"/containers/{ident}/attach?stream=1&stdout=1")
    follower = await node.session.get(f"http://d/containers/{ident}/logs?stdout=1&follow=1")
    async with asyncio.timeout(30):
        await node.server.close()
        assert await reader.read() == b""
        with pytest.raises(aiohttp.ClientError):
            await follower.content.read()
    follower.close()
    writer.close()
