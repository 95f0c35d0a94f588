"""The cluster view: containers that other containers or volumes tie to a node, and where volumes are made."""

from __future__ import annotations

import json
from typing import Any

import pytest
from manager_lab import Lab, fake_node

from swarmlet.model.states import Availability, NodeState

CREATE = ("POST", "/containers/create")
VOLUME = ("POST", "/volumes/create")


async def _nodes(
    lab: Lab, *, volumes: dict[str, set[int]] | None = None, refusing: set[int] | None = None,
    creating: tuple[str, int] = ("", 201),
) -> None:  # fmt: skip
    """Three nodes, node-1 with fewest containers. volumes: name -> the numbers of the nodes that have it; refusing:
    those that make none; creating: the message and status of nodes that are to create a container."""
    message, status = creating
    for number in (1, 2, 3):
        node = fake_node(lab, number)
        node.says(*CREATE, {"message": message} if message else {"Id": f"made-{number}", "Warnings": []}, status)
        node.says("GET", "/containers/{id}/json", {"message": "No such container: ghost"}, 404)
        refuses = number in (refusing or set())
        node.says(*VOLUME, {"message": "no"} if refuses else {"Name": "x"}, 409 if refuses else 201)
        for name, having in (volumes or {}).items():
            has = number in having
            node.says("GET", f"/volumes/{name}", {"Name": name}, 200 if has else 404)
        node.says("DELETE", "/volumes/{name}", None, 204)
        await lab.join(node)
        lab.inventory.counts[f"node-{number}-id"] = number


def _made(lab: Lab, what: str = "POST /v1.50/volumes/create") -> list[str]:
    return [node.name for node in lab.nodes if any(text.startswith(what) for text in node.asked)]


@pytest.mark.parametrize(
    "body",
    [
        {"HostConfig": {"NetworkMode": "container:web"}},
        {"HostConfig": {"PidMode": "container:web-id"}},
        {"HostConfig": {"IpcMode": "container:web"}},
        {"HostConfig": {"VolumesFrom": ["/web:ro"]}},
        {"HostConfig": {"Links": ["web:db"]}},
        {"NetworkingConfig": {"EndpointsConfig": {"net": {"Links": ["web:db"]}, "other": None}}},
    ],
    ids=["network", "pid", "ipc", "volumes", "link", "network link"],
)
async def test_what_shares_something_with_a_container_goes_where_that_is(lab: Lab, body: dict[str, Any]) -> None:
    await _nodes(lab)
    lab.inventory.nodes |= {"web": "node-3-id", "web-id": "node-3-id"}
    assert await lab.ask(*CREATE, {"Image": "busybox"} | body) == (201, {"Id": "made-3", "Warnings": []})


async def test_a_companion_may_be_on_a_node_that_takes_no_other_work(lab: Lab) -> None:
    node = fake_node(lab, 1)
    node.says(*CREATE, {"Id": "made", "Warnings": []}, 201)
    await lab.join(node, availability=Availability.DRAIN)
    await lab.member("gone", state=NodeState.DOWN)
    lab.inventory.nodes |= {"web": "node-1-id", "lost": "gone-id"}
    body: dict[str, Any] = {"Image": "busybox", "HostConfig": {"VolumesFrom": ["web"]}}
    assert (await lab.ask(*CREATE, body))[0] == 201
    status, refused = await lab.ask(*CREATE, body | {"HostConfig": {"VolumesFrom": ["lost"]}})
    assert status == 503 and "node gone is not reachable: it is down" in refused["message"]


async def test_companions_on_different_nodes_and_constraints_against_them_are_refused(lab: Lab) -> None:
    await _nodes(lab)
    lab.inventory.nodes |= {"web": "node-3-id", "db": "node-2-id"}
    body: dict[str, Any] = {"Image": "busybox", "HostConfig": {"VolumesFrom": ["web"], "Links": ["db:db"]}}
    assert await lab.ask(*CREATE, body) == (503, {
        "message": "no node can take the container: it goes with containers of different nodes: "
        "web on node-3, db on node-2"
    })
    body = {"Image": "busybox", "HostConfig": {"Links": ["db:db"]}, "Env": ["constraint:node.hostname==node-3"]}
    status, refused = await lab.ask(*CREATE, body)
    assert status == 503 and "scheduling constraints not satisfied on 1 node" in refused["message"]


async def test_a_companion_that_nobody_has_is_the_engines_to_refuse(lab: Lab) -> None:
    words = "could not get container for ghost: No such container: ghost"
    await _nodes(lab, creating=(words, 400))
    body = {"Image": "busybox", "HostConfig": {"Links": ["ghost:x"]}}
    assert await lab.ask(*CREATE, body) == (400, {"message": words})


@pytest.mark.parametrize(
    "host",
    [
        {"Binds": ["data:/data:ro", "/etc:/host"]},
        {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/data"}]},
    ],
    ids=["bind", "mount"],
)
async def test_a_container_goes_where_its_volumes_are(lab: Lab, host: dict[str, Any]) -> None:
    await _nodes(lab, volumes={"data": {2, 3}})
    assert await lab.ask(*CREATE, {"Image": "busybox", "HostConfig": host}) == (201, {"Id": "made-2", "Warnings": []})


async def test_more_volumes_outweigh_fewer_and_constraints_outweigh_volumes(lab: Lab) -> None:
    await _nodes(lab, volumes={"a": {2, 3}, "b": {3}, "new": set()})
    body: dict[str, Any] = {"Image": "busybox", "HostConfig": {"Binds": ["a:/a", "b:/b", "new:/new"]}}
    assert (await lab.ask(*CREATE, body))[1]["Id"] == "made-3"
    assert (await lab.ask(*CREATE, body | {"Env": ["constraint:node.hostname==node-1"]}))[1]["Id"] == "made-1"
    body["HostConfig"] = {"Binds": ["new:/new"]}
    assert (await lab.ask(*CREATE, body))[1]["Id"] == "made-1"


async def test_where_the_volume_is_a_missing_image_is_pulled_and_not_looked_for_elsewhere(lab: Lab) -> None:
    missing = "No such image: rare:latest"
    await _nodes(lab, volumes={"data": {2}}, creating=(missing, 404))
    body = {"Image": "rare", "HostConfig": {"Binds": ["data:/d"]}}
    assert await lab.ask(*CREATE, body) == (404, {"message": missing})
    assert _made(lab, "POST /v1.50/containers/create") == ["node-2"]


async def test_a_volume_is_made_on_one_node_and_found_there_when_it_is_made_again(lab: Lab) -> None:
    await _nodes(lab, volumes={"new": set(), "old": {3}})
    assert (await lab.ask(*VOLUME, {"Name": "new"}))[0] == 201 and _made(lab) == ["node-1"]
    assert (await lab.ask(*VOLUME, {}))[0] == 201 and _made(lab) == ["node-1"]
    assert (await lab.ask(*VOLUME, {"Name": "old"}))[0] == 201 and _made(lab) == ["node-1", "node-3"]


async def test_a_volume_that_names_where_its_data_are_is_made_everywhere_under_one_name(lab: Lab) -> None:
    await _nodes(lab)
    body = {"Driver": "local", "DriverOpts": {"type": "nfs", "device": ":/export", "o": "addr=192.0.2.1"}}
    assert (await lab.ask(*VOLUME, body))[0] == 201 and _made(lab) == ["node-1", "node-2", "node-3"]
    names = {json.loads(node.bodies[-1])["Name"] for node in lab.nodes}
    assert len(names) == 1 and len(names.pop()) == 64


async def test_where_one_node_refuses_what_was_there_before_stays(lab: Lab) -> None:
    await _nodes(lab, volumes={"x": {2}}, refusing={3})
    body = {"Name": "x", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}}
    assert await lab.ask(*VOLUME, body) == (409, {"message": "node-3: no"})
    assert _made(lab, "DELETE /v1.50/volumes/x") == [] and _made(lab, "DELETE /volumes/x") == ["node-1"]


async def test_a_volume_nobody_can_take_is_refused(lab: Lab) -> None:
    assert await lab.ask(*VOLUME, {"Name": "x"}) == (
        503, {"message": "no node can take the volume: none is ready and active"}
    )
    status, refused = await lab.ask(*VOLUME, {"Name": 5})
    assert status == 400 and "Name" in refused["message"]


async def test_what_a_link_calls_a_container_is_where_the_linking_one_is(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("DELETE", "/containers/{id:path}", None, 204)
        await lab.join(node)
    lab.inventory.nodes |= {"web": "node-2-id"}

    assert (await lab.ask("DELETE", "/containers/web/store?link=1"))[0] == 204

    assert [node.asked for node in lab.nodes] == [[], ["DELETE /v1.50/containers/web/store?link=1"]]
