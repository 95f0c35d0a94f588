"""Addresses, names and host ports of containers: leased in memory, all or none, before anything is made."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.net import plan_attach
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.plan_ipam import mac_of
from swarmlet_agent.net.plan_ports import EPHEMERAL, parse_ports
from swarmlet_agent.net.records import HOST, NONE, EndpointRecord, NetworkRecord, PortRecord, SandboxRecord

replace = msgspec.structs.replace


class Leasing:
    """Takes leases from the ground's pools and port book."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def endpoints(
        self, base: SandboxRecord, places: Sequence[plan_attach.Place], before: SandboxRecord | None
    ) -> SandboxRecord:
        """The sandbox with its endpoints and ports. What a network refuses, AddressTaken, PoolExhausted, PortTaken."""
        ground, main = self._ground, places[0].network
        if main.driver != "bridge":
            endpoint = EndpointRecord(id=new_hex_id(), network_id=main.id, network=main.name, wish=places[0].settings)
            kind = HOST if main.driver == "host" else NONE
            # In host mode nothing is published: the container's ports are the host's.
            return replace(base, kind=kind, endpoints=(endpoint,), port_wishes={} if kind == HOST else base.port_wishes)
        endpoints: list[EndpointRecord] = []
        try:
            for place in places:
                earlier = before.on(place.network.id) if before is not None else None
                endpoints.append(self.lease(base, place.network, place.settings, endpoints, earlier))
            embedded = any(endpoint.names for endpoint in endpoints)
            sandbox = replace(
                base, endpoints=tuple(endpoints), dns_port=random.choice(EPHEMERAL) if embedded else 0,
            )
            return replace(sandbox, ports=self.take_ports(sandbox, before.ports if before is not None else ()))
        except BaseException:
            for endpoint in endpoints:
                ground.catalog.give_back(endpoint.network_id, endpoint.ip)
            raise

    def lease(
        self, sandbox: SandboxRecord, network: NetworkRecord, settings: EndpointSettings,
        others: Sequence[EndpointRecord], earlier: EndpointRecord | None = None,
    ) -> EndpointRecord:
        """An endpoint with an address of its own. earlier: what the container had there once."""
        pool = self._ground.catalog.pool(network.id)
        wanted = settings.ipam_config.ipv4_address if settings.ipam_config is not None else ""
        address = pool.take(wanted) if wanted else pool.take_again(earlier.ip if earlier is not None else "")
        ident, named = new_hex_id(), not network.predefined
        return EndpointRecord(
            id=ident, network_id=network.id, network=network.name, interface=plan_attach.next_interface(others),
            veth=plan_attach.veth_name(ident), ip=str(address), prefix=pool.subnet.prefixlen,
            gateway="" if network.internal else network.gateway, mac=settings.mac_address or mac_of(address),
            names=plan_attach.dns_names(sandbox.container_name, sandbox.container_id, sandbox.hostname, settings)
            if named else (),
            wish=settings,
        )

    def gateway(self, sandbox: SandboxRecord) -> EndpointRecord | None:
        """The endpoint with the default route, None if the container cannot leave its networks."""
        return plan_attach.gateway_endpoint(sandbox.endpoints, self._ground.catalog.by_id)

    def take_ports(self, sandbox: SandboxRecord, before: Sequence[PortRecord] = ()) -> tuple[PortRecord, ...]:
        """Host ports for what the container wants to publish, at the endpoint with the default route."""
        gateway = self.gateway(sandbox)
        if gateway is None:
            return ()  # only internal networks: as on Docker, nothing is published
        binding = self._ground.catalog.by_id[gateway.network_id].host_binding
        wishes = parse_ports(sandbox.port_wishes, binding)
        return self._ground.ports.take(sandbox.container_id, wishes, gateway.ip, before)
