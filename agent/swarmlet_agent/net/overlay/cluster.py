"""The cluster's networks on this node: what a manager tells of them, kept, and made so in the kernel and the names.

A network exists here while this node takes part in it. What was told last is in the journal: an agent that comes back
answers for it, and a host that comes up again makes it again, also while no manager can be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from swarmlet.errors import SwarmletError
from swarmlet.ipam import mac_of
from swarmlet.log import get_logger
from swarmlet.model.base import Record
from swarmlet.model.network import OPTION_MTU, Lease, Subnet, vxlan_mtu
from swarmlet.wire.networking import EndpointInfo, MeshInfo, NetworkInfo, Networking, ServiceInfo
from swarmlet_agent.journal import Write
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.host_addresses import mtu_of
from swarmlet_agent.net.overlay.directory import backends, directory
from swarmlet_agent.net.overlay.leases import ClusterLeases
from swarmlet_agent.net.overlay.links import Remote, bridge_of
from swarmlet_agent.net.overlay.published import addresses_of, mesh_state
from swarmlet_agent.net.records import NetworkRecord

log = get_logger(__name__)

#: Journal table: what was told of each network's endpoints and services.
TOLD = "overlays"


class _Told(Record, frozen=True, kw_only=True):
    endpoints: tuple[EndpointInfo, ...] = ()
    services: tuple[ServiceInfo, ...] = ()


@dataclass(slots=True)
class _Net:
    """One network in memory. programmed: what the kernel has been told, by address; last: the endpoints of then."""

    endpoints: dict[str, EndpointInfo] = field(default_factory=dict)
    services: dict[str, ServiceInfo] = field(default_factory=dict)
    programmed: dict[str, Remote] = field(default_factory=dict)
    last: dict[str, EndpointInfo] = field(default_factory=dict)


class ClusterNetworks:
    """One per agent. `update` calls come one after another.

    make and unmake add and remove a network's links and rules (they are those of local networks).
    """

    def __init__(
        self, ground: Ground, leases: ClusterLeases, make: Callable[[NetworkRecord], Awaitable[None]],
        unmake: Callable[[NetworkRecord], Awaitable[None]],
    ) -> None:
        self._ground = ground
        self._leases = leases
        self._make = make
        self._unmake = unmake
        self._nets: dict[str, _Net] = {}
        self._leaving: set[str] = set()
        self._mesh: MeshInfo | None = None
        #: This node's address for the others, and the MTU of its interface (0: none has it).
        self._underlay = ("", 0)

    async def start(self) -> None:
        """After the networks' own recovery: names from the journal, and the kernel's entries, whatever it has."""
        for network_id, value in self._ground.journal.items(TOLD):
            if network_id not in self._ground.catalog.by_id:
                continue
            told = msgspec.msgpack.decode(value, type=_Told)
            self._nets[network_id] = _Net(
                {endpoint.id: endpoint for endpoint in told.endpoints},
                {service.id: service for service in told.services},
            )
            await self._apply(network_id)

    async def update(self, news: Networking, *, node_id: str, underlay: str) -> None:
        """Returns once it is in the journal and in the kernel. underlay: this node's address for the others."""
        before = {ident for ident, network in self._ground.catalog.by_id.items() if network.driver == "overlay"}
        touched: set[str] = set()
        gone = set(news.gone_networks)
        if news.full:
            gone |= before - {info.id for info in news.networks}
        for info in news.networks:
            await self._join(info, underlay)
            net = self._nets.setdefault(info.id, _Net())
            net.endpoints, net.services = {}, {}
            touched.add(info.id)
        for place in news.gone_endpoints:
            if (known := self._nets.get(place[0])) is not None:
                known.endpoints.pop(place[1], None)
                touched.add(place[0])
        for place in news.gone_services:
            if (known := self._nets.get(place[0])) is not None:
                known.services.pop(place[1], None)
                touched.add(place[0])
        for endpoint in news.endpoints:
            if (known := self._nets.get(endpoint.network_id)) is not None:
                known.endpoints[endpoint.id] = endpoint
                touched.add(endpoint.network_id)
        for service in news.services:
            if (known := self._nets.get(service.network_id)) is not None:
                known.services[service.id] = service
                touched.add(service.network_id)
        self._leaving |= gone
        for network_id in sorted(touched - self._leaving):
            await self._apply(network_id, underlay)
        await self._ground.journal.write(*(self._write(ident) for ident in sorted(touched - self._leaving)))
        await self._leave()
        await self._publish(news, node_id, self._carried(underlay))

    def held(self) -> Sequence[Lease]:
        """See session.NetworkOrders."""
        return self._leases.held

    def lost(self, idents: Sequence[str]) -> None:
        """See session.NetworkOrders."""
        for ident in idents:
            self._leases.lost.put_nowait(ident)

    async def _join(self, info: NetworkInfo, underlay: str) -> None:
        self._leaving.discard(info.id)
        wanted, known = record_of(info, underlay, self._carried(underlay)), self._ground.catalog.by_id.get(info.id)
        if known == wanted:
            return
        if known is not None and (known.underlay, known.vni) != (wanted.underlay, wanted.vni):
            await self._unmake(known)  # the node has another address now: the old device would send from nowhere
            self._nets.pop(info.id, None)
        await self._ground.save_network(wanted)
        self._ground.catalog.put(wanted)
        try:
            await self._make(wanted)
        except SwarmletError as err:
            # Its containers cannot start, and say why; everything else goes on.
            log.error("network cannot be made", network=info.name, reason=str(err))
        self._ground.on_event("create", wanted, {"name": wanted.name, "type": wanted.driver})

    def _carried(self, underlay: str) -> int:
        """Bytes that a network of the cluster carries here; 0 = not known."""
        if underlay != self._underlay[0]:
            self._underlay = underlay, mtu_of(underlay)
        return vxlan_mtu(self._underlay[1], underlay) if self._underlay[1] else 0

    async def _apply(self, network_id: str, underlay: str = "") -> None:
        network, net = self._ground.catalog.by_id[network_id], self._nets[network_id]
        here = underlay or network.underlay
        self._ground.granted[network_id] = frozenset(
            address
            for endpoint in net.endpoints.values() if endpoint.node_addr == here for address in endpoint.addresses
        )
        wanted = {
            address: Remote(address, endpoint.mac or mac_of(ip_address(endpoint.address)), endpoint.node_addr)
            for endpoint in net.endpoints.values()
            if endpoint.node_addr and endpoint.node_addr != here
            for address in endpoint.addresses
        }
        try:
            await self._ground.run(self._ground.kernel.overlays.program, network, net.programmed, wanted)
        except SwarmletError as err:
            net.programmed = {}
            log.error("endpoints of a network cannot be reached", network=network.name, reason=str(err))
        else:
            net.programmed = wanted
        gone = _addresses(net.last.values()) - _addresses(net.endpoints.values())
        net.last = dict(net.endpoints)
        await self._balance(network_id, net, gone)
        if network.ingress:
            return
        # Last: who is told a name can reach what it stands for.
        self._ground.names.share(
            network_id, network.name, directory(net.endpoints.values(), net.services.values())
        )

    async def _publish(self, news: Networking, node_id: str, mtu: int) -> None:
        """This node's part of the routing mesh."""
        before = self._mesh
        if news.mesh is not None or news.full:
            self._mesh = news.mesh
        kernel, told = self._ground.kernel, self._mesh
        try:
            if told is None:
                if news.full:  # no port is published anywhere: whatever an earlier agent made goes
                    await self._ground.run(kernel.mesh.remove)
                return
            bridges = self._ground.catalog.bridges()
            subnets = tuple(sorted(part.subnet for network in bridges for part in network.families))
            if (state := mesh_state(told, node_id, subnets, mtu)) is None:
                return
            await self._ground.run(kernel.mesh.ensure, state)
            gone = addresses_of(before) - addresses_of(told)
            if gone:
                await self._ground.run(kernel.mesh.cut, gone)
        except (SwarmletError, OSError) as err:
            log.error("ports of services are not published on this node", reason=str(err))

    async def _balance(self, network_id: str, net: _Net, gone: set[str]) -> None:
        """Every container of the network here sends new connections to those that serve now. gone: addresses of
        tasks that have ended, whose UDP flows begin anew elsewhere."""
        ground = self._ground
        ground.vips[network_id] = backends(net.endpoints.values(), net.services.values())
        here = [ident for ident in ground.live if ground.sandboxes[ident].on(network_id) is not None]
        for ident in here:
            await ground.run(self._balance_one, ident)
        if here and gone:
            try:
                await ground.run(ground.kernel.balancers.cut, here, gone)
            except OSError as err:
                log.warning("UDP flows to tasks that have ended go on", network_id=network_id, reason=str(err))

    def _balance_one(self, container_id: str) -> None:
        """In the net thread. One container's trouble is told, and is its own."""
        ground = self._ground
        sandbox = ground.sandboxes.get(container_id)
        if sandbox is None:
            return
        try:
            ground.kernel.balancers.apply(container_id, ground.services_of(sandbox))
        except FileNotFoundError:  # about to be made, or gone: it gets its services when it is made
            return
        except (SwarmletError, OSError) as err:
            log.error("services cannot be balanced for a container", container_id=container_id, reason=str(err))

    async def _leave(self) -> None:
        """Networks this node is not in any more go, once no container of it is left on them."""
        for network_id in sorted(self._leaving):
            network = self._ground.catalog.by_id.get(network_id)
            if network is not None:
                attached = [
                    ident for ident in self._ground.live if self._ground.sandboxes[ident].on(network_id) is not None
                ]
                if attached:
                    continue
                self._ground.catalog.drop(network_id)
                await self._unmake(network)
                self._ground.on_event("destroy", network, {"name": network.name, "type": network.driver})
            self._leaving.discard(network_id)
            self._nets.pop(network_id, None)
            self._ground.granted.pop(network_id, None)
            self._ground.vips.pop(network_id, None)
            self._ground.names.unshare(network_id)
            await self._ground.journal.write(Write(TOLD, network_id, None), Write("networks", network_id, None))

    def _write(self, network_id: str) -> Write:
        net = self._nets[network_id]
        told = _Told(endpoints=tuple(net.endpoints.values()), services=tuple(net.services.values()))
        return Write(TOLD, network_id, msgspec.msgpack.encode(told))


def _addresses(endpoints: Iterable[EndpointInfo]) -> set[str]:
    return {address for endpoint in endpoints for address in endpoint.addresses}


def record_of(info: NetworkInfo, underlay: str, carried: int = 0) -> NetworkRecord:
    """The network as this node's engine has it. carried: bytes that the way to other nodes takes, 0 = not known.

    A host that came later than the network may have a narrower way; the user's word is not questioned.
    """
    mtu = info.mtu if OPTION_MTU in info.options or not carried else min(info.mtu, carried)
    return NetworkRecord(
        id=info.id, name=info.name, driver="overlay", created_at=info.created_at, bridge=bridge_of(info.id),
        subnet=info.subnet, gateway=info.gateway, ip_range=info.ip_range, chosen_subnet=True,
        v6=Subnet(subnet=info.subnet6, gateway=info.gateway6, ip_range=info.ip_range6, chosen=True)
        if info.subnet6 else Subnet(),
        vni=info.vni, port=info.port, underlay=underlay, mtu=mtu, internal=info.internal,
        attachable=info.attachable, ingress=info.ingress, options=dict(info.options), labels=dict(info.labels),
    )
