"""The cluster view: where containers are placed, and which node a request about one goes to."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web
from manager_lab import API, Lab, fake_node

from swarmlet.engine_api.router import Call
from swarmlet.model.states import Availability, NodeState
from swarmlet.model.times import parse_rfc3339

CREATE = ("POST", "/containers/create")


async def test_a_container_goes_where_fewest_are(lab: Lab) -> None:
    for number, count in ((1, 3), (2, 1), (3, 2)):
        node = fake_node(lab, number)
        node.says(*CREATE, {"Id": f"made-{number}", "Warnings": []}, 201)
        await lab.join(node)
        lab.inventory.counts[f"node-{number}-id"] = count
    body = {"Image": "busybox", "Env": ["A=b"], "Cmd": ["true"]}
    assert await lab.ask(*CREATE, body, params={"name": "x"}) == (201, {"Id": "made-2", "Warnings": []})
    assert lab.nodes[1].asked == ["POST /v1.50/containers/create?name=x"]
    assert json.loads(lab.nodes[1].bodies[0]) == body and not lab.nodes[0].asked


async def test_constraints_choose_the_node_and_do_not_reach_the_container(lab: Lab) -> None:
    for number, zone in ((1, "east"), (2, "west")):
        node = fake_node(lab, number)
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
        node = fake_node(lab, number)
        has = number == 3
        node.says("GET", "/images/{name:path}/json", {"Id": "sha256:0"} if has else missing, 200 if has else 404)
        node.says(*CREATE, {"Id": "made-3", "Warnings": []} if has else missing, 201 if has else 404)
        await lab.join(node)
    assert await lab.ask(*CREATE, {"Image": "rare"}) == (201, {"Id": "made-3", "Warnings": []})
    lab.nodes[2].says("GET", "/images/{name:path}/json", missing, 404)
    await lab.nodes[2].stop()
    assert await lab.ask(*CREATE, {"Image": "rare"}) == (404, missing)


async def test_a_body_that_was_kept_for_another_attempt_reaches_the_node_whole(lab: Lab) -> None:
    node = fake_node(lab, 1)
    node.says("POST", "/containers/{id}/rename", None, 204)
    node.says("GET", "/containers/{id}/json", {"Id": "web"})
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"
    for _ in range(3):  # what the node was promised and did not get, it would take from the next request
        assert (await lab.ask("POST", "/containers/web/rename?name=other", {"name": "other"}))[0] == 204
        assert json.loads(node.bodies[-1]) == {"name": "other"}
        assert (await lab.ask("GET", "/containers/web/json"))[0] == 200


async def test_a_name_that_another_node_has_is_taken(lab: Lab) -> None:
    for number in (1, 2):
        await lab.join(fake_node(lab, number))
    lab.inventory.nodes["web"] = "node-2-id"
    status, refused = await lab.ask(*CREATE, {"Image": "busybox"}, params={"name": "web"})
    assert status == 409
    taken = (
        'Conflict. The container name "/web" is already in use by container "web-id". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    assert refused["message"] == taken
    lab.inventory.nodes["other"] = "node-1-id"
    status, refused = await lab.ask("POST", "/containers/other/rename?name=web")
    assert (status, refused["message"]) == (409, f"Error when allocating new name: {taken}")
    assert not any(node.asked for node in lab.nodes)


async def test_a_name_on_the_containers_own_node_is_the_nodes_matter(lab: Lab) -> None:
    node = fake_node(lab, 1)
    node.says("POST", "/containers/{id}/rename", {"message": "its words"}, 400)
    await lab.join(node)
    lab.inventory.nodes["web"] = "node-1-id"
    assert await lab.ask("POST", "/containers/web/rename?name=web") == (400, {"message": "its words"})


async def test_a_kill_of_nothing_says_what_was_tried(lab: Lab) -> None:
    unknown = {"message": "No such container: gone"}
    node = fake_node(lab, 1)
    node.says("GET", "/containers/{id}/json", unknown, 404)
    await lab.join(node)
    assert await lab.ask("POST", "/containers/gone/kill") == (
        404, {"message": "cannot kill container: gone: No such container: gone"},
    )
    assert await lab.ask("POST", "/containers/gone/restart") == (404, unknown)


@pytest.mark.parametrize(("kind", "path", "inspect"), [
    ("containers", "/containers/json", "/containers/{id}/json"), ("images", "/images/json", "/images/{name:path}/json"),
])
async def test_before_and_since_reach_every_node_as_times(lab: Lab, kind: str, path: str, inspect: str) -> None:
    at = "2026-01-02T03:04:05.678901234Z"
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("GET", inspect, {"Created": at} if number == 2 else {"message": "none"}, 200 if number == 2 else 404)
        node.says("GET", path, [])
        await lab.join(node)
    lab.inventory.nodes["web"] = "node-2-id"
    filters = json.dumps({"before": ["web"], "label": ["a=b c"]})
    assert await lab.get(path, filters=filters, all="1") == []
    for node in lab.nodes:
        query = parse_qs(urlsplit(node.asked[-1].partition(" ")[2]).query)
        [sent] = query["filters"]
        assert json.loads(sent) == {"before": [f"@{parse_rfc3339(at)}"], "label": ["a=b c"]} and query["all"] == ["1"]
    await lab.nodes[1].stop()
    status, _ = await lab.ask("GET", f"{path}?filters={json.dumps({'since': ['nothing']})}")
    assert status == 404


async def test_lists_are_merged_newest_first_and_say_where(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("GET", "/containers/json", [{"Id": f"c{number}", "Created": number}])
        await lab.join(node)
    listed = await lab.get("/containers/json", all="1")
    assert [(each["Id"], each["Node"]["Name"]) for each in listed] == [("c2", "node-2"), ("c1", "node-1")]
    assert lab.nodes[0].asked == ["GET /v1.50/containers/json?all=1"]
    assert [each["Id"] for each in await lab.get("/containers/json", limit="1")] == ["c2"]
    await lab.nodes[1].stop()
    assert [each["Id"] for each in await lab.get("/containers/json")] == ["c1"]


async def test_a_bad_filter_is_refused_in_the_nodes_words(lab: Lab) -> None:
    node = fake_node(lab, 1)
    node.says("GET", "/containers/json", {"message": "invalid filter 'bogus'"}, 400)
    await lab.join(node)
    assert await lab.ask("GET", "/containers/json?filters=x") == (400, {"message": "invalid filter 'bogus'"})


async def test_a_request_goes_to_the_node_that_has_the_container(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("POST", "/containers/{id}/kill", {"by": number})
        await lab.join(node)
    lab.inventory.nodes["web"] = "node-2-id"
    assert await lab.ask("POST", "/containers/web/kill?signal=HUP") == (200, {"by": 2})
    assert lab.nodes[1].asked == ["POST /v1.50/containers/web/kill?signal=HUP"] and not lab.nodes[0].asked


async def test_a_container_nobody_told_of_is_looked_for_everywhere(lab: Lab) -> None:
    unknown = {"message": "No such container: new"}
    for number in (1, 2):
        node = fake_node(lab, number)
        has = number == 2
        node.says("GET", "/containers/{id}/json", {"Id": "new"} if has else unknown, 200 if has else 404)
        node.says("POST", "/containers/{id}/start", {})
        await lab.join(node)
    assert (await lab.ask("POST", "/containers/new/start"))[0] == 200
    assert lab.nodes[1].asked[-1] == "POST /v1.50/containers/new/start"
    await lab.nodes[1].stop()
    assert await lab.ask("POST", "/containers/new/start") == (404, unknown)


async def test_status_headers_and_body_come_back_as_the_node_gave_them(lab: Lab) -> None:
    node = fake_node(lab, 1)

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
    node, seen = fake_node(lab, 1), asyncio.Event()
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
        async with asyncio.timeout(30):
            await seen.wait()
        yield b"second"

    async with lab.client.put(f"{API}/containers/web/archive?path=/", data=body()) as answer:
        assert answer.status == 200
    assert b"".join(got) == b"firstsecond"


async def test_an_answer_is_streamed_and_a_node_that_dies_in_it_cuts_it_off(lab: Lab) -> None:
    node = fake_node(lab, 1)

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
        node = fake_node(lab, number)
        node.says("POST", "/containers/{id}/exec", {"Id": f"exec-{number}"}, 201)
        node.says("GET", "/exec/{id}/json", {"ID": f"exec-{number}", "ExitCode": number})
        await lab.join(node)
    lab.inventory.nodes["web"] = "node-2-id"
    assert await lab.ask("POST", "/containers/web/exec", {"Cmd": ["true"]}) == (201, {"Id": "exec-2"})
    assert json.loads(lab.nodes[1].bodies[0]) == {"Cmd": ["true"]}
    assert (await lab.get("/exec/exec-2/json"))["ExitCode"] == 2 and not lab.nodes[0].asked
