"""Networks whose containers sit on a host's interface themselves, with addresses of the site (driver macvlan). Pure.

Docker's words: an interface that is not there and is called name.number is a VLAN of `name`, made and removed with the
network; without any parent the network is closed, on an interface made for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from swarmlet.errors import Forbidden, InvalidArgument, NotSupported
from swarmlet_agent.net.records import OWN_PARENT, NetworkRecord
from swarmlet_agent.net.requests import NetworkCreate

OPTION_PARENT, OPTION_MODE = "parent", "macvlan_mode"
_DRIVER = "com.docker.network.driver."
_KNOWN = {OPTION_PARENT, OPTION_MODE}
#: Name -> number of linux/if_link.h.
MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


@dataclass(frozen=True, slots=True)
class Parent:
    """An interface to be, or to find. vlan 0: none; base: what the VLAN is of."""

    name: str
    mode: str
    base: str = ""
    vlan: int = 0


def plan_parent(
    request: NetworkCreate, network_id: str, existing: Iterable[NetworkRecord], links: Collection[str]
) -> Parent:
    """Where the containers' interfaces will hang. InvalidArgument, Forbidden, NotSupported in dockerd's words."""
    options = request.options
    unknown = sorted(key for key in options if key not in _KNOWN)
    if unknown:
        raise NotSupported(f"network option {unknown[0]} is not supported by the driver macvlan")
    mode = options.get(OPTION_MODE) or "bridge"
    if mode not in MODES:
        raise InvalidArgument(
            f"requested macvlan mode '{mode}' is not valid, 'bridge' mode is the macvlan driver default"
        )
    name = options.get(OPTION_PARENT, "")
    if name == "lo":
        raise InvalidArgument("loopback interface is not a valid macvlan parent link")
    if not name:
        return Parent(OWN_PARENT + network_id[:12], mode)
    for network in existing:
        if network.parent == name and "passthru" in (mode, network.mode):
            how = " in mode passthru" if network.mode == "passthru" else ""
            prefix = "" if how else "cannot use mode passthru, "
            raise Forbidden(f"{prefix}macvlan network {network.name} is already using parent interface {name}{how}")
    if name in links:
        return Parent(name, mode)
    return _vlan(name, mode, links)


def _vlan(name: str, mode: str, links: Collection[str]) -> Parent:
    base, dot, number = name.rpartition(".")
    if not dot or not base or len(name) > 15:
        raise InvalidArgument(
            f"required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received {name}"
        )
    if not number.isascii() or not number.isdigit():
        raise InvalidArgument(f"unable to parse a valid vlan id from: {number} (ex. eth0.10 for vlan 10)")
    if not 1 <= int(number) <= 4094:
        raise InvalidArgument(f"vlan id must be between 1-4094, received: {number}")
    if base not in links:
        raise InvalidArgument(f"-o parent interface was not found on the host: {base}")
    return Parent(name, mode, base, int(number))


def vlan_of(name: str) -> tuple[str, int]:
    """(interface, VLAN id) of a recorded parent that is missing; ("", 0) if its name tells of none."""
    base, _, number = name.rpartition(".")
    return (base, int(number)) if base and number.isdigit() else ("", 0)


def users_of(parent: str, networks: Mapping[str, NetworkRecord], but: str) -> list[str]:
    """Names of other networks on an interface: it stays for them."""
    return [network.name for network in networks.values() if network.parent == parent and network.id != but]
