"""The network calls as the stock docker command makes them, on real networks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from net_lab import Lab, in_own_network

from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet_agent.api.routes.networks import NetworkRoutes
from swarmlet_agent.engine.events import EventBus

pytestmark = pytest.mark.kernel


@asynccontextmanager
async def served(lab: Lab) -> AsyncIterator[None]:
    async def ping(_: Call) -> web.StreamResponse:
        return web.Response(text="OK")

    server = Server([Route("GET", "/_ping", ping), *NetworkRoutes(lab.networks, EventBus()).routes()])
    await server.listen_unix(lab.root / "engine.sock")
    try:
        yield
    finally:
        await server.close()


async def docker(lab: Lab, *words: str) -> tuple[int, str]:
    """(exit code, what it printed) of a docker command."""
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{lab.root}/engine.sock",
        "DOCKER_CONFIG": str(lab.root / "cfg"),
    }
    result = await asyncio.to_thread(
        subprocess.run,
        ["docker", "network", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment,
    )
    return result.returncode, (result.stdout + result.stderr).strip()


@in_own_network
async def test_a_network_is_created_shown_and_removed(lab: Lab) -> None:
    async with served(lab):
        words = ("--subnet", "10.7.0.0/24", "--gateway", "10.7.0.9", "--label", "a=b", "--internal", "app")
        code, ident = await docker(lab, "create", *words)
        assert (code, len(ident)) == (0, 64)
        container, web_ = await lab.attach("web", "app")
        _, listing = await docker(lab, "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}", "--filter", "type=builtin")
        assert sorted(listing.splitlines()) == ["bridge bridge local", "host host local", "none null local"]
        (shown,) = json.loads((await docker(lab, "inspect", "app"))[1])
        assert shown["IPAM"]["Config"] == [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.9"}]
        assert (shown["Internal"], shown["Labels"], shown["Id"]) == (True, {"a": "b"}, ident)
        assert shown["Containers"] == {
            container: {
                "Name": "web",
                "EndpointID": web_.endpoints["app"].endpoint_id,
                "IPv6Address": "",
                "MacAddress": web_.endpoints["app"].mac_address,
                "IPv4Address": "10.7.0.1/24",
            }
        }
        code, words_ = await docker(lab, "rm", "app")
        assert code == 1 and f"error while removing network: network app id {ident} has active endpoints" in words_
        await lab.networks.detach(container)
        assert await docker(lab, "rm", ident[:12]) == (0, ident[:12])
        assert lab.events[0] == ("create", "app") and lab.events[-1] == ("destroy", "app")


@in_own_network
async def test_refusals_reach_the_user_in_dockers_words(lab: Lab) -> None:
    async with served(lab):
        assert (await docker(lab, "create", "app"))[0] == 0
        for words, expected in {
            ("create", "app"): "network with name app already exists",
            ("create", "--subnet", "172.17.8.0/24", "x"): "Pool overlaps with other one on this address space",
            ("create", "-d", "weave", "x"): 'plugin "weave" not found',
            ("create", "-d", "overlay", "x"): "This node is not a swarm manager",
            ("rm", "bridge"): "bridge is a pre-defined network and cannot be removed",
            ("inspect", "nowhere"): "network nowhere not found",
            ("ls", "--filter", "colour=red"): "invalid filter 'colour'",
        }.items():
            code, text = await docker(lab, *words)
            assert code == 1 and expected in text, (words, text)


@in_own_network
async def test_prune_takes_only_what_nobody_uses(lab: Lab) -> None:
    async with served(lab):
        for words in (("idle",), ("busy",), ("--label", "keep=1", "labelled")):
            assert (await docker(lab, "create", *words))[0] == 0
        await lab.attach("web", "busy")
        code, text = await docker(lab, "prune", "-f", "--filter", "label!=keep", "--filter", "until=10s")
        assert (code, text) == (0, "")
        code, text = await docker(lab, "prune", "-f", "--filter", "label!=keep")
        assert (code, text) == (0, "Deleted Networks:\nidle")
        _, listing = await docker(lab, "ls", "-q", "--filter", "type=custom", "--filter", "dangling=true")
        assert listing == lab.networks.get("labelled").id[:12]
