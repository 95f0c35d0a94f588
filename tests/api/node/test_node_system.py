"""_ping, version, info, disk usage and events over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import quote

from node_lab import Node


async def test_ping_tells_clients_what_they_negotiate_by(node: Node) -> None:
    for method in ("GET", "HEAD"):
        async with node.session.request(method, "http://d/_ping") as answer:
            assert answer.status == 200
            assert await answer.text() == ("OK" if method == "GET" else "")
            assert answer.headers["Api-Version"] == "1.50"
            assert answer.headers["Ostype"] == "linux"
            assert answer.headers["Docker-Experimental"] == "false"
            assert answer.headers["Builder-Version"] == "1"
            assert answer.headers["Swarm"] == "active/worker"
            assert answer.headers["Cache-Control"] == "no-cache, no-store, must-revalidate"


async def test_version_and_info_describe_the_node(node: Node) -> None:
    await node.make("sleep", name="web")
    await node.make("sleep", name="idle", start=False)
    _, version = await node.call("GET", "/v1.24/version")
    _, info = await node.call("GET", "/info")

    assert version["ApiVersion"] == "1.50"
    assert version["MinAPIVersion"] == "1.24"
    assert [part["Name"] for part in version["Components"]] == ["Engine", "crun", "conmon"]
    assert (info["Containers"], info["ContainersRunning"], info["ContainersStopped"], info["Images"]) == (2, 1, 1, 1)
    assert info["Swarm"]["LocalNodeState"] == "active"
    assert info["DefaultRuntime"] == "crun"
    assert info["MemoryLimit"] is True
    assert "WARNING: No swap limit support" in info["Warnings"]
    assert info["NCPU"] > 0 and info["MemTotal"] > 1 << 20


async def test_disk_usage_is_told_by_kind(node: Node) -> None:
    await node.make("sleep", name="web")

    _, everything = await node.call("GET", "/system/df")
    _, containers = await node.call("GET", "/system/df?type=container")
    _, older = await node.call("GET", "/v1.41/system/df?type=container")
    assert {"Images", "Containers", "Volumes", "BuildCache"} <= older.keys()
    status, _ = await node.call("GET", "/system/df?type=cats")

    assert everything["LayersSize"] == 1000
    assert everything["Containers"][0]["SizeRw"] == 234
    assert everything["BuildCache"] == []
    assert containers.keys() == {"Containers"}
    assert status == 400


async def test_events_are_streamed_with_modern_and_old_fields(node: Node) -> None:
    wanted = quote(json.dumps({"type": ["container"], "event": ["start", "die"], "container": ["web"]}))
    began = time.time_ns()
    async with node.session.get(f"http://d/events?filters={wanted}") as answer:
        await node.make("exit", "2", name="other")
        ident = await node.make("exit", "7", name="web")
        async with asyncio.timeout(30):
            start = json.loads(await answer.content.readline())
            die = json.loads(await answer.content.readline())

    assert (start["Action"], start["status"], start["id"], start["from"]) == ("start", "start", ident, "busybox")
    assert start["Actor"]["Attributes"]["name"] == "web"
    assert die["Actor"]["Attributes"]["exitCode"] == "7"
    assert die["timeNano"] >= start["timeNano"] >= began
    assert die["time"] == die["timeNano"] // 10**9
    since, until = began // 1000 / 1e6, time.time()
    status, past = await node.call("GET", f"/events?since={since:.6f}&until={until:.6f}&filters={wanted}")
    assert status == 200
    assert b'"die"' in past


async def test_events_end_at_until_and_refuse_what_cannot_be(node: Node) -> None:
    async with asyncio.timeout(30):
        assert (await node.call("GET", f"/events?until={time.time() + 0.2:.3f}"))[0] == 200
    assert (await node.call("GET", "/events?since=nonsense"))[0] == 400
    assert (await node.call("GET", "/events?since=20&until=10"))[0] == 400
    assert (await node.call("GET", "/events?filters=" + quote('{"colour":["red"]}')))[0] == 400


async def test_a_managers_host_tells_the_clusters_events_too_in_the_order_of_time(node: Node) -> None:
    def of_cluster(at: int) -> dict[str, Any]:
        actor = {"ID": "s1", "Attributes": {"name": "web"}}
        return {"Type": "service", "Action": "create", "Actor": actor, "scope": "swarm", "timeNano": at}

    async def told(query: str) -> list[str]:
        async with node.session.get(f"http://d/events?{query}") as answer:
            return [json.loads(line)["Type"] for line in (await answer.read()).splitlines()]

    began = time.time_ns()
    await node.make("sleep", name="web", start=False)
    node.manager.tells = [of_cluster(began), of_cluster(time.time_ns())]
    past = f"since={began / 1e9 - 1:.6f}&until={time.time():.6f}"
    assert await told(past) == ["container"] and node.manager.asked == []

    node.manager.is_manager = True
    local = quote(json.dumps({"scope": ["local"]}))
    assert await told(past) == ["service", "container", "service"]
    assert node.manager.asked == [f"/events?{past}&scope=swarm"]
    assert await told(f"{past}&scope=local") == ["container"]  # as the manager asks: it is not asked back
    assert await told(f"{past}&filters={local}") == ["container"]
    assert len(node.manager.asked) == 1
    assert sorted(await told(f"until={time.time() + 0.2:.3f}&since={began / 1e9 - 1:.6f}")) == [
        "container", "service", "service",
    ]  # fmt: skip


async def test_a_listener_that_leaves_is_forgotten(node: Node) -> None:
    async with node.session.get("http://d/events"):
        assert node.engine.events.listeners == 1
    async with asyncio.timeout(30):
        while node.engine.events.listeners:
            await asyncio.sleep(0.01)
