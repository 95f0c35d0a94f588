"""The cluster's networks on this node: what a manager tells of them, kept, and made so in the kernel and the names.

A network exists here while this node takes part in it. What was told last is in the journal: an agent that comes back
answers for it, and a host that comes up again makes it again, also while no manager can be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.ipam import mac_of
from swarmlet.log import get_logger
from swarmlet.loops import Backoff
from swarmlet.model.ids import short_id
from swarmlet.model.network import OPTION_MTU, Lease, Subnet, vxlan_mtu
from swarmlet.model.ways import WAYS_BYTES, NodeWays
from swarmlet.wire.networking import EndpointInfo, NetworkInfo, Networking, ServiceInfo, WaysInfo
from swarmlet_agent.journal import Write
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.host_addresses import mtu_of
from swarmlet_agent.net.overlay.directory import (
    backends,
    endpoint_entry,
    endpoint_holder,
    service_entry,
    service_holder,
)
from swarmlet_agent.net.overlay.entry import MeshEntry
from swarmlet_agent.net.overlay.leases import ClusterLeases
from swarmlet_agent.net.overlay.links import Remote, bridge_of
from swarmlet_agent.net.overlay.meshtold import whole_news
from swarmlet_agent.net.overlay.places import Changes, Places
from swarmlet_agent.net.overlay.ways import EncryptedWays
from swarmlet_agent.net.records import NetworkRecord

log = get_logger(__name__)

#: Journal table: what was told of each network's endpoints and services, a row each: "network/e/id", "network/s/id".
TOLD = "overlay_parts"
#: Whose business the operator's news is.
PROBLEM = "networks"
#: Pauses between attempts to make what the kernel refused.
RETRY_FLOOR_S, RETRY_BASE_S, RETRY_LIMIT_S = 0.5, 1.0, 30.0


@dataclass(slots=True)
class _Net:
    """One network in memory. programmed: what the kernel has been told, by address; unsure: where it may not be so;
    looked: what an agent before told it, and perhaps died before it wrote it down, is gone."""

    places: Places = field(default_factory=Places)
    programmed: dict[str, Remote] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    looked: bool = False
    granted: set[str] = field(default_factory=set)


class ClusterNetworks:
    """One per agent.

    make and unmake add and remove a network's links and rules (they are those of local networks).
    """

    def __init__(
        self, ground: Ground, leases: ClusterLeases, make: Callable[[NetworkRecord], Awaitable[None]],
        unmake: Callable[[NetworkRecord], Awaitable[None]], ways: EncryptedWays,
    ) -> None:
        self._ground = ground
        self.ways = ways
        self._leases = leases
        self._make = make
        self._unmake = unmake
        self._nets: dict[str, _Net] = {}
        self._leaving: set[str] = set()
        #: Networks whose links could not be made, and containers whose services could not be balanced.
        self._broken: set[str] = set()
        self._unbalanced: set[str] = set()
        #: What the operator is told of all that the kernel refused, by what it is about.
        self._troubles: dict[tuple[str, str], str] = {}
        self._backoff: Backoff[str] = Backoff(RETRY_BASE_S, RETRY_LIMIT_S, floor=RETRY_FLOOR_S)
        self._failed = asyncio.Event()
        self.entry = MeshEntry(ground)
        self._changing = asyncio.Lock()
        #: This node's address for the others, and the MTU of its interface (0: none has it).
        self._underlay = ("", 0)

    async def start(self) -> None:
        """After the networks' own recovery: names from the journal, and the kernel's entries, whatever it has."""
        await self.ways.start()
        for key, value in self._ground.journal.items(TOLD):
            network_id, kind, _ = key.split("/", 2)
            if network_id not in self._ground.catalog.by_id:
                continue
            places = self._nets.setdefault(network_id, _Net()).places
            if kind == "e":
                places.put(msgspec.msgpack.decode(value, type=EndpointInfo))
            else:
                places.put_service(msgspec.msgpack.decode(value, type=ServiceInfo))
        for network_id, net in self._nets.items():
            await self._apply(network_id, net.places.take())
        await self.entry.start()

    async def update(self, news: Networking, *, node_id: str, underlay: str) -> None:
        """Returns once it is in the journal and in the kernel. underlay: this node's address for the others."""
        async with self._changing:
            await self._update(news, node_id, underlay)

    async def tidy(self) -> None:
        """A container has left a network without a manager's telling: perhaps it was the last that kept it here."""
        if self._leaving:
            async with self._changing:
                await self._leave()

    async def mend(self) -> None:
        """What the kernel refused is tried again, with growing pauses, for ever."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            await asyncio.sleep(self._backoff.next(PROBLEM))
            async with self._changing:
                await self._try_again()

    async def _try_again(self) -> None:
        for network_id in sorted(self._broken):
            if (network := self._ground.catalog.by_id.get(network_id)) is not None:
                await self._make_links(network)
        for network_id, net in self._nets.items():
            network = self._ground.catalog.by_id.get(network_id)
            if network is not None and (net.unsure or not net.looked):
                await self._program(network, net, Changes())
        for container_id in sorted(self._unbalanced):
            self._balanced(container_id, await self._ground.run(self._balance_one, container_id, {}))
        if not self._troubles:
            self._backoff.forget(PROBLEM)

    def _trouble(self, kind: str, ident: str, reason: str) -> None:
        """reason "": there is none any more."""
        if reason:
            self._troubles[kind, ident] = f"{reason}; this is tried again"
            self._failed.set()
        elif self._troubles.pop((kind, ident), None) is None:
            return
        self._ground.set_problems(PROBLEM, tuple(sorted(self._troubles.values())))

    async def _update(self, news: Networking, node_id: str, underlay: str) -> None:
        before = {ident for ident, network in self._ground.catalog.by_id.items() if network.driver == "overlay"}
        gone = set(news.gone_networks)
        if news.full:
            gone |= before - {info.id for info in news.networks}
        if news.ways is not None or news.full:  # first, since encrypted networks are on them
            await self.ways.update(news.ways or WaysInfo(), self._mtu_of(underlay))
        for info in news.networks:
            await self._join(info, underlay)
            self._nets.setdefault(info.id, _Net()).places.clear()
        touched = {info.id for info in news.networks} | self._take_in(news)
        self._leaving |= gone
        for network_id in sorted(touched - self._leaving):
            await self._bring_up(network_id)
        await self._leave()
        mesh = news.mesh_news if news.mesh is None else whole_news(news.mesh)
        await self.entry.told(mesh, node_id, full=news.full, mtu=self._carried(underlay))

    @property
    def said_ways(self) -> NodeWays:
        """See session.NetworkOrders."""
        return self.ways.said

    def held(self) -> Sequence[Lease]:
        """See session.NetworkOrders."""
        return self._leases.held

    def lost(self, idents: Sequence[str]) -> None:
        """See session.NetworkOrders."""
        for ident in idents:
            self._leases.lost.put_nowait(ident)

    def _take_in(self, news: Networking) -> set[str]:
        """Ids of the networks that something was told of."""
        touched: set[str] = set()

        def places(network_id: str) -> Places | None:
            net = self._nets.get(network_id)
            if net is None:
                return None
            touched.add(network_id)
            return net.places

        for network_id, ident in news.gone_endpoints:
            if (known := places(network_id)) is not None:
                known.remove(ident)
        for network_id, ident in news.gone_services:
            if (known := places(network_id)) is not None:
                known.remove_service(ident)
        for endpoint in news.endpoints:
            if (known := places(endpoint.network_id)) is not None:
                known.put(endpoint)
        for service in news.services:
            if (known := places(service.network_id)) is not None:
                known.put_service(service)
        return touched

    async def _join(self, info: NetworkInfo, underlay: str) -> None:
        self._leaving.discard(info.id)
        carried = self._carried(underlay)
        if info.encrypted:
            mtu = self._mtu_of(underlay)
            underlay, carried = self.ways.inner, vxlan_mtu(mtu - WAYS_BYTES, self.ways.inner) if mtu else 0
        wanted = record_of(info, underlay, carried, ipv6=self._ground.kernel.has_ipv6)
        known = self._ground.catalog.by_id.get(info.id)
        if known == wanted and info.id not in self._broken:
            return
        if known is not None and (known.underlay, known.vni) != (wanted.underlay, wanted.vni):
            await self._unmake(known)  # the node has another address now: the old device would send from nowhere
            if (net := self._nets.get(info.id)) is not None:
                net.unsure |= net.programmed.keys()
                net.programmed = {}
        await self._ground.save_network(wanted)
        self._ground.catalog.put(wanted)
        await self._make_links(wanted)
        self._ground.on_event("create", wanted, {"name": wanted.name, "type": wanted.driver})

    async def _make_links(self, network: NetworkRecord) -> None:
        try:
            await self._make(network)
        except SwarmletError as err:
            self._broken.add(network.id)
            # Its containers cannot start, and say why; everything else goes on.
            self._trouble("links", network.id, f"network {network.name} cannot be made on this node: {err}")
            return
        self._broken.discard(network.id)
        self._trouble("links", network.id, "")

    def _carried(self, underlay: str) -> int:
        """Bytes that a network of the cluster carries here; 0 = not known."""
        mtu = self._mtu_of(underlay)
        return vxlan_mtu(mtu, underlay) if mtu else 0

    def _mtu_of(self, underlay: str) -> int:
        """Of the interface that has this node's address for the others; 0 = none has it."""
        if underlay != self._underlay[0]:
            self._underlay = underlay, mtu_of(underlay) if underlay else 0
        return self._underlay[1]

    async def _bring_up(self, network_id: str) -> None:
        """What was told and not applied yet. If it is cancelled, as when the session ends, all of it is to be done."""
        places = self._nets[network_id].places
        changes = places.take()
        try:
            await self._apply(network_id, changes)
            if writes := self._writes(network_id, places, changes):
                await self._ground.journal.write(*writes)
        except BaseException:  # cancelled, too: undo, and pass it on
            places.put_back(changes)
            raise

    async def _apply(self, network_id: str, changes: Changes) -> None:
        """Costs as much as what has changed, however large the network is."""
        network, net = self._ground.catalog.by_id[network_id], self._nets[network_id]
        await self._program(network, net, changes)
        services = net.places.services_of(changes)
        await self._balance(network_id, net, changes, services)
        if not network.ingress:
            # Last: who is told a name can reach what it stands for.
            self._name(network, net.places, changes, services)
        await self._cut(network, net.places, changes)

    async def _program(self, network: NetworkRecord, net: _Net, changes: Changes) -> None:
        """Where the endpoints are."""
        here = network.underlay
        wanted: dict[str, Remote] = {}
        ipv6 = self._ground.kernel.has_ipv6
        changed = {address for address in net.places.addresses(changes) | net.unsure if ipv6 or ":" not in address}
        for address in changed:
            endpoint = net.places.at(address)
            if endpoint is not None and endpoint.node_addr == here:
                net.granted.add(address)
            else:
                net.granted.discard(address)
                if endpoint is not None and endpoint.node_addr:
                    mac = endpoint.mac or mac_of(ip_address(endpoint.address))
                    wanted[address] = Remote(address, mac, endpoint.node_addr)
        self._ground.granted[network.id] = net.granted
        before = {address: net.programmed[address] for address in changed if address in net.programmed}
        for address in net.unsure & before.keys():
            if before[address] == wanted.get(address):
                del before[address]  # it may not be there
        net.unsure = changed
        try:
            if before != wanted or not net.looked:
                known = before if net.looked else None
                await self._ground.run(self._ground.kernel.overlays.program, network, known, wanted)
        except SwarmletError as err:
            reason = f"containers of network {network.name} on other nodes cannot be reached: {err}"
            self._trouble("endpoints", network.id, reason)
            return
        self._trouble("endpoints", network.id, "")
        for address in changed:
            net.programmed.pop(address, None)
        net.programmed |= wanted
        net.looked = True
        net.unsure = set()

    def _name(self, network: NetworkRecord, places: Places, changes: Changes, services: set[str]) -> None:
        names = self._ground.names
        for ident, before in changes.endpoints.items():
            if (endpoint := places.endpoints.get(ident)) is not None:
                names.put(network.id, network.name, endpoint_holder(endpoint), endpoint_entry(endpoint))
            elif before is not None:
                names.drop(network.id, endpoint_holder(before))
        for ident in services:
            if (service := places.services.get(ident)) is not None:
                entry = service_entry(service, places.of_service(ident))
                names.put(network.id, network.name, service_holder(ident), entry)
            else:
                names.drop(network.id, service_holder(ident))

    async def _balance(self, network_id: str, net: _Net, changes: Changes, services: set[str]) -> None:
        """Every container of the network here sends new connections to those that serve now."""
        ground = self._ground
        changed: dict[str, tuple[str, ...] | None] = {
            vip: None for before in changes.services.values() if before is not None for vip in before.vips
        }
        for ident in services:
            if (service := net.places.services.get(ident)) is not None:
                changed |= {vip: backends(net.places.of_service(ident), vip) for vip in service.vips}
        merged: dict[str, tuple[str, ...] | None] = {**ground.vips.get(network_id, {}), **changed}
        ground.vips[network_id] = {vip: serving for vip, serving in merged.items() if serving is not None}
        for ident in self._here(network_id) if changed else ():
            self._balanced(ident, await ground.run(self._balance_one, ident, changed))

    async def _cut(self, network: NetworkRecord, places: Places, changes: Changes) -> None:
        """UDP flows to tasks that have ended, or answer no more, begin anew elsewhere."""
        held = {address: places.at(address) for address in places.addresses(changes)}
        gone = {address for address, endpoint in held.items() if endpoint is None or endpoint.lost}
        here = self._here(network.id)
        if here and gone:
            try:
                await self._ground.run(self._ground.kernel.balancers.cut, here, gone)
            except OSError as err:
                log.warning("UDP flows to tasks that have ended go on", network=network.name, reason=str(err))

    def _here(self, network_id: str) -> list[str]:
        """This node's containers on a network."""
        return [ident for ident in self._ground.live if self._ground.sandboxes[ident].on(network_id) is not None]

    def _balanced(self, container_id: str, trouble: str) -> None:
        if trouble:
            self._unbalanced.add(container_id)
            trouble = f"container {short_id(container_id)} may not reach its services: {trouble}"
        else:
            self._unbalanced.discard(container_id)
        self._trouble("services", container_id, trouble)

    def _balance_one(self, container_id: str, changed: Mapping[str, tuple[str, ...] | None]) -> str:
        """In the net thread. One container's trouble is its own, and the answer; "" = none."""
        ground = self._ground
        sandbox = ground.sandboxes.get(container_id)
        if sandbox is None:
            return ""
        try:
            if ground.kernel.balancers.has(container_id):
                ground.kernel.balancers.change(container_id, changed)
            else:
                ground.kernel.balancers.apply(container_id, ground.services_of(sandbox))
        except FileNotFoundError:  # about to be made, or gone: it gets its services when it is made
            return ""
        except (SwarmletError, OSError) as err:
            ground.kernel.balancers.forget(container_id)  # the next change programs all of them
            return str(err)
        return ""

    async def _leave(self) -> None:
        """Networks this node is not in any more go, once no container of it is left on them."""
        for network_id in sorted(self._leaving):
            network = self._ground.catalog.by_id.get(network_id)
            if network is not None:
                if self._here(network_id):
                    continue
                self._ground.catalog.drop(network_id)
                try:
                    await self._unmake(network)
                except BaseException:  # cancelled, too: undo, and pass it on
                    self._ground.catalog.put(network)  # it is left the next time
                    raise
                self._ground.on_event("destroy", network, {"name": network.name, "type": network.driver})
            self._leaving.discard(network_id)
            self._broken.discard(network_id)
            for kind in ("links", "endpoints"):
                self._trouble(kind, network_id, "")
            net = self._nets.pop(network_id, _Net())
            net.places.take()
            net.places.clear()
            self._ground.granted.pop(network_id, None)
            self._ground.vips.pop(network_id, None)
            self._ground.names.leave(network_id)
            await self._ground.journal.write(
                *self._writes(network_id, net.places, net.places.take()), Write("networks", network_id, None)
            )

    def _writes(self, network_id: str, places: Places, changes: Changes) -> list[Write]:
        """The changes for the journal."""
        rows: list[tuple[str, EndpointInfo | ServiceInfo | None]] = []
        rows += [(f"{network_id}/e/{ident}", places.endpoints.get(ident)) for ident in changes.endpoints]
        rows += [(f"{network_id}/s/{ident}", places.services.get(ident)) for ident in changes.services]
        return [Write(TOLD, key, None if told is None else msgspec.msgpack.encode(told)) for key, told in rows]


def record_of(info: NetworkInfo, underlay: str, carried: int = 0, *, ipv6: bool = True) -> NetworkRecord:
    """The network as this node's engine has it. carried: bytes that the way to other nodes takes, 0 = not known.
    ipv6: whether this host has it; one without takes part in a network's IPv4.

    A host that came later than the network may have a narrower way; the user's word is not questioned.
    """
    mtu = info.mtu if OPTION_MTU in info.options or not carried else min(info.mtu, carried)
    return NetworkRecord(
        id=info.id, name=info.name, driver="overlay", created_at=info.created_at, bridge=bridge_of(info.id),
        subnet=info.subnet, gateway=info.gateway, ip_range=info.ip_range, chosen_subnet=True,
        v6=Subnet(subnet=info.subnet6, gateway=info.gateway6, ip_range=info.ip_range6, chosen=True)
        if info.subnet6 and ipv6 else Subnet(chosen=bool(info.subnet6)),
        vni=info.vni, port=info.port, underlay=underlay, mtu=mtu, internal=info.internal,
        attachable=info.attachable, ingress=info.ingress, options=dict(info.options), labels=dict(info.labels),
    )
