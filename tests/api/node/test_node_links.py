"""Names that links give: "/parent/alias" means the linked container everywhere (moby daemon/links.go)."""

from __future__ import annotations

from typing import Any

from node_lab import Node


async def linked(node: Node) -> str:
    """db, and web, which calls it `store`; db's id."""
    ident = await node.make("sleep", name="db")
    await node.make("sleep", name="web", HostConfig={"Links": ["db:store"]})
    return ident


async def listed(node: Node, query: str = "all=1") -> dict[str, list[str]]:
    status, shown = await node.call("GET", f"/containers/json?{query}")
    assert status == 200, shown
    return {each["Id"]: each["Names"] for each in shown}


async def test_a_linked_container_is_listed_with_what_others_call_it(node: Node) -> None:
    ident = await linked(node)
    assert (await listed(node))[ident] == ["/db", "/web/store"]
    assert (await listed(node, "size=1"))[ident] == ["/db", "/web/store"]
    used = (await node.call("GET", "/system/df?type=container"))[1]["Containers"]
    assert {each["Id"]: each["Names"] for each in used}[ident] == ["/db", "/web/store"]
    by_alias = 'filters={"name":["store"]}'
    assert await listed(node, by_alias) == {}  # as dockerd

    await node.call("POST", "/containers/web/rename?name=shop")
    assert (await listed(node))[ident] == ["/db", "/shop/store"]

    await node.call("DELETE", "/containers/shop?force=1")
    assert (await listed(node))[ident] == ["/db"]


async def test_a_links_name_means_the_linked_container_in_every_call(node: Node) -> None:
    ident = await linked(node)
    for ref in ("web/store", "/web/store"):
        status, shown = await node.call("GET", f"/containers/{ref}/json")
        assert (status, shown["Id"], shown["Name"]) == (200, ident, "/db")
    calls: list[tuple[str, str, Any]] = [
        ("GET", "top", None), ("POST", "stop", None), ("POST", "start", None),
        ("POST", "exec", {"Cmd": ["true"]}), ("POST", "rename?name=data", None),
    ]  # fmt: skip
    for method, what, body in calls:
        status, answer = await node.call(method, f"/containers/web/store/{what}", body)
        assert status < 300, (what, answer)
    assert (await node.call("GET", "/containers/web/store/json"))[1]["Name"] == "/data"


async def test_names_that_no_link_has_made_are_unknown(node: Node) -> None:
    await linked(node)
    for ref in ("web/other", "db/store", "nobody/store", "web/store/more"):
        status, answer = await node.call("GET", f"/containers/{ref}/json")
        assert (status, answer["message"]) == (404, f"No such container: {ref}")


async def test_a_link_can_be_taken_away_by_its_name(node: Node) -> None:
    ident = await linked(node)

    status, answer = await node.call("DELETE", "/containers/db?link=1")
    assert (status, answer["message"]) == (500, "Conflict, cannot remove the default link name of the container")

    assert (await node.call("DELETE", "/containers/web/store?link=1"))[0] == 204
    assert (await listed(node))[ident] == ["/db"]
    assert (await node.call("GET", "/containers/web/json"))[1]["HostConfig"]["Links"] is None
    status, answer = await node.call("DELETE", "/containers/web/store?link=1")
    assert (status, answer["message"]) == (404, "No such container: web/store")
    assert (await node.call("GET", f"/containers/{ident}/json"))[0] == 200
