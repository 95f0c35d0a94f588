"""What the cluster view passes on or puts together: containers, hijacked streams, logs, events, pulls."""

from __future__ import annotations

import asyncio
import io
import json
import select
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from manager_lab import API, FakeNode, Lab, frames

from swarmlet.engine_api.router import Call
from swarmlet.engine_api.streams import frame
from swarmlet.model.states import Availability, NodeState, TaskState

CREATE = ("POST", "/containers/create")


def fake(lab: Lab, number: int) -> FakeNode:
    return FakeNode(f"node-{number}", lab.folder)


# Placing and finding containers


async def test_a_container_goes_where_fewest_are(lab: Lab) -> None:
    for number, count in ((1, 3), (2, 1), (3, 2)):
        node = fake(lab, number)
        node.says(*CREATE, {"Id": f"made-{number}", "Warnings": []}, 201)
        await lab.join(node)
        lab.inventory.counts[f"node-{number}-id"] = count
    body = {"Image": "busybox", "Env": ["A=b"], "Cmd": ["true"]}
    assert await lab.ask(*CREATE, body, params={"name": "x"}) == (201, {"Id": "made-2", "Warnings": []})
    assert lab.nodes[1].asked == ["POST /v1.50/containers/create?name=x"]
    assert json.loads(lab.nodes[1].bodies[0]) == body and not lab.nodes[0].asked


async def test_constraints_choose_the_node_and_do_not_reach_the_container(lab: Lab) -> None:
    for number, zone in ((1, "east"), (2, "west")):
        node = fake(lab, number)
        node.says(*CREATE, {"Id": "made", "Warnings": []}, 201)
        await lab.join(node, labels={"zone": zone})
    body = {"Image": "busybox", "Env": ["constraint:node.labels.zone==west", "A=b"]}
    assert (await lab.ask(*CREATE, body))[0] == 201
    assert json.loads(lab.nodes[1].bodies[0])["Env"] == ["A=b"] and not lab.nodes[0].asked

    status, refused = await lab.ask(*CREATE, {"Image": "busybox", "Env": ["constraint:node.labels.zone==north"]})
    assert status == 503 and "scheduling constraints not satisfied on 2 nodes" in refused["message"]
    labels = {"com.docker.swarm.constraints": "no json"}
    status, refused = await lab.ask(*CREATE, {"Image": "busybox", "Labels": labels})
    assert status == 400 and "com.docker.swarm.constraints" in refused["message"]


async def test_nothing_is_placed_on_nodes_that_are_drained_paused_or_down(lab: Lab) -> None:
    await lab.member("down", state=NodeState.DOWN)
    await lab.member("drained", availability=Availability.DRAIN)
    await lab.member("paused", availability=Availability.PAUSE)
    status, refused = await lab.ask(*CREATE, {"Image": "busybox"})
    assert (status, refused["message"]) == (503, "no node can take the container: none is ready and active")


async def test_a_node_that_has_the_image_is_better_than_one_that_lacks_it(lab: Lab) -> None:
    missing = {"message": "No such image: rare:latest"}
    for number in (1, 2, 3):
        node = fake(lab, number)
        has = number == 3
        node.says("GET", "/images/{name:path}/json", {"Id": "sha256:0"} if has else missing, 200 if has else 404)
        node.says(*CREATE, {"Id": "made-3", "Warnings": []} if has else missing, 201 if has else 404)
        await lab.join(node)
    assert await lab.ask(*CREATE, {"Image": "rare"}) == (201, {"Id": "made-3", "Warnings": []})
    lab.nodes[2].says("GET", "/images/{name:path}/json", missing, 404)
    await lab.nodes[2].stop()
    assert await lab.ask(*CREATE, {"Image": "rare"}) == (404, missing)


async def test_a_name_that_another_node_has_is_taken(lab: Lab) -> None:
    for number in (1, 2):
        await lab.join(fake(lab, number))
    lab.inventory.nodes["web"] = "node-2-id"
    status, refused = await lab.ask(*CREATE, {"Image": "busybox"}, params={"name": "web"})
    assert status == 409
    assert 'Conflict. The container name "/web" is already in use on node node-2' in refused["message"]


async def test_lists_are_merged_newest_first_and_say_where(lab: Lab) -> None:
    for number in (1, 2):
        node = fake(lab, number)
        node.says("GET", "/containers/json", [{"Id": f"c{number}", "Created": number}])
        await lab.join(node)
    listed = await lab.get("/containers/json", all="1")
    assert [(each["Id"], each["Node"]["Name"]) for each in listed] == [("c2", "node-2"), ("c1", "node-1")]
    assert lab.nodes[0].asked == ["GET /v1.50/containers/json?all=1"]
    assert [each["Id"] for each in await lab.get("/containers/json", limit="1")] == ["c2"]
    await lab.nodes[1].stop()
    assert [each["Id"] for each in await lab.get("/containers/json")] == ["c1"]


async def test_a_bad_filter_is_refused_in_the_nodes_words(lab: Lab) -> None:
    node = fake(lab, 1)
    node.says("GET", "/containers/json", {"message": "invalid filter 'bogus'"}, 400)
    await lab.join(node)
    assert await lab.ask("GET", "/containers/json?filters=x") == (400, {"message": "invalid filter 'bogus'"})


async def test_a_request_goes_to_the_node_that_has_the_container(lab: Lab) -> None:
    for number in (1, 2):
        node = fake(lab, number)
        node.says("POST", "/containers/{id}/kill", {"by": number})
        await lab.join(node)
    lab.inventory.nodes["web"] = "node-2-id"
    assert await lab.ask("POST", "/containers/web/kill?signal=HUP") == (200, {"by": 2})
    assert lab.nodes[1].asked == ["POST /v1.50/containers/web/kill?signal=HUP"] and not lab.nodes[0].asked


async def test_a_container_nobody_told_of_is_looked_for_everywhere(lab: Lab) -> None:
    unknown = {"message": "No such container: new"}
    for number in (1, 2):
        node = fake(lab, number)
        has = number == 2
        node.says("GET", "/containers/{id}/json", {"Id": "new"} if has else unknown, 200 if has else 404)
        node.says("POST", "/containers/{id}/start", {})
        await lab.join(node)
    assert (await lab.ask("POST", "/containers/new/start"))[0] == 200
    assert lab.nodes[1].asked[-1] == "POST /v1.50/containers/new/start"
    await lab.nodes[1].stop()
    assert await lab.ask("POST", "/containers/new/start") == (404, unknown)


async def test_status_headers_and_body_come_back_as_the_node_gave_them(lab: Lab) -> None:
    node = fake(lab, 1)

    async def reply(call: Call) -> web.StreamResponse:
        headers = {"X-Docker-Container-Path-Stat": "abc", "Content-Type": "application/x-tar"}
        return web.Response(status=418, headers=headers, body=b"\0" * 300_000)

    node.on("GET", "/containers/{id}/archive", reply)
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"
    async with lab.client.get(f"{API}/containers/web/archive?path=/") as answer:
        assert (answer.status, answer.headers["X-Docker-Container-Path-Stat"]) == (418, "abc")
        assert answer.headers["Content-Type"] == "application/x-tar" and await answer.read() == b"\0" * 300_000


async def test_bodies_are_streamed_not_collected(lab: Lab) -> None:
    """The node sees the first piece while the client still holds the second."""
    node, seen = fake(lab, 1), asyncio.Event()
    got: list[bytes] = []

    async def reply(call: Call) -> web.StreamResponse:
        async for piece in call.request.content.iter_any():
            got.append(piece)
            seen.set()
        return web.Response(status=200)

    node.on("PUT", "/containers/{id}/archive", reply)
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"

    async def body() -> Any:
        yield b"first"
        async with asyncio.timeout(10):
            await seen.wait()
        yield b"second"

    async with lab.client.put(f"{API}/containers/web/archive?path=/", data=body()) as answer:
        assert answer.status == 200
    assert b"".join(got) == b"firstsecond"


async def test_an_answer_is_streamed_and_a_node_that_dies_in_it_cuts_it_off(lab: Lab) -> None:
    node = fake(lab, 1)

    async def reply(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        await response.write(b"first")
        await asyncio.sleep(0.1)
        assert call.request.transport is not None
        call.request.transport.abort()
        return response

    node.on("GET", "/containers/{id}/logs", reply)
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"
    async with lab.client.get(f"{API}/containers/web/logs?stdout=1&follow=1") as answer:
        assert answer.status == 200 and await answer.content.readexactly(5) == b"first"
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_a_node_that_cannot_be_reached_is_named(lab: Lab) -> None:
    await lab.member("away", port=1)
    await lab.member("down", state=NodeState.DOWN)
    lab.inventory.nodes |= {"lost": "away-id", "off": "down-id"}
    status, refused = await lab.ask("GET", "/containers/lost/json")
    assert status == 503 and "node away (127.0.0.1) is not reachable" in refused["message"]
    status, refused = await lab.ask("GET", "/containers/off/json")
    assert status == 503 and "node down is not reachable: it is down" in refused["message"]


async def test_an_exec_is_started_and_inspected_where_it_was_created(lab: Lab) -> None:
    for number in (1, 2):
        node = fake(lab, number)
        node.says("POST", "/containers/{id}/exec", {"Id": f"exec-{number}"}, 201)
        node.says("GET", "/exec/{id}/json", {"ID": f"exec-{number}", "ExitCode": number})
        await lab.join(node)
    lab.inventory.nodes["web"] = "node-2-id"
    assert await lab.ask("POST", "/containers/web/exec", {"Cmd": ["true"]}) == (201, {"Id": "exec-2"})
    assert json.loads(lab.nodes[1].bodies[0]) == {"Cmd": ["true"]}
    assert (await lab.get("/exec/exec-2/json"))["ExitCode"] == 2 and not lab.nodes[0].asked


# Hijacked streams


async def read_head(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode()


def upgraded(writer: asyncio.StreamWriter) -> None:
    head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n"
    writer.write((head + "Upgrade: tcp\r\n\r\n").encode())


async def attached(lab: Lab, dialogue: Any) -> None:
    node = fake(lab, 1)
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
    async with asyncio.timeout(5):
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
    async with asyncio.timeout(8):
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

    node = fake(lab, 1)
    node.says("GET", "/exec/{id}/json", {"ID": "e1"})
    node.talks(run)
    await lab.join(node)
    client = await lab.hijack("/exec/e1/start", b'{"Detach":false,"Tty":true}')
    await client.head()
    client.writer.write(b"typed")
    client.writer.write_eof()
    assert await client.rest() == b'{"Detach": false, "Tty": true}typed'
    await client.close()


# Logs of services


@pytest.fixture
async def talkers(lab: Lab) -> Lab:
    """A service with a task on each of two nodes; each has said a line on both streams."""
    await lab.service("web", 2)
    for number in (1, 2):
        node = fake(lab, number)
        node.streams(
            "GET", "/containers/{id}/logs", frame(1, f"out {number}\n".encode())[:5],
            frame(1, f"out {number}\n".encode())[5:] + frame(2, f"err {number}\n".encode()),
        )  # fmt: skip
        await lab.join(node)
        await lab.task(f"t{number}", "web", slot=number, node=f"node-{number}-id", container=f"c{number}")
    return lab


async def _logs(lab: Lab, path: str) -> tuple[str, bytes]:
    async with lab.client.get(API + path) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.read()


async def test_logs_of_all_tasks_are_one_multiplexed_stream(talkers: Lab) -> None:
    kind, data = await _logs(talkers, "/services/web/logs?stdout=1&stderr=1&tail=5&timestamps=0")
    assert kind == "application/vnd.docker.multiplexed-stream"
    assert sorted(frames(data)) == [(1, b"out 1\n"), (1, b"out 2\n"), (2, b"err 1\n"), (2, b"err 2\n")]
    asked = talkers.nodes[0].asked[0]
    assert asked.startswith("GET /containers/c1/logs?") and "tail=5" in asked and "stdout=1" in asked


async def test_details_say_which_task_a_line_is_from(talkers: Lab) -> None:
    _, data = await _logs(talkers, "/tasks/t1/logs?stdout=1&details=1")
    service = talkers.control.service("web").id
    own = f"com.docker.swarm.node.id=node-1-id,com.docker.swarm.service.id={service},com.docker.swarm.task.id=t1"
    assert frames(data)[0] == (1, f"{own} out 1\n".encode())
    assert not talkers.nodes[1].asked


async def test_details_stand_behind_the_timestamp(lab: Lab) -> None:
    await lab.service("web", 1)
    node = fake(lab, 1)
    node.streams("GET", "/containers/{id}/logs", frame(1, b"2024-01-01T00:00:00.000000000Z text with spaces\n"))
    await lab.join(node)
    await lab.task("t1", "web", container="c1")
    _, data = await _logs(lab, "/services/web/logs?stdout=1&details=1&timestamps=1")
    stamp, details, text = frames(data)[0][1].split(b" ", 2)
    assert stamp == b"2024-01-01T00:00:00.000000000Z" and b"task.id=t1" in details and text == b"text with spaces\n"


async def test_a_terminals_lines_are_raw(lab: Lab) -> None:
    await lab.service("term", 1, tty=True)
    node = fake(lab, 1)
    node.streams("GET", "/containers/{id}/logs", b"one\r\ntw", b"o\r\n", kind="application/vnd.docker.raw-stream")
    await lab.join(node)
    await lab.task("t1", "term", container="c1")
    assert await _logs(lab, "/services/term/logs?stdout=1") == ("application/vnd.docker.raw-stream", b"one\r\ntwo\r\n")


async def test_a_node_that_is_away_costs_only_its_own_lines(talkers: Lab) -> None:
    await talkers.nodes[0].stop()
    _, data = await _logs(talkers, "/services/web/logs?stdout=1&stderr=1")
    assert sorted(frames(data)) == [(1, b"out 2\n"), (2, b"err 2\n")]


async def test_followed_logs_take_in_tasks_that_come_later(talkers: Lab) -> None:
    async with talkers.client.get(f"{API}/services/web/logs?stdout=1&stderr=1&follow=1") as answer:
        first = await answer.content.readexactly(4 * 14)
        await talkers.task("t3", "web", slot=3, node="node-2-id", container="c3")
        async with asyncio.timeout(10):
            later = await answer.content.readexactly(2 * 14)
    assert len(frames(first)) == 4 and sorted(frames(later)) == [(1, b"out 2\n"), (2, b"err 2\n")]


async def test_logs_need_a_stream_to_be_chosen(talkers: Lab) -> None:
    status, refused = await talkers.ask("GET", "/services/web/logs")
    assert status == 400 and "choose at least one stream" in refused["message"]


async def test_tasks_that_never_ran_have_no_logs(lab: Lab) -> None:
    await lab.service("web", 1)
    await lab.join(fake(lab, 1))
    await lab.task("t1", "web", state=TaskState.PREPARING)
    _, data = await _logs(lab, "/services/web/logs?stdout=1")
    assert data == b"" and not lab.nodes[0].asked


# Events


async def test_events_of_nodes_and_of_the_cluster_are_one_stream(lab: Lab) -> None:
    node = fake(lab, 1)
    own = {"Type": "container", "Action": "start", "Actor": {"ID": "c1", "Attributes": {"name": "web"}}}

    async def reply(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        await response.write(json.dumps(own).encode() + b"\n")
        await asyncio.sleep(30)
        return response

    node.on("GET", "/events", reply)
    await lab.join(node)
    async with lab.client.get(f"{API}/events") as answer:
        first = json.loads(await answer.content.readline())
        assert first["Actor"] == {"ID": "c1", "Attributes": {"name": "web", "node.name": "node-1"}}
        ident = await lab.service("web")
        async with asyncio.timeout(10):
            second = json.loads(await answer.content.readline())
    assert (second["Type"], second["Action"], second["scope"]) == ("service", "create", "swarm")
    assert second["Actor"] == {"ID": ident, "Attributes": {"name": "web"}}


async def test_events_of_the_past_are_told_until_the_asked_time(lab: Lab) -> None:
    began = time.time()
    service = await lab.service("web")
    await lab.service("other")
    node = await lab.member("node-9")
    spec = {"Role": "worker", "Availability": "drain"}
    await lab.ask("POST", f"/nodes/node-9/update?version={node.version}", spec)
    await lab.ask("DELETE", "/services/web")
    query = {"since": f"{began:.9f}", "until": f"{time.time():.9f}"}

    async def told(**filters: list[str]) -> list[tuple[str, str, str]]:
        async with lab.client.get(f"{API}/events", params=query | {"filters": json.dumps(filters)}) as answer:
            events = [json.loads(line) for line in (await answer.read()).splitlines()]
        return [(event["Type"], event["Action"], event["Actor"]["Attributes"]["name"]) for event in events]

    assert await told() == [
        ("service", "create", "web"), ("service", "create", "other"), ("node", "create", "node-9"),
        ("node", "update", "node-9"), ("service", "remove", "web"),
    ]  # fmt: skip
    assert await told(type=["node"]) == [("node", "create", "node-9"), ("node", "update", "node-9")]
    assert await told(service=[service]) == [("service", "create", "web"), ("service", "remove", "web")]
    assert await told(event=["remove"]) == [("service", "remove", "web")]
    assert await told(container=["x"]) == []


# Images


def _lines(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\r\n" for line in lines)


async def _pull(lab: Lab) -> tuple[int, list[dict[str, Any]]]:
    async with lab.client.post(f"{API}/images/create?fromImage=busybox&tag=1") as answer:
        return answer.status, [json.loads(line) for line in (await answer.read()).splitlines() if line.strip()]


DONE = _lines(
    {"status": "Pulling from library/busybox", "id": "1"},
    {"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "layer"},
    {"status": "Download complete", "progressDetail": {}, "id": "layer"},
    {"status": "Digest: sha256:abc"},
    {"status": "Status: Downloaded newer image for busybox:1"},
)


async def test_a_pull_goes_to_every_node_and_has_a_line_for_each(lab: Lab) -> None:
    for number in (1, 2, 3):
        node = fake(lab, number)
        node.streams("POST", "/images/create", DONE)
        await lab.join(node, availability=Availability.DRAIN if number == 3 else Availability.ACTIVE)
    status, lines = await _pull(lab)
    assert status == 200
    ends = {line["id"]: line["status"] for line in lines if "id" in line}
    assert ends == {"node-1": "Pull complete", "node-2": "Pull complete"}
    assert [line["status"] for line in lines[-2:]] == [
        "Digest: sha256:abc", "Status: Downloaded newer image for busybox:1",
    ]  # fmt: skip
    assert not lab.nodes[2].asked  # drained


async def test_progress_adds_a_nodes_layers_up(lab: Lab) -> None:
    gate = asyncio.Event()

    async def slow(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        for name in ("a", "b"):
            line = {"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": name}
            await response.write(_lines(line))
        await gate.wait()
        await response.write(DONE)
        return response

    for number in (1, 2):
        node = fake(lab, number)
        node.on("POST", "/images/create", slow)
        await lab.join(node)
    async with lab.client.post(f"{API}/images/create?fromImage=busybox") as answer:
        async with asyncio.timeout(10):
            seen: set[tuple[str, int, int]] = set()
            while len({name for name, current, _ in seen if current == 10}) < 2:
                line = json.loads(await answer.content.readline())
                seen.add((line["id"], line["progressDetail"]["current"], line["progressDetail"]["total"]))
        gate.set()
        assert "Digest" in (await answer.read()).decode()
    assert {("node-1", 10, 20), ("node-2", 10, 20)} <= seen


async def test_a_pull_that_fails_on_one_node_says_which(lab: Lab) -> None:
    good, bad = fake(lab, 1), fake(lab, 2)
    good.streams("POST", "/images/create", DONE)
    bad.streams("POST", "/images/create", _lines({"error": "no space left", "errorDetail": {}}))
    for node in (good, bad):
        await lab.join(node)
    status, lines = await _pull(lab)
    assert status == 200 and lines[-1]["error"] == "node-2: no space left"


async def test_a_pull_that_fails_everywhere_at_once_has_the_nodes_status(lab: Lab) -> None:
    for number in (1, 2):
        node = fake(lab, number)
        node.says("POST", "/images/create", {"message": "pull access denied for busybox"}, 404)
        await lab.join(node)
    assert await lab.ask("POST", "/images/create?fromImage=busybox") == (
        404, {"message": "pull access denied for busybox"},
    )  # fmt: skip


async def test_credentials_reach_every_node(lab: Lab) -> None:
    seen: list[str] = []

    async def reply(call: Call) -> web.StreamResponse:
        seen.append(call.request.headers["X-Registry-Auth"])
        return web.Response(body=DONE)

    for number in (1, 2):
        node = fake(lab, number)
        node.on("POST", "/images/create", reply)
        await lab.join(node)
    async with lab.client.post(f"{API}/images/create?fromImage=x", headers={"X-Registry-Auth": "secret"}) as answer:
        assert answer.status == 200 and b"Digest" in await answer.read()
    assert seen == ["secret", "secret"]


async def test_an_archive_is_loaded_on_every_node_whole(lab: Lab) -> None:
    archive = bytes(range(256)) * 12_000
    for number in (1, 2):
        node = fake(lab, number)
        node.says("POST", "/images/load", {"stream": "Loaded image: busybox:1\n"})
        await lab.join(node)
    async with lab.client.post(f"{API}/images/load?quiet=1", data=io.BytesIO(archive)) as answer:
        assert answer.status == 200 and "Loaded image: busybox:1" in (await answer.read()).decode()
    assert all(node.bodies == [archive] for node in lab.nodes)


async def test_images_are_listed_once_with_all_their_tags(lab: Lab) -> None:
    for number, tag in ((1, "a:1"), (2, "b:1")):
        node = fake(lab, number)
        node.says("GET", "/images/json", [{"Id": "sha256:0", "RepoTags": [tag], "Created": 1, "Containers": number}])
        await lab.join(node)
    [image] = await lab.get("/images/json")
    assert image["RepoTags"] == ["a:1", "b:1"] and image["Containers"] == 2


async def test_an_image_in_use_on_one_node_is_refused_naming_it(lab: Lab) -> None:
    free, busy = fake(lab, 1), fake(lab, 2)
    free.says("DELETE", "/images/{name:path}", [{"Untagged": "busybox:1"}])
    busy.says("DELETE", "/images/{name:path}", {"message": "image is being used by container c1"}, 409)
    for node in (free, busy):
        await lab.join(node)
    status, refused = await lab.ask("DELETE", "/images/busybox:1")
    assert (status, refused["message"]) == (409, "node-2: image is being used by container c1")


# The whole as one engine


async def test_info_adds_the_nodes_up(lab: Lab) -> None:
    for number in (1, 2):
        node = fake(lab, number)
        node.says("GET", "/info", {"Containers": 3, "ContainersRunning": number, "Images": number, "NCPU": 2})
        await lab.join(node)
    await lab.member("down", state=NodeState.DOWN)
    info = await lab.get("/info")
    assert (info["Containers"], info["ContainersRunning"], info["Images"], info["NCPU"]) == (6, 3, 2, 4)
    assert info["MemTotal"] == 8 << 30
    swarm = info["Swarm"]
    assert (swarm["Nodes"], swarm["LocalNodeState"], swarm["ControlAvailable"]) == (3, "active", True)
    assert "JoinTokens" not in str(swarm)


async def test_ping_and_version_tell_the_api_and_the_role(lab: Lab) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        async with lab.client.request(method, "http://manager/_ping") as answer:
            assert await answer.read() == body
            assert (answer.headers["Api-Version"], answer.headers["Swarm"]) == ("1.50", "active/manager")
    version = await lab.get("/version")
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == ("1.50", "1.24", "linux")


async def test_the_socket_is_not_for_everybody(lab: Lab) -> None:
    assert Path(lab.socket).stat().st_mode & 0o007 == 0
