"""The cluster view: logs of services, and the events of nodes and of the cluster."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web
from manager_lab import API, Lab, fake_node, frames

from swarmlet.engine_api.router import Call
from swarmlet.engine_api.streams import frame
from swarmlet.model.states import TaskState
from swarmlet_manager.state import Delete

# Logs of services

STAMPS = [f"2024-01-01T00:0{minute}:00.000000000Z".encode() for minute in range(10)]
KIND = "application/vnd.docker.multiplexed-stream"
INCOMPLETE = (
    "Error grabbing logs: warning: incomplete log stream. some logs could not be retrieved for the following reasons: "
)


def said(stream: int, text: str, at: int = 0) -> bytes:
    """A line as a node tells it when it is asked for times."""
    return frame(stream, STAMPS[at] + b" " + text.encode())


class Talker:
    """A container's log on a node, told in answers that a test writes: each is pieces, and how it ends."""

    def __init__(self, *answers: tuple[bytes, str]) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, str]] = []

    async def __call__(self, call: Call) -> web.StreamResponse:
        self.asked.append(dict(call.query))
        data, end = self._answers.pop(0) if self._answers else (b"", "over")
        response = web.StreamResponse(headers={"Content-Type": KIND})
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        if data:
            await response.write(data)
        if end == "cut":
            assert call.request.transport is not None
            # Closed, not aborted: what was written arrives.
            call.request.transport.close()
            return response
        if end == "open":
            await asyncio.Event().wait()
        await response.write_eof()
        return response


async def talking(
    lab: Lab, *answers: tuple[bytes, str], state: TaskState = TaskState.RUNNING, **more: Any
) -> Talker:
    """A service of one task, whose node answers so."""
    await lab.service("web", 1, **more)
    node, talker = fake_node(lab, 1), Talker(*answers)
    node.on("GET", "/containers/{id}/logs", talker)
    await lab.join(node)
    await lab.task("t1", "web", container="c1", state=state)
    return talker


async def forget(lab: Lab, *tasks: str) -> None:
    """The service is removed, and what ran for it has ended."""
    state = lab.store.state
    await lab.store.commit([*(Delete(state.tasks[ident]) for ident in tasks), Delete(state.find_service("web"))])


@pytest.fixture
async def talkers(lab: Lab) -> Lab:
    """A service with a task on each of two nodes; each has said a line on both streams."""
    await lab.service("web", 2)
    for number in (1, 2):
        node = fake_node(lab, number)

        async def reply(call: Call, number: int = number) -> web.StreamResponse:
            line = said if call.flag("timestamps") else lambda stream, text: frame(stream, text.encode())
            data = line(1, f"out {number}\n") + line(2, f"err {number}\n")
            response = web.StreamResponse()
            await response.prepare(call.request)
            for piece in (data[:5], data[5:]):
                await response.write(piece)
            return response

        node.on("GET", "/containers/{id}/logs", reply)
        await lab.join(node)
        await lab.task(f"t{number}", "web", slot=number, node=f"node-{number}-id", container=f"c{number}")
    return lab


async def _logs(lab: Lab, path: str) -> tuple[str, bytes]:
    async with lab.client.get(API + path) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.read()


async def test_logs_of_all_tasks_are_one_multiplexed_stream(talkers: Lab) -> None:
    kind, data = await _logs(talkers, "/services/web/logs?stdout=1&stderr=1&tail=5&timestamps=0")
    assert kind == KIND
    assert sorted(frames(data)) == [(1, b"out 1\n"), (1, b"out 2\n"), (2, b"err 1\n"), (2, b"err 2\n")]
    asked = talkers.nodes[0].asked[0]
    assert asked.startswith("GET /containers/c1/logs?") and "tail=5" in asked and "stdout=1" in asked


async def test_details_say_which_task_a_line_is_from(talkers: Lab) -> None:
    _, data = await _logs(talkers, "/tasks/t1/logs?stdout=1&details=1")
    service = talkers.control.service("web").id
    own = f"com.docker.swarm.node.id=node-1-id,com.docker.swarm.service.id={service},com.docker.swarm.task.id=t1"
    assert frames(data)[0] == (1, f"{own} out 1\n".encode())
    assert not talkers.nodes[1].asked


async def test_details_stand_behind_the_timestamp_and_in_every_piece_of_a_line(lab: Lab) -> None:
    pieces = said(1, "text with ") + frame(1, b"spaces\n")
    await talking(lab, (pieces, "over"), (pieces, "over"))
    _, data = await _logs(lab, "/services/web/logs?stdout=1&details=1&timestamps=1")
    heads = [text.split(b" ", 2) for _, text in frames(data)]
    assert [head[0] for head in heads] == [STAMPS[0]] * 2 and all(b"task.id=t1" in head[1] for head in heads)
    assert [head[2] for head in heads] == [b"text with ", b"spaces\n"]
    _, data = await _logs(lab, "/services/web/logs?stdout=1&timestamps=1")
    assert frames(data) == [(1, STAMPS[0] + b" text with "), (1, b"spaces\n")]


async def test_a_terminals_lines_are_raw(lab: Lab) -> None:
    await talking(lab, (b"one\r\ntwo\r\n$ ", "over"), tty=True)
    assert await _logs(lab, "/services/web/logs?stdout=1") == (
        "application/vnd.docker.raw-stream", b"one\r\ntwo\r\n$ "
    )  # fmt: skip


async def test_a_terminals_line_may_be_as_long_as_it_likes(lab: Lab) -> None:
    line = b"." * 1_000_000
    await talking(lab, (line, "over"), (STAMPS[0] + b" " + line + b"\n", "over"), tty=True)
    assert (await _logs(lab, "/services/web/logs?stdout=1"))[1] == line
    assert (await _logs(lab, "/services/web/logs?stdout=1&timestamps=1"))[1] == STAMPS[0] + b" " + line + b"\n"


async def test_a_node_that_is_away_costs_only_its_own_lines_and_that_is_told_at_the_end(talkers: Lab) -> None:
    await talkers.nodes[0].stop()
    _, data = await _logs(talkers, "/services/web/logs?stdout=1&stderr=1")
    *lines, (stream, text) = frames(data)
    assert sorted(lines) == [(1, b"out 2\n"), (2, b"err 2\n")]
    assert stream == 3 and text.decode().startswith(f"{INCOMPLETE}task t1: node node-1 (127.0.0.1) is not reachable")


@pytest.mark.parametrize(
    ("data", "end"),
    [(frame(1, b"one\n"), "cut"), (frame(1, b"one\n") + frame(1, b"two\n")[:3], "over"),
     (frame(1, b"one\n") + frame(1, b"two\n")[:10], "over"), (frame(1, b"one\n") + b"\1\0\0\0\x7f\0\0\0", "over")],
    ids=["cut between lines", "within a head", "within a line", "an absurd length"],
)  # fmt: skip
async def test_an_answer_that_ends_too_early_is_told(lab: Lab, data: bytes, end: str) -> None:
    await talking(lab, (data, end))
    _, told = await _logs(lab, "/services/web/logs?stdout=1")
    first, (stream, text) = frames(told)
    assert first == (1, b"one\n") and stream == 3 and text.decode().startswith(f"{INCOMPLETE}task t1: ")


async def test_a_followed_log_goes_on_where_it_broke_off(lab: Lab) -> None:
    talker = await talking(
        lab, (said(1, "a\n") + said(1, "b\n", 1) + said(1, "c\n", 1) + said(2, "d\n", 2)[:20], "cut"),
        (said(1, "b\n", 1) + said(1, "c\n", 1) + said(1, "C\n", 1) + said(2, "d\n", 2), "open"),
    )  # fmt: skip
    async with lab.client.get(f"{API}/services/web/logs?stdout=1&stderr=1&follow=1&tail=9") as answer:
        async with asyncio.timeout(30):
            told = frames(await answer.content.readexactly(5 * 10))
    assert told == [(1, b"a\n"), (1, b"b\n"), (1, b"c\n"), (1, b"C\n"), (2, b"d\n")]
    first, second = talker.asked
    assert (first["tail"], first.get("since")) == ("9", None)
    # A minute before the last line, for one that began earlier and ended later.
    assert (second.get("tail"), second["since"]) == (None, f"{1704067200}.000000000")


async def test_a_long_line_goes_on_within_itself(lab: Lab) -> None:
    begin, end = said(1, "x" * 1000), frame(1, b"y\n")
    await talking(lab, (begin, "cut"), (begin + end, "open"))
    async with lab.client.get(f"{API}/services/web/logs?stdout=1&follow=1") as answer, asyncio.timeout(30):
        assert frames(await answer.content.readexactly(8 + 1000 + 10)) == [(1, b"x" * 1000), (1, b"y\n")]


async def test_a_followed_task_whose_log_ends_before_it_does_is_asked_again(lab: Lab) -> None:
    talker = await talking(lab, (b"", "over"), (said(1, "late\n"), "open"))
    async with lab.client.get(f"{API}/services/web/logs?stdout=1&follow=1&tail=0") as answer, asyncio.timeout(30):
        assert frames(await answer.content.readexactly(13)) == [(1, b"late\n")]
    first, second = talker.asked
    # None of the lines there were at first was wanted, and all that have come since.
    assert first["tail"] == "0" and "tail" not in second
    assert abs(float(second["since"]) - time.time()) < 3600


async def test_a_followed_task_that_has_ended_is_not_asked_again_and_the_stream_ends_with_its_service(lab: Lab) -> None:
    talker = await talking(lab, (said(1, "bye\n"), "over"), state=TaskState.COMPLETE)
    async with lab.client.get(f"{API}/services/web/logs?stdout=1&follow=1") as answer, asyncio.timeout(30):
        first = await answer.content.readexactly(12)
        await forget(lab, "t1")
        assert frames(first + await answer.read()) == [(1, b"bye\n")]
    assert len(talker.asked) == 1


async def test_what_a_lost_node_had_still_to_tell_is_told_of_when_its_task_is_forgotten(lab: Lab) -> None:
    await talking(lab, (said(1, "one\n"), "open"))
    async with lab.client.get(f"{API}/services/web/logs?stdout=1&follow=1") as answer, asyncio.timeout(30):
        first = await answer.content.readexactly(12)
        await lab.nodes[0].stop()
        await forget(lab, "t1")
        line, (stream, text) = frames(first + await answer.read())
    assert line == (1, b"one\n") and stream == 3 and text.decode().startswith(f"{INCOMPLETE}task t1: ")


async def test_followed_logs_take_in_tasks_that_come_later_from_their_beginning(talkers: Lab) -> None:
    async with talkers.client.get(f"{API}/services/web/logs?stdout=1&stderr=1&follow=1&tail=2") as answer:
        first = await answer.content.readexactly(4 * 14)
        await talkers.task("t3", "web", slot=3, node="node-2-id", container="c3")
        async with asyncio.timeout(30):
            later = await answer.content.readexactly(2 * 14)
    assert len(frames(first)) == 4 and sorted(frames(later)) == [(1, b"out 2\n"), (2, b"err 2\n")]
    asked = next(line for line in talkers.nodes[1].asked if "/c3/" in line)
    assert "tail" not in asked


async def test_a_log_that_went_with_its_container_is_no_fault(lab: Lab) -> None:
    await lab.service("web", 1)
    node = fake_node(lab, 1)
    node.says("GET", "/containers/{id}/logs", {"message": "No such container: c1"}, 404)
    await lab.join(node)
    await lab.task("t1", "web", container="c1", state=TaskState.SHUTDOWN)
    assert (await _logs(lab, "/services/web/logs?stdout=1"))[1] == b""


async def test_a_driver_that_keeps_no_log_is_told(lab: Lab) -> None:
    await lab.service("web", 1)
    node = fake_node(lab, 1)
    text = "configured logging driver does not support reading"
    node.says("GET", "/containers/{id}/logs", {"message": text}, 501)
    await lab.join(node)
    await lab.task("t1", "web", container="c1")
    assert frames((await _logs(lab, "/services/web/logs?stdout=1"))[1]) == [
        (3, f"{INCOMPLETE}task t1: {text}\n".encode())
    ]


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "choose at least one stream"), ("?stdout=1&since=yesterday", 'invalid value for "since"'),
     ("?stdout=1&tail=few", "tail value must be a positive integer"), ("?stdout=1&tail=-1", "negative tail values")],
)  # fmt: skip
async def test_logs_that_cannot_be_meant_are_refused(talkers: Lab, query: str, words: str) -> None:
    status, refused = await talkers.ask("GET", f"/services/web/logs{query}")
    assert status == 400 and words in refused["message"]


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
