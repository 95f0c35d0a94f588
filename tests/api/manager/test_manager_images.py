"""The cluster view: images of all nodes as those of one engine."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web
from manager_lab import API, Lab, fake_node

from swarmlet.engine_api.router import Call
from swarmlet.model.states import Availability


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
        node = fake_node(lab, number)
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
        node = fake_node(lab, number)
        node.on("POST", "/images/create", slow)
        await lab.join(node)
    async with lab.client.post(f"{API}/images/create?fromImage=busybox") as answer:
        async with asyncio.timeout(30):
            seen: set[tuple[str, int, int]] = set()
            while len({name for name, current, _ in seen if current == 10}) < 2:
                line = json.loads(await answer.content.readline())
                seen.add((line["id"], line["progressDetail"]["current"], line["progressDetail"]["total"]))
        gate.set()
        assert "Digest" in (await answer.read()).decode()
    assert {("node-1", 10, 20), ("node-2", 10, 20)} <= seen


async def test_a_pull_that_fails_on_one_node_says_which(lab: Lab) -> None:
    good, bad = fake_node(lab, 1), fake_node(lab, 2)
    good.streams("POST", "/images/create", DONE)
    bad.streams("POST", "/images/create", _lines({"error": "no space left", "errorDetail": {}}))
    for node in (good, bad):
        await lab.join(node)
    status, lines = await _pull(lab)
    assert status == 200 and lines[-1]["error"] == "node-2: no space left"


async def test_a_pull_that_fails_everywhere_at_once_has_the_nodes_status(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
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
        node = fake_node(lab, number)
        node.on("POST", "/images/create", reply)
        await lab.join(node)
    async with lab.client.post(f"{API}/images/create?fromImage=x", headers={"X-Registry-Auth": "secret"}) as answer:
        assert answer.status == 200 and b"Digest" in await answer.read()
    assert seen == ["secret", "secret"]


async def test_an_archive_is_loaded_on_every_node_whole(lab: Lab) -> None:
    archive = bytes(range(256)) * 12_000
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("POST", "/images/load", {"stream": "Loaded image: busybox:1\n"})
        await lab.join(node)
    async with lab.client.post(f"{API}/images/load?quiet=1", data=io.BytesIO(archive)) as answer:
        assert answer.status == 200 and "Loaded image: busybox:1" in (await answer.read()).decode()
    assert all(node.bodies == [archive] for node in lab.nodes)


async def test_an_archive_that_is_none_is_told_in_the_stream_and_one_node_that_cannot_take_it_by_name(lab: Lab) -> None:
    broken = {"errorDetail": {"message": "invalid archive"}, "error": "invalid archive"}
    for number in (1, 2):
        node = fake_node(lab, number)
        node.streams("POST", "/images/load", _lines(broken))
        await lab.join(node)
    async with lab.client.post(f"{API}/images/load", data=io.BytesIO(b"x")) as answer:
        assert answer.status == 200 and json.loads(await answer.read()) == broken
    node = fake_node(lab, 3)
    node.streams("POST", "/images/load", _lines({"stream": "Loaded image: busybox:1\n"}))
    await lab.join(node)
    async with lab.client.post(f"{API}/images/load", data=io.BytesIO(b"x")) as answer:
        first, last = (json.loads(line) for line in (await answer.read()).splitlines())
    assert first == {"stream": "Loaded image: busybox:1\n"}
    assert last["error"] == "node-1: invalid archive; node-2: invalid archive"


async def test_images_are_listed_once_with_all_their_tags(lab: Lab) -> None:
    for number, tag in ((1, "a:1"), (2, "b:1")):
        node = fake_node(lab, number)
        node.says("GET", "/images/json", [{"Id": "sha256:0", "RepoTags": [tag], "Created": 1, "Containers": number}])
        await lab.join(node)
    [image] = await lab.get("/images/json")
    assert image["RepoTags"] == ["a:1", "b:1"] and image["Containers"] == 2


async def test_an_image_in_use_on_one_node_is_refused_naming_it(lab: Lab) -> None:
    free, busy = fake_node(lab, 1), fake_node(lab, 2)
    free.says("DELETE", "/images/{name:path}", [{"Untagged": "busybox:1"}])
    busy.says("DELETE", "/images/{name:path}", {"message": "image is being used by container c1"}, 409)
    for node in (free, busy):
        await lab.join(node)
    status, refused = await lab.ask("DELETE", "/images/busybox:1")
    assert (status, refused["message"]) == (409, "node-2: image is being used by container c1")


async def test_a_repository_without_latest_is_saved_from_a_node_that_has_a_tag_of_it(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("GET", "/images/{name:path}/json", {"message": "No such image: app:latest"}, 404)
        node.says("GET", "/images/json", [{"Id": "sha256:1"}] if number == 2 else [])
        node.says("GET", "/images/{name:path}/get", {"by": number})
        await lab.join(node)
    assert await lab.ask("GET", "/images/app/get") == (200, {"by": 2})
    asked = {"filters": ['{"reference": ["app"]}']}
    assert parse_qs(urlsplit(lab.nodes[0].asked[-1].split()[1]).query) == asked
