"""Addresses that this node's own containers hold in networks of the cluster: asked of a manager, stated, given back.

The manager's records are the truth; this is what the node says of itself. A lease is held from its grant until its
endpoint is gone. What a container had before an agent's end is in the journal with its endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet.model.network import Lease, Subnet
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk
from swarmlet_agent.net import plan_attach
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord, SandboxRecord
from swarmlet_agent.net.types import NetworkWish

log = get_logger(__name__)

#: How long a container that starts with its agent waits for the agent's session to begin.
BEGIN_S = 10.0


class LeaseOffice(Protocol):
    """Who speaks with the manager (`session.leasing.LeaseLine`)."""

    async def ask(self, ask: LeaseAsk) -> LeaseAnswer:
        """Unavailable if no manager answers in time."""
        ...

    def hold(self, lease: Lease) -> None: ...

    def release(self, *idents: str) -> None: ...


class LeaseRefused(SwarmletError):
    """The manager's refusal, with the status it has in HTTP."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class ClusterLeases:
    """One per agent. `bind` it while the node is a member of a cluster."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._held: dict[str, Lease] = {}
        self._office: LeaseOffice | None = None
        self._bound = asyncio.Event()
        #: Ids that the manager has taken back; whoever undoes the endpoints takes them from here.
        self.lost: asyncio.Queue[str] = asyncio.Queue()

    def bind(self, office: LeaseOffice | None) -> None:
        self._office = office
        if office is None:
            self._bound.clear()
        else:
            self._bound.set()

    @property
    def held(self) -> Sequence[Lease]:
        return tuple(self._held.values())

    def restore(self) -> None:
        """After the endpoints' own recovery: what runs holds what it held."""
        for ident in self._ground.live:
            sandbox = self._ground.sandboxes[ident]
            for endpoint in sandbox.endpoints:
                if endpoint.leased:
                    self._held[endpoint.id] = lease_of(sandbox, endpoint)

    def of_cluster(self, ref: str) -> bool:
        """Whether a manager has to be asked for a place in this network."""
        try:
            network = self._ground.catalog.find(ref)
        except InvalidArgument:  # ambiguous: said again where it is used
            return False
        return network.scope == "swarm" if network is not None else self._office is not None

    async def take_all(self, wish: NetworkWish, before: SandboxRecord | None) -> dict[str, Lease]:
        """Places in all of the cluster's networks that a plain container wants, by network id, all or none."""
        if wish.of_task or wish.share_with or wish.mode.startswith("container:"):
            return {}
        wanted = dict(wish.endpoints) or {wish.mode: EndpointSettings()}
        taken: dict[str, Lease] = {}
        try:
            for name, settings in sorted(wanted.items()):
                ref = plan_attach.known_as(name)
                known = self._ground.catalog.find(ref) if self.of_cluster(ref) else None
                if not self.of_cluster(ref) or (known is not None and known.id in taken):
                    continue
                if wish.mac_address and not settings.mac_address and name == wish.mode:
                    settings = replace(settings, mac_address=wish.mac_address)
                names = plan_attach.dns_names(wish.container_name, wish.container_id, wish.hostname, settings)
                lease = await self.take(
                    ref, settings, container_id=wish.container_id, container_name=wish.container_name, names=names,
                    earlier=self._earlier(wish.container_id, ref, before),
                )
                taken[lease.network_id] = lease
        except BaseException:  # cancelled, too: undo, and pass it on
            self.give_back(*(lease.id for lease in taken.values()))
            raise
        return taken

    async def take(
        self, ref: str, settings: EndpointSettings, *, container_id: str, container_name: str,
        names: tuple[str, ...], earlier: EndpointRecord | None = None,
    ) -> Lease:
        """A place in one network. LeaseRefused; Unavailable. Returns once this node takes part in the network."""
        ipam = settings.ipam_config
        if settings.mac_address:
            plan_attach.check_mac(settings.mac_address)
        ask = LeaseAsk(
            id=new_hex_id(), network=ref, container_id=container_id, container_name=container_name, names=names,
            address=ipam.ipv4_address if ipam is not None else "", prefer=earlier.ip if earlier is not None else "",
            address6=ipam.ipv6_address if ipam is not None else "",
            prefer6=earlier.ip6 if earlier is not None else "", mac=settings.mac_address,
        )
        try:
            lease, _ = await self._ask(ask)
        except BaseException:  # cancelled, too: undo, and pass it on
            if self._office is not None:
                self._office.release(ask.id)  # whatever has become of it
            raise
        self._held[lease.id] = lease
        return lease

    async def look_up(self, ref: str) -> NetworkRecord:
        """A network that this node takes no part in, as far as a container that does not run needs it."""
        lease, name = await self._ask(LeaseAsk(id=new_hex_id(), network=ref))
        return NetworkRecord(
            id=lease.network_id, name=name, driver="overlay", attachable=True, chosen_subnet=True,
            v6=Subnet(chosen=True),
        )

    def give_back(self, *idents: str) -> None:
        """Those that are not held are fine."""
        gone = [ident for ident in idents if self._held.pop(ident, None) is not None]
        if gone and self._office is not None:
            self._office.release(*gone)

    def renamed(self, sandbox: SandboxRecord) -> None:
        """The container has other names now."""
        for endpoint in sandbox.endpoints:
            if endpoint.id in self._held:
                self._held[endpoint.id] = lease = lease_of(sandbox, endpoint)
                if self._office is not None:
                    self._office.hold(lease)

    async def _ask(self, ask: LeaseAsk) -> tuple[Lease, str]:
        reason = f"Could not attach to network {ask.network}: "
        try:
            async with asyncio.timeout(BEGIN_S):
                await self._bound.wait()
        except TimeoutError:
            raise Unavailable(reason + "this node has no session with a manager of its cluster") from None
        assert self._office is not None
        try:
            answer = await self._office.ask(ask)
        except Unavailable as err:
            raise Unavailable(reason + str(err)) from err
        if answer.lease is None:
            raise LeaseRefused(reason + answer.message, answer.status)
        return answer.lease, answer.network

    def _earlier(self, container_id: str, ref: str, before: SandboxRecord | None) -> EndpointRecord | None:
        """The place a container had in a network once."""
        former: Mapping[str, EndpointRecord] = self._ground.former.get(container_id, {})
        places = [*(before.endpoints if before is not None else ()), *former.values()]
        return next((place for place in places if ref in (place.network, place.network_id)), None)


def lease_of(sandbox: SandboxRecord, endpoint: EndpointRecord) -> Lease:
    """An endpoint's lease as the node states it."""
    return Lease(
        id=endpoint.id, network_id=endpoint.network_id, node_id="", container_id=sandbox.container_id,
        container_name=sandbox.container_name, address=f"{endpoint.ip}/{endpoint.prefix}", names=endpoint.names,
        address6=f"{endpoint.ip6}/{endpoint.prefix6}" if endpoint.ip6 else "", mac=endpoint.wish.mac_address,
    )
