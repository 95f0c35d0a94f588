"""Volume calls over HTTP, as Docker clients send them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from swarmlet.engine_api.router import Router
from swarmlet.engine_api.server import make_app
from swarmlet_agent.api.routes.volumes import VolumeRoutes
from swarmlet_agent.journal import Journal
from swarmlet_agent.volumes.store import VolumeStore

Api = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[VolumeStore]:
    journal = Journal(tmp_path / "journal.db")
    made = VolumeStore(tmp_path, journal)
    await made.start()
    yield made
    journal.close()


@pytest.fixture
async def api(store: VolumeStore) -> AsyncIterator[Api]:
    async with TestServer(make_app(Router(VolumeRoutes(store).routes()))) as server, aiohttp.ClientSession() as session:

        async def call(method: str, path: str, body: Any = None) -> tuple[int, Any]:
            async with session.request(method, server.make_url(path), json=body) as response:
                return response.status, await response.json() if response.status != 204 else None

        yield call


async def test_a_volume_is_created_shown_and_removed(api: Api, store: VolumeStore) -> None:
    status, made = await api("POST", "/v1.50/volumes/create", {"Name": "data", "Labels": {"a": "1"}})

    assert status == 201
    assert made["CreatedAt"].endswith("Z")
    assert "." not in made["CreatedAt"]
    assert {key: made[key] for key in made if key != "CreatedAt"} == {
        "Name": "data",
        "Driver": "local",
        "Mountpoint": str(store.path("data")),
        "Labels": {"a": "1"},
        "Options": None,
        "Scope": "local",
    }
    assert await api("GET", "/volumes/data") == (200, made)
    assert await api("GET", "/volumes") == (200, {"Volumes": [made], "Warnings": None})
    assert await api("DELETE", "/volumes/data") == (204, None)
    assert await api("GET", "/volumes/data") == (404, {"message": "get data: no such volume"})
    assert (await api("DELETE", "/volumes/data"))[0] == 404
    assert (await api("DELETE", "/volumes/data?force=1"))[0] == 204


async def test_a_volume_without_a_name_gets_one_and_the_anonymous_label(api: Api) -> None:
    status, made = await api("POST", "/volumes/create", {})

    assert (status, len(made["Name"]), made["Labels"]) == (201, 64, {"com.docker.volume.anonymous": ""})


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"Name": "../x"}, 400, "includes invalid characters for a local volume name"),
        ({"Name": "data", "Driver": "rexray"}, 404, 'plugin "rexray" not found'),
        ({"Name": "data", "DriverOpts": {"colour": "red"}}, 400, 'invalid option: "colour"'),
        ({"Name": 5}, 400, "invalid JSON"),
        ({"Name": "data", "ClusterVolumeSpec": {}}, 400, "cluster volumes"),
    ],
)
async def test_bad_requests_are_refused_and_make_nothing(api: Api, body: Any, status: int, text: str) -> None:
    got, answer = await api("POST", "/volumes/create", body)

    assert got == status
    assert text in answer["message"]
    assert (await api("GET", "/volumes"))[1]["Volumes"] == []


async def test_a_volume_in_use_is_not_removed(api: Api, store: VolumeStore) -> None:
    await api("POST", "/volumes/create", {"Name": "data"})
    await store.use("data", "c1")

    assert await api("DELETE", "/volumes/data?force=1") == (409, {"message": "remove data: volume is in use - [c1]"})


async def test_prune_spares_named_volumes_from_api_1_42_on(api: Api) -> None:
    await api("POST", "/volumes/create", {"Name": "named"})
    anonymous = (await api("POST", "/volumes/create", {}))[1]["Name"]

    options = {"type": "tmpfs", "device": "tmpfs"}
    assert (await api("POST", "/volumes/create", {"Name": "elsewhere", "DriverOpts": options}))[0] == 201

    assert (await api("POST", "/v1.42/volumes/prune"))[1]["VolumesDeleted"] == [anonymous]
    assert (await api("POST", "/v1.41/volumes/prune"))[1]["VolumesDeleted"] == ["named"]


async def test_updating_is_for_cluster_volumes_only(api: Api) -> None:
    await api("POST", "/volumes/create", {"Name": "data"})

    assert (await api("PUT", "/volumes/data?version=1", {}))[0] == 400
    assert (await api("PUT", "/volumes/none?version=1", {}))[0] == 404
