"""The cluster view: logs of services, and the events of nodes and of the cluster."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import web
from manager_lab import API, Lab, fake_node, frames

from swarmlet.engine_api.router import Call
from swarmlet.engine_api.streams import frame
from swarmlet.model.states import TaskState

# Logs of services


@pytest.fixture
async def talkers(lab: Lab) -> Lab:
    """A service with a task on each of two nodes; each has said a line on both streams."""
    await lab.service("web", 2)
    for number in (1, 2):
        node = fake_node(lab, number)
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
    node = fake_node(lab, 1)
    node.streams("GET", "/containers/{id}/logs", frame(1, b"2024-01-01T00:00:00.000000000Z text with spaces\n"))
    await lab.join(node)
    await lab.task("t1", "web", container="c1")
    _, data = await _logs(lab, "/services/web/logs?stdout=1&details=1&timestamps=1")
    stamp, details, text = frames(data)[0][1].split(b" ", 2)
    assert stamp == b"2024-01-01T00:00:00.000000000Z" and b"task.id=t1" in details and text == b"text with spaces\n"


async def test_a_terminals_lines_are_raw(lab: Lab) -> None:
    await lab.service("term", 1, tty=True)
    node = fake_node(lab, 1)
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
        async with asyncio.timeout(30):
            later = await answer.content.readexactly(2 * 14)
    assert len(frames(first)) == 4 and sorted(frames(later)) == [(1, b"out 2\n"), (2, b"err 2\n")]


async def test_logs_need_a_stream_to_be_chosen(talkers: Lab) -> None:
    status, refused = await talkers.ask("GET", "/services/web/logs")
    assert status == 400 and "choose at least one stream" in refused["message"]


async def test_tasks_that_never_ran_have_no_logs(lab: Lab) -> None:
    await lab.service("web", 1)
    await lab.join(fake_node(lab, 1))
    await lab.task("t1", "web", state=TaskState.PREPARING)
    _, data = await _logs(lab, "/services/web/logs?stdout=1")
    assert data == b"" and not lab.nodes[0].asked


# Events


async def test_events_of_nodes_and_of_the_cluster_are_one_stream(lab: Lab) -> None:
    node = fake_node(lab, 1)
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
        async with asyncio.timeout(30):
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


async def test_the_past_of_several_nodes_comes_in_the_order_of_time_then_what_happens(lab: Lab) -> None:
    began = time.time_ns()
    asked: dict[int, list[dict[str, str]]] = {1: [], 2: []}

    def event(at: int, name: str) -> bytes:
        actor = {"ID": name, "Attributes": {"name": name}}
        return json.dumps({"Type": "container", "Action": "die", "Actor": actor, "timeNano": at}).encode() + b"\n"

    def tells(number: int, past: list[int]) -> None:
        async def reply(call: Call) -> web.StreamResponse:
            asked[number].append(dict(call.request.query))
            response = web.StreamResponse()
            await response.prepare(call.request)
            if call.text("until"):
                for at in past:
                    await response.write(event(began + at, f"c{at}"))
            else:
                await response.write(event(began + 10 + number, f"late-{number}"))
                await asyncio.sleep(30)
            return response

        node.on("GET", "/events", reply)

    for number, past in ((1, [1, 4, 5]), (2, [2, 3, 6])):
        node = fake_node(lab, number)
        tells(number, past)
        await lab.join(node)
    filters = json.dumps({"type": ["container"]})
    since = f"{began // 10**9}.{began % 10**9:09d}"
    async with lab.client.get(f"{API}/events", params={"since": since, "filters": filters}) as answer:
        async with asyncio.timeout(30):
            told = [json.loads(await answer.content.readline())["Actor"]["ID"] for _ in range(8)]
    assert told[:6] == ["c1", "c2", "c3", "c4", "c5", "c6"] and set(told[6:]) == {"late-1", "late-2"}
    for number, last in ((1, 5), (2, 6)):
        first, second = asked[number]
        assert (first["since"], first["filters"], second["filters"]) == (since, filters, filters)
        behind = began + last + 1
        assert "until" not in second and second["since"] == f"{behind // 10**9}.{behind % 10**9:09d}"


async def test_events_of_updates_tell_what_has_changed(lab: Lab) -> None:
    began = time.time()
    await lab.service("web", 1)
    service = lab.control.service("web")
    spec = (await lab.get("/services/web"))["Spec"] | {"Mode": {"Replicated": {"Replicas": 3}}}
    await lab.ask("POST", f"/services/web/update?version={service.version}", spec)
    _, answer = await lab.ask("POST", "/networks/create", {"Name": "back", "Driver": "overlay"})
    await lab.ask("DELETE", "/networks/back")
    query = {"since": f"{began:.9f}", "until": f"{time.time():.9f}", "scope": "swarm"}

    async def told(kind: str) -> list[tuple[str, str, dict[str, str]]]:
        async with lab.client.get(f"{API}/events", params=query | {"filters": json.dumps({"type": [kind]})}) as stream:
            events = [json.loads(line) for line in (await stream.read()).splitlines()]
        return [(event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]) for event in events]

    changes = {"replicas.old": "1", "replicas.new": "3"}
    assert await told("service") == [
        ("create", service.id, {"name": "web"}), ("update", service.id, {"name": "web"} | changes),
    ]  # fmt: skip
    network = answer["Id"]
    assert await told("network") == [("create", network, {"name": "back"}), ("remove", network, {"name": "back"})]
