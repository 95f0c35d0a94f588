"""Addresses that a service's user has chosen: options of a network attachment of the service. Pure.

The Engine API knows no field for them, so they are driver options, which every client can give
(`--network name=net,driver-opt=swarmlet.ip=10.0.0.5`): `swarmlet.vip`, the service's virtual address; `swarmlet.ip` and
`swarmlet.mac`, those of its tasks, the first one's first, with spaces between; `swarmlet.vip6` and `swarmlet.ip6`, the
same of IPv6. They are the service's as long as it names them: no one else is given them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, ip_address, ip_interface, ip_network
from typing import NamedTuple

from swarmlet.errors import Conflict, InvalidArgument, NotSupported
from swarmlet.ipam import mac_of
from swarmlet.model.defaults import NODE_NETWORKS, has_vip
from swarmlet.model.network import Network
from swarmlet.model.service import NetworkAttachmentConfig, ServiceSpec, TaskSpec
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State

VIP, ADDRESSES, MACS = "swarmlet.vip", "swarmlet.ip", "swarmlet.mac"
VIP6, ADDRESSES6 = "swarmlet.vip6", "swarmlet.ip6"


class Wish(NamedTuple):
    """What one task or service is to have in a network: texts without prefix, "" for any."""

    address: str = ""
    mac: str = ""
    address6: str = ""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was chosen in one network: texts without prefix. addresses, macs: of the tasks, by slot; () for none.
    Those with a 6 are IPv6's."""

    vip: str = ""
    addresses: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    vip6: str = ""
    addresses6: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every address, of both families."""
        return (*filter(None, (self.vip, self.vip6)), *self.addresses, *self.addresses6)

    @property
    def of_service(self) -> Wish:
        return Wish(self.vip, "", self.vip6)

    def of_slot(self, slot: int) -> Wish:
        return Wish(_nth(self.addresses, slot), _nth(self.macs, slot), _nth(self.addresses6, slot))


NOTHING = Fixed()


def fixed_of(attachment: NetworkAttachmentConfig) -> Fixed:
    """InvalidArgument for what is no address, NotSupported for another option."""
    options = attachment.driver_opts
    if not options:
        return NOTHING
    where = f"network {attachment.target}: option"
    if unknown := sorted(options.keys() - {VIP, ADDRESSES, MACS, VIP6, ADDRESSES6}):
        raise NotSupported(f"{where} {unknown[0]} is not supported")
    addresses, addresses6 = (
        tuple(_address(text, f"{where} {name}", version) for text in _words(options, name, where))
        for name, version in ((ADDRESSES, 4), (ADDRESSES6, 6))
    )
    macs = tuple(_mac(text, f"{where} {MACS}") for text in _words(options, MACS, where))
    found = Fixed(
        _vip(options, VIP, where, 4), addresses, macs, vip6=_vip(options, VIP6, where, 6), addresses6=addresses6
    )
    for texts in (found.all, macs):
        if len(set(texts)) < len(texts):
            raise InvalidArgument(f"{where}s {', '.join(sorted(options))} name one address twice")
    return found


def _vip(options: Mapping[str, str], name: str, where: str, version: int) -> str:
    """"" where none is chosen."""
    vips = [_address(text, f"{where} {name}", version) for text in _words(options, name, where)]
    if len(vips) > 1:
        raise InvalidArgument(f"{where} {name}: a service has one virtual address of a family in a network")
    return vips[0] if vips else ""


def fixed_in(spec: TaskSpec) -> dict[str, Fixed]:
    """Network id -> what was chosen there; only networks with something chosen."""
    return {network.target: fixed_of(network) for network in spec.networks if network.driver_opts}


def check_fixed(spec: ServiceSpec) -> None:
    """InvalidArgument, NotSupported: what was chosen does not go with the service's mode, count or updates."""
    for network_id, fixed in fixed_in(spec.task_template).items():
        if network_id in NODE_NETWORKS:
            raise NotSupported(f"network {network_id}: addresses can be chosen in networks of the cluster only")
        for option, vip in ((VIP, fixed.vip), (VIP6, fixed.vip6)):
            if vip and not has_vip(spec):
                raise InvalidArgument(f"network {network_id}: a service with endpoint mode dnsrr has no {option}")
        for option, texts in ((ADDRESSES, fixed.addresses), (MACS, fixed.macs), (ADDRESSES6, fixed.addresses6)):
            if texts:
                _check_tasks(spec, f"network {network_id}: option {option}", len(texts))


def _check_tasks(spec: ServiceSpec, where: str, given: int) -> None:
    mode = spec.mode.replicated
    other = spec.mode.global_, spec.mode.replicated_job, spec.mode.global_job
    if any(one is not None for one in other):
        raise NotSupported(f"{where} needs a replicated service: only its tasks have numbers that stay")
    replicas = 1 if mode is None or mode.replicas is None else mode.replicas
    if replicas > given:
        raise InvalidArgument(f"{where} names {given} for {replicas} replicas: name one for each")
    for config in (spec.update_config, spec.rollback_config):
        if config is not None and config.order == "start-first":
            raise InvalidArgument(
                f"{where}: with order start-first two tasks would need one address at a time; use stop-first"
            )


def check_free(state: State, service_id: str, spec: ServiceSpec) -> None:
    """Conflict if an address is someone else's already, InvalidArgument if it is none of its network's.

    service_id: the service's own ("" for a new one). The networks are there.
    """
    for network_id, fixed in fixed_in(spec.task_template).items():
        network = state.find_network(network_id)
        users = dict(_users(state, network, service_id, fixed.of_service)) if fixed.all or fixed.macs else {}
        for address in fixed.all:
            subnet = network.subnet if ip_address(address).version == 4 else network.v6.subnet
            if not subnet:
                raise InvalidArgument(f"address {address}: network {network.name} has no IPv6")
            if ip_address(address) not in ip_network(subnet):
                raise InvalidArgument(f"address {address} is not in subnet {subnet} of network {network.name}")
            if user := users.get(address):
                raise Conflict(f"address {address} of network {network.name} is already in use by {user}")
        for mac in fixed.macs:
            if user := users.get(mac):
                raise Conflict(f"MAC address {mac} is already in use in network {network.name} by {user}")


def check_mac(state: State, network: Network, mac: str, address: str) -> None:
    """Conflict if a MAC address cannot be that of the container with this address: another has it, or may get it."""
    if user := dict(_users(state, network, "", Wish())).get(mac):
        raise Conflict(f"MAC address {mac} is already in use in network {network.name} by {user}")
    data = bytes.fromhex(mac.replace(":", ""))
    follows = data[:2] in (b"\x02\x42", b"\x02\x43") and IPv4Address(data[2:]) in IPv4Network(network.subnet)
    if follows and mac != mac_of(IPv4Address(address)):
        raise Conflict(f"MAC address {mac} is that of another address of network {network.name}")


def _users(state: State, network: Network, service_id: str, own: Wish) -> Iterator[tuple[str, str]]:
    """(address or MAC, whose it is) of everyone but the service, in words for an error.

    own: the virtual addresses that the service wants; "" = it keeps the one it has.
    """
    for part in network.families:
        subnet = ip_network(part.subnet)
        yield str(subnet.network_address), "the network itself"
        if subnet.version == 4:
            yield str(subnet.broadcast_address), "the network's broadcasts"
        yield part.gateway, "the network's gateway"
    for config in network.spec.ipam.config:
        for name, address in config.auxiliary_addresses.items():
            yield str(ip_address(address)), f"auxiliary address {name}"
    for task in state.tasks_on_network(network.id):
        if task.service_id != service_id and not is_gone(task):
            for place in task.networks:
                if place.network_id == network.id:
                    yield from ((text, f"task {task.name}") for text in _plain(place.addresses))
    for lease in state.leases_on_network(network.id):
        for text in (*_plain(lease.place.addresses), *filter(None, (lease.mac,))):
            yield text, f"container {lease.container_name}"
    for service in state.services.values():
        for vip in service.vips:
            for text, moved in zip(_plain(vip.addresses), (own.address, own.address6), strict=False):
                # Its own one it may have moved elsewhere, or begin to name.
                if vip.network_id == network.id and (service.id != service_id or not moved):
                    yield text, f"service {service.spec.name}"
        if service.id == service_id:
            continue
        if (chosen := fixed_in(service.spec.task_template).get(network.id)) is not None:
            for text in (*chosen.all, *chosen.macs):
                yield text, f"service {service.spec.name}"


def _plain(interfaces: tuple[str, ...]) -> list[str]:
    return [str(ip_interface(text).ip) for text in interfaces]


def _words(options: Mapping[str, str], name: str, where: str) -> list[str]:
    if name not in options:
        return []
    words = options[name].split()
    if not words:
        raise InvalidArgument(f"{where} {name} is empty")
    return words


def _address(text: str, where: str, version: int) -> str:
    try:
        return str(IPv4Address(text) if version == 4 else IPv6Address(text))
    except AddressValueError as err:
        raise InvalidArgument(f"{where}: {text} is not an IPv{version} address") from err


def _mac(text: str, where: str) -> str:
    parts = text.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or set(part) - set("0123456789abcdef") for part in parts):
        raise InvalidArgument(f"{where}: {text} is not a MAC address")
    if int(parts[0], 16) & 1 or set(parts) == {"00"}:
        raise InvalidArgument(f"{where}: {text} is not a unicast address")
    if parts[:2] in (["02", "42"], ["02", "43"]):
        # These follow from IPv4 addresses: another container may have it, or get it.
        raise InvalidArgument(f"{where}: addresses that begin with 02:42 and 02:43 are given by the cluster")
    return ":".join(parts)


def _nth(texts: tuple[str, ...], slot: int) -> str:
    return texts[slot - 1] if 0 < slot <= len(texts) else ""
