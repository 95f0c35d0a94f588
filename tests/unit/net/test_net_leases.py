"""What an agent's networks ask of managers for plain containers: all or none, and nothing is kept of what failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from swarmlet.errors import Unavailable
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings
from swarmlet.model.network import Lease
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk
from swarmlet_agent.journal import Journal
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.kernel import KernelNet
from swarmlet_agent.net.overlay import leases as leases_module
from swarmlet_agent.net.overlay.leases import ClusterLeases, LeaseRefused, lease_of
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord, SandboxRecord
from swarmlet_agent.net.types import NetworkWish

CONTAINER = "c" * 64


class Office:
    """A manager that knows some networks; `asked`, `released` and `told` are what it heard."""

    def __init__(self, *networks: str) -> None:
        self.networks = networks
        self.asked: list[LeaseAsk] = []
        self.released: list[str] = []
        self.told: list[Lease] = []
        self.silent = False

    async def ask(self, ask: LeaseAsk) -> LeaseAnswer:
        self.asked.append(ask)
        if self.silent:
            await asyncio.Event().wait()
        if ask.network not in self.networks:
            return LeaseAnswer(id=ask.id, status=404, message=f"network {ask.network} not found")
        lease = Lease(
            id=ask.id, network_id=f"id-{ask.network}", node_id="n", container_id=ask.container_id,
            container_name=ask.container_name, address=f"10.1.0.{len(self.asked)}/24", names=ask.names,
        )
        return LeaseAnswer(id=ask.id, lease=lease, network=ask.network)

    def hold(self, lease: Lease) -> None:
        self.told.append(lease)

    def release(self, *idents: str) -> None:
        self.released += idents


@pytest_asyncio.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    journal = Journal(tmp_path / "journal.db")
    made = Ground(KernelNet(tmp_path / "netns"), journal, lambda *_: None)
    made.catalog.put(NetworkRecord(id="id-local", name="local", subnet="172.20.0.0/16", gateway="172.20.0.1"))
    yield made
    made.end_thread()
    journal.close()


def wish(*networks: str, **more: object) -> NetworkWish:
    return NetworkWish(
        container_id=CONTAINER, container_name="box", hostname="host", mode=networks[0] if networks else "bridge",
        endpoints={name: EndpointSettings(aliases=("other",)) for name in networks}, **more,  # type: ignore[arg-type]
    )


async def test_only_networks_of_the_cluster_are_asked_for(ground: Ground) -> None:
    leases, office = ClusterLeases(ground), Office("wide", "second")
    leases.bind(office)
    assert await leases.take_all(wish("local"), None) == {}
    assert await leases.take_all(wish("wide", of_task=True), None) == {}
    assert await leases.take_all(wish(share_with="another"), None) == {}
    assert not office.asked
    taken = await leases.take_all(wish("local", "second", "wide"), None)
    assert set(taken) == {"id-wide", "id-second"} and set(leases.held) == set(taken.values())
    assert {ask.names for ask in office.asked} == {("box", "other", CONTAINER[:12], "host")}


async def test_all_or_none(ground: Ground) -> None:
    leases, office = ClusterLeases(ground), Office("a-wide")
    leases.bind(office)
    with pytest.raises(LeaseRefused, match="Could not attach to network b-none: network b-none not found") as refused:
        await leases.take_all(wish("a-wide", "b-none"), None)
    assert refused.value.status == 404 and leases.held == ()
    assert set(office.released) == {ask.id for ask in office.asked}


async def test_who_gives_up_waiting_gives_everything_back(ground: Ground) -> None:
    leases, office = ClusterLeases(ground), Office("wide")
    leases.bind(office)
    office.silent = True
    waiting = asyncio.create_task(leases.take_all(wish("wide"), None))
    while not office.asked:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert office.released == [office.asked[0].id] and leases.held == ()


async def test_a_host_in_no_cluster_asks_nobody(ground: Ground) -> None:
    leases = ClusterLeases(ground)
    assert await leases.take_all(wish("wide"), None) == {}
    assert not leases.of_cluster("wide")


async def test_a_container_that_starts_with_its_agent_waits_for_the_session(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.catalog.put(NetworkRecord(id="id-wide", name="wide", driver="overlay", subnet="10.1.0.0/24"))
    leases, office = ClusterLeases(ground), Office("wide")
    waiting = asyncio.create_task(leases.take_all(wish("wide"), None))
    await asyncio.sleep(0)
    leases.bind(office)
    assert set(await waiting) == {"id-wide"}
    leases.bind(None)
    monkeypatch.setattr(leases_module, "BEGIN_S", 0.01)
    with pytest.raises(Unavailable, match="no session with a manager"):
        await leases.take_all(wish("wide"), None)


async def test_what_was_had_before_is_preferred_and_what_is_asked_for_is_passed_on(ground: Ground) -> None:
    leases, office = ClusterLeases(ground), Office("wide")
    leases.bind(office)
    ground.former[CONTAINER] = {"id-wide": EndpointRecord(id="e", network_id="id-wide", network="wide", ip="10.1.0.77")}
    await leases.take_all(wish("wide"), None)
    settings = EndpointSettings(
        ipam_config=EndpointIPAMConfig(ipv4_address="10.1.0.9"), mac_address="02:00:00:00:00:01"
    )
    await leases.take("wide", settings, container_id=CONTAINER, container_name="box", names=())
    assert [(ask.prefer, ask.address, ask.mac) for ask in office.asked] == [
        ("10.1.0.77", "", ""), ("", "10.1.0.9", "02:00:00:00:00:01"),
    ]


async def test_a_new_agent_holds_what_runs_and_tells_new_names(ground: Ground) -> None:
    endpoint = EndpointRecord(
        id="e1", network_id="id-wide", network="wide", ip="10.1.0.5", prefix=24, names=("box",), leased=True
    )
    local = EndpointRecord(id="e2", network_id="id-local", network="local", ip="172.20.0.2", prefix=16)
    runs = SandboxRecord(
        container_id=CONTAINER, container_name="box", sandbox_id="s", kind="bridge", endpoints=(endpoint, local)
    )
    other = EndpointRecord(id="e3", network_id="id-wide", network="wide", ip="10.1.0.6", prefix=24, leased=True)
    ended = SandboxRecord(
        container_id="d" * 64, container_name="gone", sandbox_id="t", kind="bridge", endpoints=(other,)
    )
    ground.sandboxes = {runs.container_id: runs, ended.container_id: ended}
    ground.live = {CONTAINER}
    leases, office = ClusterLeases(ground), Office()
    leases.restore()
    assert leases.held == (lease_of(runs, endpoint),) and leases.held[0].address == "10.1.0.5/24"
    leases.bind(office)
    leases.renamed(SandboxRecord(
        container_id=CONTAINER, container_name="new", sandbox_id="s", kind="bridge", endpoints=(endpoint, local)
    ))  # fmt: skip
    assert [lease.container_name for lease in office.told] == ["new"] == [one.container_name for one in leases.held]
    leases.give_back("e2", "e1", "e1")
    assert office.released == ["e1"] and leases.held == ()


@pytest.mark.parametrize("known", [True, False])
async def test_a_network_that_is_not_here_is_looked_up(ground: Ground, known: bool) -> None:
    leases, office = ClusterLeases(ground), Office(*(["wide"] if known else []))
    leases.bind(office)
    if known:
        record = await leases.look_up("wide")
        assert (record.id, record.name, record.scope) == ("id-wide", "wide", "swarm")
    else:
        with pytest.raises(LeaseRefused):
            await leases.look_up("wide")
    assert office.asked[0].container_id == "" and leases.held == ()
