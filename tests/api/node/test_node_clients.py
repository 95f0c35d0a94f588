"""What clients other than the docker command send, and look at, at a node."""

from __future__ import annotations

from node_lab import Node


async def test_names_of_a_container_may_be_in_any_case_as_docker_takes_them(node: Node) -> None:
    body = {"image": "busybox", "cmd": ["true"], "hostconfig": {"memory": 64 << 20}, "labels": {"Image": "mine"}}
    status, made = await node.call("POST", "/containers/create?name=web", body)
    assert status == 201, made

    _, shown = await node.call("GET", "/containers/web/json")

    assert (shown["Path"], shown["HostConfig"]["Memory"]) == ("true", 64 << 20)
    assert shown["Config"]["Labels"] == {"Image": "mine"} and shown["Config"]["Image"] == "busybox"


async def test_a_tmpfs_is_shown_where_it_was_asked_for(node: Node) -> None:
    host = {"Tmpfs": {"/run/": "size=1m"}, "Mounts": [{"Type": "tmpfs", "Target": "/t"}]}
    await node.make("sleep", "60", name="web", HostConfig=host)

    _, shown = await node.call("GET", "/containers/web/json")
    _, (row,) = await node.call("GET", "/containers/json")

    assert shown["HostConfig"]["Tmpfs"] == {"/run/": "size=1m"}
    assert [(mount["Type"], mount["Destination"]) for mount in shown["Mounts"]] == [("tmpfs", "/t")]
    assert row["Mounts"] == shown["Mounts"]
