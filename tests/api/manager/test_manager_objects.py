"""Services, tasks, nodes and the cluster itself over HTTP: shapes, filters, versions and refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from manager_lab import Lab
from msgspec.structs import replace

from swarmlet.model.states import Availability, NodeState, Role, TaskState
from swarmlet.model.task import TaskStatus
from swarmlet_manager.state import Put

SPEC: dict[str, Any] = {
    "Name": "web",
    "Labels": {"tier": "front"},
    "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}},
    "Mode": {"Replicated": {"Replicas": 2}},
}


# Services


async def test_a_created_service_is_inspected_as_it_was_given(lab: Lab) -> None:
    status, made = await lab.ask("POST", "/services/create", SPEC)
    assert status == 201 and set(made) == {"ID", "Warnings"}

    for ref in (made["ID"], made["ID"][:8], "web"):
        shown = await lab.get(f"/services/{ref}")
        assert shown["ID"] == made["ID"]
        assert shown["Spec"] == SPEC | {
            "TaskTemplate": {
                "ContainerSpec": {"Image": "busybox", "Isolation": "default"}, "ForceUpdate": 0, "Runtime": "container",
            }
        }
        assert shown["Version"]["Index"] > 0 and shown["CreatedAt"] == shown["UpdatedAt"]


async def test_defaults_are_shown_when_they_are_asked_for(lab: Lab) -> None:
    await lab.service()
    plain, full = await lab.get("/services/web"), await lab.get("/services/web", insertDefaults="true")

    assert "UpdateConfig" not in plain["Spec"] and "RestartPolicy" not in plain["Spec"]["TaskTemplate"]
    assert full["Spec"]["TaskTemplate"]["RestartPolicy"] == {
        "Condition": "any", "Delay": 5_000_000_000, "MaxAttempts": 0,
    }  # fmt: skip
    assert full["Spec"]["UpdateConfig"]["Order"] == "stop-first"
    assert full["Spec"]["TaskTemplate"]["Placement"] == {} == full["Spec"]["TaskTemplate"]["Resources"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["db", "web", "webhook"]),
        ({"name": ["web"]}, ["web", "webhook"]),
        ({"name": ["db", "webh"]}, ["db", "webhook"]),
        ({"label": ["tier"]}, ["web"]),
        ({"label": ["tier=front"]}, ["web"]),
        ({"label": ["tier=back"]}, []),
        ({"mode": ["global"]}, ["db"]),
        ({"mode": ["replicated"]}, ["web", "webhook"]),
        ({"id": ["no-such-id"]}, []),
        ({"runtime": ["plugin"]}, []),
        ({"name": {"db": True, "web": False}}, ["db"]),  # the form of older clients
    ],
)
async def test_services_are_filtered(lab: Lab, filters: dict[str, Any], found: list[str]) -> None:
    await lab.ask("POST", "/services/create", SPEC)
    await lab.ask("POST", "/services/create", SPEC | {"Name": "webhook", "Labels": {}})
    await lab.ask("POST", "/services/create", SPEC | {"Name": "db", "Labels": {}, "Mode": {"Global": {}}})

    listed = await lab.get("/services", filters=filters)
    assert [service["Spec"]["Name"] for service in listed] == found
    assert all("ServiceStatus" not in service for service in listed)


async def test_status_counts_running_and_wanted_tasks(lab: Lab) -> None:
    await lab.service("web", 3)
    await lab.task("t1", "web", slot=1)
    await lab.task("t2", "web", slot=2, state=TaskState.PREPARING)
    await lab.task("t3", "web", slot=2, state=TaskState.FAILED, desired=TaskState.SHUTDOWN)
    await lab.task("t4", "web", slot=3, state=TaskState.COMPLETE, desired=TaskState.SHUTDOWN)

    [listed] = await lab.get("/services", status="true")
    assert listed["ServiceStatus"] == {"RunningTasks": 1, "DesiredTasks": 3, "CompletedTasks": 1}


async def test_an_update_makes_a_new_version_and_keeps_the_previous_spec(lab: Lab) -> None:
    await lab.ask("POST", "/services/create", SPEC)
    before = await lab.get("/services/web")
    index = before["Version"]["Index"]
    changed = before["Spec"] | {"Mode": {"Replicated": {"Replicas": 5}}}
    assert await lab.ask("POST", f"/services/web/update?version={index}", changed) == (200, {"Warnings": None})

    after = await lab.get("/services/web")
    assert after["Version"]["Index"] > index
    assert after["Spec"]["Mode"] == {"Replicated": {"Replicas": 5}} and after["PreviousSpec"] == before["Spec"]
    status, refused = await lab.ask("POST", f"/services/web/update?version={index}", changed)
    assert (status, refused["message"]) == (500, "rpc error: code = Unknown desc = update out of sequence")

    index = after["Version"]["Index"]
    status, _ = await lab.ask("POST", f"/services/web/update?version={index}&rollback=previous", after["Spec"])
    assert status == 200
    assert (await lab.get("/services/web"))["Spec"] == before["Spec"]


async def test_of_two_updates_at_the_same_version_one_wins(lab: Lab) -> None:
    await lab.ask("POST", "/services/create", SPEC)
    before = await lab.get("/services/web")
    path = f"/services/web/update?version={before['Version']['Index']}"
    answers = await asyncio.gather(
        *(lab.ask("POST", path, before["Spec"] | {"Labels": {"who": str(number)}}) for number in range(5))
    )
    assert sorted(status for status, _ in answers) == [200, 500, 500, 500, 500]
    winner = next(number for number, (status, _) in enumerate(answers) if status == 200)
    assert (await lab.get("/services/web"))["Spec"]["Labels"] == {"who": str(winner)}


async def test_a_removed_service_is_gone_for_clients_and_its_name_is_free(lab: Lab) -> None:
    await lab.service()
    await lab.task("t1", "web")
    assert await lab.ask("DELETE", "/services/web") == (200, b"")
    assert (await lab.ask("GET", "/services/web"))[0] == 404
    assert (await lab.ask("DELETE", "/services/web"))[0] == 404
    assert await lab.get("/services") == []
    assert (await lab.ask("POST", "/services/create", SPEC))[0] == 201


async def test_credentials_given_with_a_service_are_never_shown(lab: Lab) -> None:
    secret = "eyJ1c2VybmFtZSI6ImFubmEiLCJwYXNzd29yZCI6InNlc2FtZSJ9"
    status, made = await lab.ask("POST", "/services/create", SPEC, headers={"X-Registry-Auth": secret})
    assert status == 201
    shown = str(await lab.get(f"/services/{made['ID']}")) + str(await lab.get("/services"))
    assert secret not in shown and "sesame" not in shown


# Tasks


@pytest.fixture
async def tasks(lab: Lab) -> Lab:
    """Two services on two nodes: web.1 runs, web.2 has failed once and waits, db.1 runs."""
    await lab.member("node-1")
    await lab.member("node-2")
    await lab.service("web", 2)
    await lab.service("db", 1)
    await lab.task("aaa1", "web", slot=1, container="c1")
    await lab.task("aab2", "web", slot=2, node="node-2-id", state=TaskState.FAILED, desired=TaskState.SHUTDOWN)
    await lab.task("abc3", "web", slot=2, node="", state=TaskState.PENDING, desired=TaskState.READY)
    await lab.task("bcd4", "db", slot=1, node="node-2-id")
    return lab


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["aaa1", "aab2", "abc3", "bcd4"]),
        ({"service": ["web"]}, ["aaa1", "aab2", "abc3"]),
        ({"service": ["web", "db"]}, ["aaa1", "aab2", "abc3", "bcd4"]),
        ({"node": ["node-2"]}, ["aab2", "bcd4"]),
        ({"node": ["node-2-id"], "service": ["db"]}, ["bcd4"]),
        ({"desired-state": ["running"]}, ["aaa1", "bcd4"]),
        ({"desired-state": ["shutdown", "ready"]}, ["aab2", "abc3"]),
        ({"id": ["aa"]}, ["aaa1", "aab2"]),
        ({"name": ["web.2"]}, ["aab2", "abc3"]),
        ({"name": ["db"]}, ["bcd4"]),
        ({"label": ["x"]}, []),
        ({"_up-to-date": ["true"], "service": ["web"]}, ["aaa1", "aab2", "abc3"]),
    ],
)
async def test_tasks_are_filtered(tasks: Lab, filters: dict[str, Any], found: list[str]) -> None:
    assert sorted(task["ID"] for task in await tasks.get("/tasks", filters=filters)) == found


async def test_tasks_of_an_older_spec_are_not_up_to_date(tasks: Lab) -> None:
    shown = await tasks.get("/services/web")
    spec = shown["Spec"]
    spec["TaskTemplate"]["ForceUpdate"] = 1
    await tasks.ask("POST", f"/services/web/update?version={shown['Version']['Index']}", spec)
    assert await tasks.get("/tasks", filters={"_up-to-date": ["true"], "service": ["web"]}) == []
    assert len(await tasks.get("/tasks", filters={"_up-to-date": ["false"], "service": ["web"]})) == 3


async def test_a_task_is_shown_with_its_container_and_only_what_it_has(tasks: Lab) -> None:
    shown = await tasks.get("/tasks/aaa1")
    assert (shown["Slot"], shown["NodeID"], shown["DesiredState"]) == (1, "node-1-id", "running")
    assert shown["Status"]["State"] == "running"
    assert shown["Status"]["ContainerStatus"] == {"ContainerID": "c1", "PID": 0, "ExitCode": 0}
    assert shown == next(task for task in await tasks.get("/tasks") if task["ID"] == "aaa1")

    waiting = await tasks.get("/tasks/abc3")
    assert "NodeID" not in waiting and "ContainerStatus" not in waiting["Status"]
    status, refused = await tasks.ask("GET", "/tasks/aa")
    assert status >= 400 and "aa" in refused["message"]  # two tasks begin like that


async def test_a_changed_task_is_listed_as_it_is_now(tasks: Lab) -> None:
    assert (await tasks.get("/tasks", filters={"id": ["bcd4"]}))[0]["Status"]["State"] == "running"
    task = tasks.store.state.tasks["bcd4"]
    await tasks.store.commit([Put(replace(task, status=TaskStatus(state=TaskState.FAILED, err="it broke")))])
    [shown] = await tasks.get("/tasks", filters={"id": ["bcd4"]})
    assert (shown["Status"]["State"], shown["Status"]["Err"]) == ("failed", "it broke")


# Nodes


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["alpha", "beta", "gamma"]),
        ({"name": ["et"]}, ["beta"]),
        ({"id": ["alpha"]}, ["alpha"]),
        ({"role": ["manager"]}, ["alpha"]),
        ({"role": ["worker"]}, ["beta", "gamma"]),
        ({"node.label": ["zone=west"]}, ["beta"]),
        ({"node.label": ["zone"]}, ["beta", "gamma"]),
        ({"engine.label": ["disk=ssd"]}, ["gamma"]),
        ({"label": ["disk"]}, ["gamma"]),
        ({"membership": ["accepted"]}, ["alpha", "beta", "gamma"]),
        ({"membership": ["pending"]}, []),
    ],
)
async def test_nodes_are_filtered(lab: Lab, filters: dict[str, Any], found: list[str]) -> None:
    await lab.member("alpha", role=Role.MANAGER, manager_addr="127.0.0.1:2377")
    await lab.member("beta", labels={"zone": "west"})
    await lab.member("gamma", labels={"zone": "east"}, engine_labels={"disk": "ssd"})
    listed = await lab.get("/nodes", filters=filters)
    assert [node["Description"]["Hostname"] for node in listed] == found


async def test_a_nodes_shape_tells_managers_from_workers(lab: Lab) -> None:
    await lab.member("node-1", role=Role.MANAGER, manager_addr="127.0.0.1:2377")
    await lab.member("node-2", state=NodeState.DOWN)
    leader, worker = await lab.get("/nodes")

    assert leader["ManagerStatus"] == {"Reachability": "reachable", "Addr": "127.0.0.1:2377", "Leader": True}
    assert "ManagerStatus" not in worker and worker["Status"] == {"State": "down", "Addr": "127.0.0.1"}
    assert worker["Spec"] == {"Labels": {}, "Role": "worker", "Availability": "active"}
    assert worker["Description"]["Resources"] == {"NanoCPUs": 2_000_000_000, "MemoryBytes": 4 << 30}


async def test_a_node_is_updated_at_its_version_only(lab: Lab) -> None:
    node = await lab.member("node-1")
    spec = {"Role": "worker", "Availability": "drain", "Labels": {"zone": "west"}}
    assert await lab.ask("POST", f"/nodes/node-1/update?version={node.version}", spec) == (200, b"")
    shown = await lab.get("/nodes/node-1")
    assert shown["Spec"] == spec and shown["Version"]["Index"] > node.version

    status, refused = await lab.ask("POST", f"/nodes/node-1/update?version={node.version}", spec)
    assert status == 500 and "update out of sequence" in refused["message"]
    assert lab.store.state.nodes["node-1-id"].spec.availability is Availability.DRAIN


async def test_only_a_node_that_is_down_is_removed_without_force(lab: Lab) -> None:
    await lab.member("up")
    await lab.member("gone", state=NodeState.DOWN)
    status, refused = await lab.ask("DELETE", "/nodes/up")
    assert status == 400 and "is not down and can't be removed" in refused["message"]
    assert await lab.ask("DELETE", "/nodes/gone") == (200, b"")
    assert await lab.ask("DELETE", "/nodes/up?force=true") == (200, b"")
    assert await lab.get("/nodes") == []


# The cluster


async def test_the_cluster_is_shown_with_its_tokens_and_without_its_keys(lab: Lab) -> None:
    shown = await lab.get("/swarm")
    assert set(shown["JoinTokens"]) == {"Worker", "Manager"}
    assert all(token.startswith("SWMTKN-1-") for token in shown["JoinTokens"].values())
    assert "BEGIN CERTIFICATE" in shown["TLSInfo"]["TrustRoot"] and "PRIVATE KEY" not in str(shown)
    assert shown["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 5


async def test_a_token_is_rotated_by_itself(lab: Lab) -> None:
    before = await lab.get("/swarm")
    path = f"/swarm/update?version={before['Version']['Index']}&rotateWorkerToken=true"
    assert (await lab.ask("POST", path, before["Spec"]))[0] == 200
    after = await lab.get("/swarm")
    assert after["JoinTokens"]["Worker"] != before["JoinTokens"]["Worker"]
    assert after["JoinTokens"]["Manager"] == before["JoinTokens"]["Manager"]
    assert after["Spec"] == before["Spec"]


async def test_the_clusters_spec_is_changed_as_a_whole(lab: Lab) -> None:
    before = await lab.get("/swarm")
    spec = before["Spec"] | {"Orchestration": {"TaskHistoryRetentionLimit": 1}, "Labels": {"a": "b"}}
    assert (await lab.ask("POST", f"/swarm/update?version={before['Version']['Index']}", spec))[0] == 200
    after = await lab.get("/swarm")
    assert after["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 1} and after["Spec"]["Labels"] == {"a": "b"}
    status, refused = await lab.ask("POST", f"/swarm/update?version={before['Version']['Index']}", spec)
    assert status == 500 and "out of sequence" in refused["message"]
    late = spec | {"Dispatcher": {"HeartbeatPeriod": 0}}
    status, refused = await lab.ask("POST", f"/swarm/update?version={after['Version']['Index']}", late)
    assert status == 400 and "heartbeat time period" in refused["message"]


async def test_what_nodes_cannot_publish_of_a_service_is_a_warning_of_the_answer(lab: Lab) -> None:
    lab.inventory.troubles = ["node node-2: port 80/tcp of service web is not published on this node: a process has it"]
    ports = [{"TargetPort": 80, "PublishedPort": 80, "Protocol": "tcp", "PublishMode": "ingress"}]
    plain = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}
    public = plain | {"EndpointSpec": {"Ports": ports}}
    status, made = await lab.ask("POST", "/services/create", public)
    assert (status, made["Warnings"]) == (201, lab.inventory.troubles)
    for spec, said in ((public, lab.inventory.troubles), (plain, None)):
        _, shown = await lab.ask("GET", f"/services/{made['ID']}")
        path = f"/services/{made['ID']}/update?version={shown['Version']['Index']}"
        assert await lab.ask("POST", path, spec) == (200, {"Warnings": said})


async def test_networks_of_every_node_are_found_as_the_clusters_before_a_service_names_them(lab: Lab) -> None:
    shown = await lab.get("/networks/host", scope="swarm")
    assert (shown["Id"], shown["Driver"], shown["Scope"]) == ("host", "host", "swarm")
    assert shown["Labels"] == {"com.docker.swarm.predefined": "true"}
    status, _ = await lab.ask("GET", "/networks/none", params={"scope": "swarm"})
    assert status == 404


async def test_tasks_of_what_is_not_there_are_not_an_empty_list(lab: Lab) -> None:
    for kind in ("service", "node"):
        filters = json.dumps({kind: ["nosuch"]})
        status, answer = await lab.ask("GET", "/tasks", params={"filters": filters})
        assert status == 404 and "nosuch" in answer["message"]


async def test_what_nobody_said_of_isolation_is_shown_and_no_reason_to_replace_tasks(lab: Lab) -> None:
    await lab.service("web")
    service = lab.control.service("web")
    spec = (await lab.get("/services/web"))["Spec"]
    assert spec["TaskTemplate"]["ContainerSpec"]["Isolation"] == "default"
    assert (await lab.ask("POST", f"/services/web/update?version={service.version}", spec))[0] == 200
    assert lab.control.service("web").spec.task_template == service.spec.task_template


async def test_nodes_are_updated_in_dockerds_words(lab: Lab) -> None:
    node = await lab.member("node-9")
    path = f"/nodes/node-9/update?version={node.version}"
    assert await lab.ask("POST", path, {}) == (400, {"message": 'invalid Role: ""'})
    wrong = {"Role": "worker", "Availability": "away"}
    assert await lab.ask("POST", path, wrong) == (400, {"message": 'invalid Availability: "away"'})


async def test_switches_of_the_cluster_are_read_as_dockerd_reads_them(lab: Lab) -> None:
    await lab.service("web")
    for path in ("/services?status=maybe", "/services/web?insertDefaults=maybe"):
        assert (await lab.ask("GET", path))[0] == 400
    version = (await lab.get("/swarm"))["Version"]["Index"]
    path = f"/swarm/update?version={version}&rotateWorkerToken=maybe"
    assert await lab.ask("POST", path, {}) == (400, {"message": "invalid value for rotateWorkerToken: maybe"})
    assert (await lab.ask("POST", "/swarm/unlock", {}))[0] == 409


async def test_networks_are_listed_with_a_slash_behind_too(lab: Lab) -> None:
    created = {"Name": "wide", "Driver": "overlay"}
    assert (await lab.ask("POST", "/networks/create", created))[0] == 201
    listed = await lab.get("/networks/")
    assert [network["Name"] for network in listed] == ["wide"] and listed == await lab.get("/networks")
