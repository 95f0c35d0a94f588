"""Several managers over one etcd: each answers for the cluster, whoever leads."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes.control_world import until
from manager_lab import API, Here, Inventory

from swarmlet.engine_api.guard import for_managers
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import Internal
from swarmlet.tls import TlsIdentity, client_context, server_context
from swarmlet.wire.passing import NOT_TAKEN, PASSED_ON_FOR
from swarmlet_manager.api import passing
from swarmlet_manager.api.app import cluster_routes
from swarmlet_manager.api.needs import Need, need_of
from swarmlet_manager.api.passing import Passing
from swarmlet_manager.ca.authority import Authority
from swarmlet_manager.ca.vault import Vault
from swarmlet_manager.control.commands import Control
from swarmlet_manager.decide import passing as decided
from swarmlet_manager.fleet.client import Fleet
from swarmlet_manager.fleet.leader import LeaderLine
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

SERVICE = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}


@dataclass
class Member:
    """One manager: TLS port, unix socket and a client on it."""

    name: str
    store: Store
    outside: Server
    line: LeaderLine
    client: aiohttp.ClientSession
    stack: AsyncExitStack
    headers: list[dict[str, str]] = field(default_factory=list)  # of what came by TLS

    async def stop(self) -> None:
        await self.stack.aclose()

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        async with asyncio.timeout(30), self.client.request(method, f"{API}{path}", json=body, **more) as answer:
            text = await answer.text()
            return answer.status, await answer.json() if text else None


@asynccontextmanager
async def member(
    etcd: MemoryEtcd, folder: Path, name: str, *more: Route
) -> AsyncIterator[Member]:
    """more: routes that only the leader serves, beside those of the cluster view."""
    async with AsyncExitStack() as stack:
        candidate = Candidate(id=name, addr=f"127.0.0.1:{_free_port()}")
        store = Store(MemoryClient(etcd), candidate)
        await store.start()
        stack.push_async_callback(store.stop)
        await until(lambda: store.leader_info is not None)
        authority = Authority(store)
        if store.leader_info is not None and store.leader_info.id == name:
            await store.wait_for_leadership()
            await authority.ensure_cluster()
        await until(lambda: store.state.cluster is not None)
        home = folder / name
        home.mkdir()
        vault = Vault(store, home)
        if store.leader:
            await vault.ensure()
        identity = TlsIdentity(authority.own_certificate(name, ["127.0.0.1"]), authority.ca_pem())
        fleet = Fleet(store.state, None)
        stack.push_async_callback(fleet.close)
        line = LeaderLine(client_context(identity), store.leadership_moved)
        stack.push_async_callback(line.close)
        inventory = Inventory()
        control = Control(store, inventory, vault)
        routes = [*more, *cluster_routes(control, fleet, inventory, Here(), store, inventory)]
        placed = Passing(store, line).routes(routes)
        headers: list[dict[str, str]] = []
        outside, inside = Server(_noted(for_managers(placed), headers)), Server(placed)
        stack.push_async_callback(outside.close)
        stack.push_async_callback(inside.close)
        port = int(candidate.addr.rpartition(":")[2])
        await outside.listen_tcp("127.0.0.1", port, server_context(identity, require_client=False))
        await inside.listen_unix(home / "manager.sock")
        client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(home / "manager.sock")))
        stack.push_async_callback(client.close)
        yield Member(name, store, outside, line, client, stack, headers)


def _noted(routes: list[Route], headers: list[dict[str, str]]) -> list[Route]:
    def noted(route: Route) -> Route:
        async def handler(call: Call) -> web.StreamResponse:
            headers.append(dict(call.request.headers))
            return await route.handler(call)

        return Route(route.method, route.template, handler)

    return [noted(route) for route in routes]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def etcd() -> Iterator[MemoryEtcd]:
    server = MemoryEtcd()
    yield server
    server.close()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a leader."""
    monkeypatch.setattr(decided, "PATIENCE_S", 1.0)


async def test_a_follower_writes_through_the_leader_and_reads_what_was_written_anywhere(
    etcd: MemoryEtcd, tmp_path: Path
) -> None:
    async with member(etcd, tmp_path, "m1") as leader, member(etcd, tmp_path, "m2") as follower:
        for number in range(10):
            spec = SERVICE | {"Name": f"web-{number}"}
            status, made = await follower.ask("POST", "/services/create", spec)
            assert (status, set(made)) == (201, {"ID", "Warnings"})
            for each in (follower, leader):
                status, seen = await each.ask("GET", f"/services/web-{number}")
                assert (status, seen["ID"]) == (200, made["ID"])
            status, made = await leader.ask("POST", "/services/create", SERVICE | {"Name": f"other-{number}"})
            status, seen = await follower.ask("GET", f"/services/other-{number}")
            assert (status, seen["ID"]) == (200, made["ID"])
        assert len(leader.headers) == 10


async def test_errors_headers_and_credentials_travel(etcd: MemoryEtcd, tmp_path: Path) -> None:
    async with member(etcd, tmp_path, "m1") as leader, member(etcd, tmp_path, "m2") as follower:
        await leader.ask("POST", "/services/create", SERVICE)
        auth = {"X-Registry-Auth": "eyJ1IjoieCJ9"}
        async with follower.client.post(f"{API}/services/create", json=SERVICE, headers=auth) as answer:
            assert answer.status == 409
            assert "service web already exists" in (await answer.json())["message"]
            assert answer.headers["Api-Version"] and answer.headers["Ostype"] == "linux"
            assert NOT_TAKEN not in answer.headers
        [seen] = leader.headers
        assert seen["X-Registry-Auth"] == auth["X-Registry-Auth"]
        assert seen[PASSED_ON_FOR] == "-"
        spec = SERVICE | {"Name": "private"}
        await follower.ask("POST", "/services/create", spec, headers=auth)
        assert leader.store.state.find_service("private").sealed_auth


async def test_another_leader_takes_over_in_the_middle(etcd: MemoryEtcd, tmp_path: Path) -> None:
    async with member(etcd, tmp_path, "m1") as first, member(etcd, tmp_path, "m2") as second:
        await second.ask("POST", "/services/create", SERVICE)
        await first.stop()  # resigns
        status, _ = await second.ask("POST", "/services/create", SERVICE | {"Name": "later"})
        assert status == 201 and second.store.leader
        async with member(etcd, tmp_path, "m3") as third:
            status, _ = await third.ask("DELETE", "/services/later")
            assert status == 200
            status, left = await third.ask("GET", "/services")
            assert [service["Spec"]["Name"] for service in left] == ["web"]


@pytest.mark.usefixtures("brief")
async def test_what_was_passed_on_to_one_that_does_not_lead_is_said_to_be_not_taken(
    etcd: MemoryEtcd, tmp_path: Path
) -> None:
    async with member(etcd, tmp_path, "m1"), member(etcd, tmp_path, "m2") as follower:
        headers = {PASSED_ON_FOR: "10.1.1.1"}
        async with follower.client.post(f"{API}/services/create", json=SERVICE, headers=headers) as answer:
            assert (answer.status, answer.headers[NOT_TAKEN]) == (503, "1")
        assert not follower.store.state.services


@pytest.mark.usefixtures("brief")
async def test_a_leader_that_is_not_there_is_told_with_the_reason_in_bounded_time(
    etcd: MemoryEtcd, tmp_path: Path
) -> None:
    async with member(etcd, tmp_path, "m1") as leader, member(etcd, tmp_path, "m2") as follower:
        await leader.outside.close()  # it goes on to lead, and cannot be reached
        status, said = await follower.ask("POST", "/services/create", SERVICE)
        assert status == 503
        assert "The swarm has no leader" in said["message"] and "cannot be reached" in said["message"]
        status, _ = await follower.ask("GET", "/services")  # needs no leader
        assert status == 200


async def test_a_leader_that_dies_over_a_request_leaves_it_uncertain_and_is_not_asked_again(
    etcd: MemoryEtcd, tmp_path: Path
) -> None:
    begun = 0

    async def dies(call: Call) -> web.StreamResponse:
        nonlocal begun
        begun += 1
        assert call.request.transport is not None
        call.request.transport.abort()
        await asyncio.sleep(60)
        return web.Response()

    route = Route("POST", "/configs/die", dies), Route("DELETE", "/configs/{id}/die", dies)
    async with member(etcd, tmp_path, "m1", *route), member(etcd, tmp_path, "m2", *route) as follower:
        for asked in (("POST", "/configs/die"), ("DELETE", "/configs/x/die")):
            begun = 0
            await follower.ask("POST", "/services/create", SERVICE)  # a connection is kept
            status, said = await follower.ask(*asked)
            assert status == 503 and "may have been carried out, or not" in said["message"]
            assert begun == 1


async def test_a_deposed_leader_that_does_not_answer_is_given_up(
    etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmlet_manager.fleet.leader.DEPOSED_S", 0.2)
    reached = asyncio.Event()

    async def hangs(call: Call) -> web.StreamResponse:
        reached.set()
        await asyncio.sleep(60)
        return web.Response()

    route = Route("POST", "/configs/hang", hangs)
    async with member(etcd, tmp_path, "m1", route) as leader, member(etcd, tmp_path, "m2", route) as follower:
        asking = asyncio.ensure_future(follower.ask("POST", "/configs/hang"))
        await reached.wait()
        leader.store.step_down()
        status, said = await asking
        assert status == 503 and "may have been carried out, or not" in said["message"]


async def test_large_answers_stream_and_a_client_that_goes_ends_the_request_at_the_leader(
    etcd: MemoryEtcd, tmp_path: Path
) -> None:
    ended = asyncio.Event()
    sent = 0

    async def pours(call: Call) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        try:
            for _ in range(100_000):
                await response.write(b"x" * 65536)
                sent += 65536
        except ConnectionError:
            ended.set()
        return response

    route = Route("POST", "/configs/pour", pours)
    async with member(etcd, tmp_path, "m1", route), member(etcd, tmp_path, "m2", route) as follower:
        answer = await follower.client.post(f"{API}/configs/pour")
        assert len(await answer.content.readexactly(1 << 20)) == 1 << 20
        await asyncio.sleep(0.3)
        assert sent < 32 << 20  # a client that does not read holds the leader back
        answer.close()
        async with asyncio.timeout(30):
            await ended.wait()


async def test_a_client_that_goes_while_there_is_no_leader_is_forgotten(etcd: MemoryEtcd, tmp_path: Path) -> None:
    async with member(etcd, tmp_path, "m1") as leader, member(etcd, tmp_path, "m2") as follower:
        await leader.outside.close()

        def waits() -> bool:
            return any(task.get_name() == "pass on" for task in asyncio.all_tasks())

        asking = asyncio.ensure_future(follower.client.post(f"{API}/services/create", json=SERVICE))
        async with asyncio.timeout(30):
            while not waits():
                await asyncio.sleep(0.01)
            asking.cancel()
            while waits():
                await asyncio.sleep(0.01)


async def test_bodies_of_the_largest_size_travel_and_larger_ones_do_not(etcd: MemoryEtcd, tmp_path: Path) -> None:
    async with member(etcd, tmp_path, "m1") as leader, member(etcd, tmp_path, "m2") as follower:
        largest = json.dumps({"Name": "x" * ((8 << 20) - 100)}).encode()
        async with follower.client.post(f"{API}/services/create", data=io.BytesIO(largest)) as answer:
            assert answer.status == 400 and len(leader.headers) == 1
        async with follower.client.post(f"{API}/services/create", data=io.BytesIO(largest + b" " * 200)) as answer:
            assert answer.status == 400 and "larger than" in (await answer.json())["message"]
        assert len(leader.headers) == 1


async def test_a_leader_that_fails_answers_as_if_it_had_been_asked_itself(etcd: MemoryEtcd, tmp_path: Path) -> None:
    async def fails(call: Call) -> web.StreamResponse:
        raise Internal("the disk is full")

    route = Route("POST", "/configs/fail", fails)
    async with member(etcd, tmp_path, "m1", route) as leader, member(etcd, tmp_path, "m2", route) as follower:
        assert await follower.ask("POST", "/configs/fail") == await leader.ask("POST", "/configs/fail")


def test_every_call_of_the_cluster_view_has_its_place() -> None:
    """Writes of records go to the leader, and nothing that streams a body or takes a connection over does."""
    for method, template, need in (
        ("POST", "/services/create", Need.LEADER),
        ("DELETE", "/networks/{id}", Need.LEADER),
        ("POST", "/swarm/update", Need.LEADER),
        ("POST", "/containers/create", Need.LEADER),
        ("GET", "/services/{id}/logs", Need.CURRENT),
        ("GET", "/nodes", Need.CURRENT),
        ("POST", "/networks/{id}/connect", Need.CURRENT),
        ("GET", "/_ping", Need.HERE),
        ("POST", "/build", Need.HERE),
        ("POST", "/images/load", Need.HERE),
        ("PUT", "/containers/{id}/archive", Need.HERE),
        ("POST", "/containers/{id}/attach", Need.HERE),
        ("POST", "/exec/{id}/start", Need.HERE),
        ("POST", "/swarmlet/v1/join", Need.LEADER),
        ("GET", "/swarmlet/v1/ca", Need.HERE),
    ):
        assert need_of(method, template) is need, (method, template)
    assert passing.AGAIN_S < decided.PATIENCE_S
