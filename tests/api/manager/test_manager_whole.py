"""The cluster view as one engine: info, ping, version, its socket."""

from __future__ import annotations

from pathlib import Path

from manager_lab import Lab, fake_node

from swarmlet.model.states import NodeState


async def test_info_adds_the_nodes_up(lab: Lab) -> None:
    for number in (1, 2):
        node = fake_node(lab, number)
        node.says("GET", "/info", {"Containers": 3, "ContainersRunning": number, "Images": number, "NCPU": 2})
        await lab.join(node)
    await lab.member("down", state=NodeState.DOWN)
    info = await lab.get("/info")
    assert (info["Containers"], info["ContainersRunning"], info["Images"], info["NCPU"]) == (6, 3, 2, 4)
    assert info["MemTotal"] == 8 << 30
    swarm = info["Swarm"]
    assert (swarm["Nodes"], swarm["LocalNodeState"], swarm["ControlAvailable"]) == (3, "active", True)
    assert "JoinTokens" not in str(swarm)


async def test_ping_and_version_tell_the_api_and_the_role(lab: Lab) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        async with lab.client.request(method, "http://manager/_ping") as answer:
            assert await answer.read() == body
            assert (answer.headers["Api-Version"], answer.headers["Swarm"]) == ("1.50", "active/manager")
    version = await lab.get("/version")
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == ("1.50", "1.24", "linux")


async def test_the_socket_is_not_for_everybody(lab: Lab) -> None:
    assert Path(lab.socket).stat().st_mode & 0o007 == 0
