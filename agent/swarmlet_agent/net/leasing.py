"""Addresses, names and host ports of containers: leased in memory, all or none, before anything is made."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import msgspec

from swarmlet.errors import Conflict
from swarmlet.ipam import mac_of
from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet.model.network import Lease
from swarmlet_agent.net import plan_attach, plan_endpoint
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.holds import host_has_ipv6
from swarmlet_agent.net.plan_attach import DefaultRoutes
from swarmlet_agent.net.plan_ports import EPHEMERAL, default_host_ips, parse_ports, reachable, split_routed
from swarmlet_agent.net.records import (
    HOST,
    NONE,
    EndpointRecord,
    NetworkFailure,
    NetworkRecord,
    PortRecord,
    PortTaken,
    SandboxRecord,
)

replace = msgspec.structs.replace


class Leasing:
    """Takes leases from the ground's pools and port book."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def endpoints(
        self, base: SandboxRecord, places: Sequence[plan_attach.Place], before: SandboxRecord | None,
        leases: Mapping[str, Lease],
    ) -> SandboxRecord:
        """The sandbox with its endpoints and ports. What a network refuses, AddressTaken, PoolExhausted, PortTaken.

        leases: what a manager has given it, by network.
        """
        ground, main = self._ground, places[0].network
        if main.exclusive:
            endpoint = EndpointRecord(id=new_hex_id(), network_id=main.id, network=main.name, wish=places[0].settings)
            kind = HOST if main.driver == "host" else NONE
            # In host mode nothing is published: the container's ports are the host's.
            return replace(base, kind=kind, endpoints=(endpoint,), port_wishes={} if kind == HOST else base.port_wishes)
        endpoints: list[EndpointRecord] = []
        try:
            for place in places:
                earlier = before.on(place.network.id) if before is not None else None
                earlier = earlier or ground.former.get(base.container_id, {}).get(place.network.id)
                lease = leases.get(place.network.id)
                endpoints.append(self.lease(base, place.network, place.settings, endpoints, earlier, lease))
            embedded = any(endpoint.names for endpoint in endpoints)
            sandbox = replace(
                base, endpoints=tuple(endpoints), dns_port=random.choice(EPHEMERAL) if embedded else 0,
            )
            return replace(sandbox, ports=self.take_ports(sandbox, before.ports if before is not None else ()))
        except BaseException:  # of any kind: undo, and pass it on
            for endpoint in endpoints:
                ground.catalog.give_back(endpoint)
            raise

    def lease(
        self, sandbox: SandboxRecord, network: NetworkRecord, settings: EndpointSettings,
        others: Sequence[EndpointRecord], earlier: EndpointRecord | None = None, lease: Lease | None = None,
    ) -> EndpointRecord:
        """An endpoint with addresses of its own. earlier: what the container had there once."""
        catalog, ipam = self._ground.catalog, settings.ipam_config
        wanted4, wanted6 = (ipam.ipv4_address, ipam.ipv6_address) if ipam is not None else ("", "")
        if lease is not None:
            wanted4, wanted6 = (address.partition("/")[0] for address in (lease.address, lease.address6))
        elif network.scope == "swarm":
            for wanted in (wanted4, wanted6) if network.v6.subnet else (wanted4,):
                self._check_granted(network, wanted)
        ident, named = lease.id if lease is not None else new_hex_id(), not network.predefined
        endpoint = EndpointRecord(
            id=ident, network_id=network.id, network=network.name, leased=lease is not None,
            interface=plan_endpoint.interface_name(settings.driver_opts, network, others),
            veth=plan_attach.veth_name(ident) if network.bridge else "", wish=settings,
            direct=network.routed and not network.closed,
            names=plan_attach.dns_names(sandbox.container_name, sandbox.container_id, sandbox.hostname, settings)
            if named else (),
        )
        try:
            if (pool := catalog.pool(network.id)) is not None:
                address = pool.take(wanted4) if wanted4 else pool.take_again(earlier.ip if earlier is not None else "")
                part = pool.of(address)
                endpoint = replace(
                    endpoint, ip=str(address), prefix=part.subnet.prefixlen,
                    gateway="" if network.closed or network.routed else part.gateway,
                )
            if (pool := catalog.pool(network.id, 6)) is not None:
                address = pool.take(wanted6) if wanted6 else pool.take_again(earlier.ip6 if earlier is not None else "")
                part = pool.of(address)
                endpoint = replace(
                    endpoint, ip6=str(address), prefix6=part.subnet.prefixlen,
                    gateway6="" if network.closed or network.routed else part.gateway,
                )
        except BaseException:  # of any kind: undo, and pass it on
            catalog.give_back(endpoint)
            raise
        if network.driver == "ipvlan":
            return endpoint  # its interface has the MAC of the parent
        return replace(endpoint, mac=settings.mac_address or mac_of(ip_address(endpoint.addresses[0])))

    def _check_granted(self, network: NetworkRecord, address: str) -> None:
        """In a network of the cluster only a manager gives addresses."""
        if address not in self._ground.granted.get(network.id, ()):
            raise Conflict(f"no manager has given this container the address {address!r} in network {network.name}")

    def routes(self, sandbox: SandboxRecord) -> DefaultRoutes:
        """The endpoints with default routes; none if the container cannot leave its networks."""
        return plan_attach.default_routes(sandbox.endpoints, self._ground.catalog.by_id)

    def take_ports(self, sandbox: SandboxRecord, before: Sequence[PortRecord] = ()) -> tuple[PortRecord, ...]:
        """Host ports for what the container wants to publish, at the endpoints with default routes."""
        routes = self.routes(sandbox)
        if (main := routes.main) is None or not sandbox.port_wishes:
            return ()  # only internal networks: as on Docker, nothing is published
        network = self._ground.catalog.by_id[main.network_id]
        if not network.bridge:
            return ()  # its addresses are the site's own
        wishes = parse_ports(sandbox.port_wishes, default_host_ips(network.host_binding, host_has_ipv6=host_has_ipv6()))
        routed = network.reach4 == "routed", network.reach6 == "routed"
        mapped, opened = split_routed(reachable(wishes, *routes.targets), routes.targets, routed)
        try:
            return (*self._ground.ports.take(
                sandbox.container_id, mapped, routes.targets, before, sandbox.container_name
            ), *opened)
        except (PortTaken, NetworkFailure) as err:
            raise type(err)(
                "failed to set up container networking: driver failed programming external connectivity on endpoint "
                f"{sandbox.container_name} ({main.id}): {err}"
            ) from err
