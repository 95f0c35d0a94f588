"""Addresses of the host's own interfaces (of the network namespace that the calling thread is in)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from swarmlet.ipam import AnyAddress
from swarmlet_agent.net.netlink import IFA_ADDRESS, IFA_LOCAL, Netlink, attributes

_RTM_GETADDR = 22
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_SCOPE_UNIVERSE = 0
#: Of a host with more addresses only the first ones are told.
MOST_OTHERS = 32


@dataclass(frozen=True, slots=True)
class _Held:
    index: int
    scope: int
    address: AnyAddress


def host_interfaces(name: str) -> Sequence[AnyAddress] | None:
    """Addresses of an interface beyond its link; None if there is no such interface."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return None
    host = Netlink()
    try:
        return [held.address for held in _all(host) if held.index == index and held.scope == _SCOPE_UNIVERSE]
    finally:
        host.close()


def other_addresses(known: Sequence[str], networks: Sequence[str]) -> tuple[str, ...]:
    """More addresses of this host that its own processes may come from, MOST_OTHERS at most.

    known: those that the cluster knows anyway. networks: subnets of this host's bridges and the mesh's own, whose
    addresses nobody outside is to take for the host.
    """
    inside = [ip_network(network) for network in networks]
    host = Netlink()
    try:
        held = [held.address for held in _all(host) if held.scope == _SCOPE_UNIVERSE and not held.address.is_loopback]
    finally:
        host.close()
    own = (str(address) for address in held if not any(address in network for network in inside))
    return tuple(address for address in dict.fromkeys(own) if address not in known)[:MOST_OTHERS]


def mtu_of(address: str) -> int:
    """Of the interface that has an address, in bytes; 0 if none has it."""
    wanted = ip_address(address)
    host = Netlink()
    try:
        indexes = {held.index for held in _all(host) if held.address == wanted}
        return min((link.mtu for link in host.links() if link.index in indexes), default=0)
    finally:
        host.close()


def _all(host: Netlink) -> list[_Held]:
    found: list[_Held] = []
    for body in host.dump(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "listing addresses"):
        _, _, _, scope, index = _IFADDR.unpack_from(body)
        fields = dict(attributes(body, _IFADDR.size))
        if packed := fields.get(IFA_LOCAL) or fields.get(IFA_ADDRESS):
            found.append(_Held(index, scope, ip_address(packed)))
    return found
