"""What clients other than the docker command send, and lean on, at the cluster view."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from manager_lab import FakeNode, Lab, Reply

from swarmlet.engine_api.router import Call

CREATE = ("POST", "/containers/create")


async def test_a_service_mode_in_small_letters_is_kept(lab: Lab) -> None:
    template = {"ContainerSpec": {"Image": "busybox"}}
    spec = {"Name": "web", "TaskTemplate": template, "mode": {"replicated": {"replicas": 3}}}
    assert (await lab.ask("POST", "/services/create", spec))[0] == 201
    assert (await lab.get("/services/web"))["Spec"]["Mode"] == {"Replicated": {"Replicas": 3}}

    spec = {"Name": "every", "TaskTemplate": template, "Mode": {"global": {}}}
    assert (await lab.ask("POST", "/services/create", spec))[0] == 201
    assert (await lab.get("/services/every"))["Spec"]["Mode"] == {"Global": {}}


async def test_a_container_reaches_its_node_with_nulls_that_mean_something_and_docker_names(lab: Lab) -> None:
    node = FakeNode("node-1", lab.folder)
    node.says(*CREATE, {"Id": "made", "Warnings": []}, 201)
    await lab.join(node)
    body = {
        "image": "busybox",
        "env": ["constraint:node.hostname==node-1", "A=b"],
        "HostConfig": {"portBindings": {"80/tcp": None}},
        "NetworkingConfig": {"EndpointsConfig": {"back": None}},
    }

    assert (await lab.ask(*CREATE, body))[0] == 201
    assert json.loads(node.bodies[0]) == {
        "Image": "busybox",
        "Env": ["A=b"],
        "HostConfig": {"PortBindings": {"80/tcp": None}},
        "NetworkingConfig": {"EndpointsConfig": {"back": None}},
    }


async def test_a_container_without_a_body_is_refused_before_any_node_is_asked(lab: Lab) -> None:
    node = FakeNode("node-1", lab.folder)
    await lab.join(node)
    status, refused = await lab.ask(*CREATE)
    refusal = {"message": "invalid JSON: got EOF while reading request body"}
    assert (status, refused) == (400, refusal) and not node.asked


@pytest.mark.parametrize("where", ["Networks", "TaskTemplate"])
async def test_a_network_of_every_node_may_be_given_by_the_id_that_one_node_has_of_it(lab: Lab, where: str) -> None:
    for number in (1, 2):
        node = FakeNode(f"node-{number}", lab.folder)
        if number == 2:
            node.says("GET", "/networks/{id}", {"Name": "host", "Id": "abc123"})
        await lab.join(node)
    template = {"ContainerSpec": {"Image": "busybox"}}
    spec = {"Name": "web", "TaskTemplate": template, "Networks": [{"Target": "abc123"}]}
    if where == "TaskTemplate":
        spec = {"Name": "web", "TaskTemplate": {**template, "Networks": [{"Target": "abc123"}]}}

    assert (await lab.ask("POST", "/services/create", spec))[0] == 201
    shown = (await lab.get("/services/web"))["Spec"]
    assert (shown if where == "Networks" else shown["TaskTemplate"])["Networks"] == [{"Target": "host"}]


async def test_a_network_that_is_not_on_every_node_is_refused_as_it_was_named(lab: Lab) -> None:
    node = FakeNode("node-1", lab.folder)
    node.says("GET", "/networks/{id}", {"Name": "mine", "Id": "abc123"})
    await lab.join(node)
    spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}, "Networks": [{"Target": "abc123"}]}}
    status, refused = await lab.ask("POST", "/services/create", spec)
    assert status == 403 and refused["message"].startswith("The network abc123 cannot be used with services.")


async def test_a_build_is_cancelled_wherever_it_runs(lab: Lab) -> None:
    for number in (1, 2):
        node = FakeNode(f"node-{number}", lab.folder)
        node.says("POST", "/build/cancel", None)
        await lab.join(node)

    assert (await lab.ask("POST", "/build/cancel?id=mine"))[0] == 200
    assert all(node.asked == ["POST /v1.50/build/cancel?id=mine"] for node in lab.nodes)
    assert await lab.ask("POST", "/build/cancel") == (400, {"message": "build ID not provided"})


async def test_build_caches_are_pruned_on_every_node(lab: Lab) -> None:
    for number, dropped in ((1, ["a"]), (2, None)):
        node = FakeNode(f"node-{number}", lab.folder)
        node.says("POST", "/build/prune", {"CachesDeleted": dropped, "SpaceReclaimed": 10 * number})
        await lab.join(node)
    assert await lab.ask("POST", "/build/prune?all=1") == (200, {"CachesDeleted": ["a"], "SpaceReclaimed": 30})
    assert all(node.asked == ["POST /v1.50/build/prune?all=1"] for node in lab.nodes)


async def test_a_stacks_tasks_are_found_by_the_label_of_their_service(lab: Lab) -> None:
    await lab.member("node-1")
    for name, labels in (("one_web", {"com.docker.stack.namespace": "one"}), ("other", {"x": "y"})):
        spec = {"Name": name, "Labels": labels, "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}
        assert (await lab.ask("POST", "/services/create", spec))[0] == 201
        await lab.task(f"task-{name}", name)

    async def found(*wanted: str) -> list[str]:
        return [task["ID"] for task in await lab.get("/tasks", filters={"label": list(wanted)})]

    assert await found("com.docker.stack.namespace=one") == ["task-one_web"]
    assert await found("com.docker.stack.namespace") == ["task-one_web"]
    assert await found("com.docker.stack.namespace=two") == [] == await found("x=y", "com.docker.stack.namespace")


async def two_halves(lab: Lab, used: tuple[int, ...] = (1, 2)) -> None:
    """A network "back" on two nodes, each with its own id of it; one container on it on the used ones."""

    def knows(number: int) -> Reply:
        async def reply(call: Call) -> web.StreamResponse:
            if call.params["id"] not in ("back", f"id{number}"):
                return web.json_response({"message": f"network {call.params['id']} not found"}, status=404)
            containers = {f"c{number}": {"Name": "x"}} if number in used else {}
            return web.json_response({"Name": "back", "Id": f"id{number}", "Containers": containers})

        return reply

    for number in (1, 2):
        node = FakeNode(f"node-{number}", lab.folder)
        node.on("GET", "/networks/{id}", knows(number))
        if number in used:
            node.says("DELETE", "/networks/{id}", {"message": "network back has active endpoints"}, 403)
        else:
            node.says("DELETE", "/networks/{id}", None, 204)
        await lab.join(node)


@pytest.mark.parametrize(("ref", "ident"), [("back", "id1"), ("id1", "id1"), ("id2", "id2")])
async def test_a_network_is_shown_with_the_containers_of_all_nodes(lab: Lab, ref: str, ident: str) -> None:
    await two_halves(lab)
    shown = await lab.get(f"/networks/{ref}", verbose="true")
    assert (shown["Id"], sorted(shown["Containers"])) == (ident, ["c1", "c2"])
    assert all("verbose=true" in asked for node in lab.nodes for asked in node.asked)
    assert (await lab.ask("GET", "/networks/nope"))[0] == 404


async def test_a_network_in_use_anywhere_is_removed_nowhere_whichever_id_is_given(lab: Lab) -> None:
    await two_halves(lab, used=(1,))
    status, refused = await lab.ask("DELETE", "/networks/id2")
    assert status == 403 and "active endpoints" in refused["message"]
    assert not [asked for asked in lab.nodes[1].asked if asked.startswith("DELETE")]
