"""Networks whose containers sit on a host's interface themselves, with addresses of the site: macvlan, ipvlan. Pure.

Docker's words: an interface that is not there and is called name.number is a VLAN of `name`, made and removed with the
network; without any parent the network is closed, on an interface made for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from swarmlet.errors import Forbidden, InvalidArgument, NotSupported
from swarmlet_agent.net.records import OWN_PARENTS, NetworkRecord
from swarmlet_agent.net.requests import NetworkCreate

OPTION_PARENT = "parent"


@dataclass(frozen=True, slots=True)
class Kind:
    """One driver. modes, flags: the options' words, and their numbers in linux/if_link.h; the first is the default.

    own_parent: what the names of closed networks' interfaces begin with.
    """

    driver: str
    own_parent: str
    modes: Mapping[str, int]
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def option_mode(self) -> str:
        return f"{self.driver}_mode"

    @property
    def option_flag(self) -> str:
        return f"{self.driver}_flag" if self.flags else ""


#: Whether the network has IPv4, IPv6; of every driver.
OPTION_FAMILY = {4: "com.docker.network.enable_ipv4", 6: "com.docker.network.enable_ipv6"}
_MACVLAN = Kind("macvlan", OWN_PARENTS[0], {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8})
_IPVLAN = Kind("ipvlan", OWN_PARENTS[1], {"l2": 0, "l3": 1, "l3s": 2}, {"bridge": 0, "private": 1, "vepa": 2})
KINDS = {kind.driver: kind for kind in (_MACVLAN, _IPVLAN)}


@dataclass(frozen=True, slots=True)
class Parent:
    """An interface to be, or to find, and what containers' interfaces on it are like."""

    name: str
    mode: str
    flag: str


def plan_parent(
    kind: Kind, request: NetworkCreate, network_id: str, existing: Iterable[NetworkRecord], links: Collection[str]
) -> Parent:
    """Where the containers' interfaces will hang. InvalidArgument, Forbidden, NotSupported in dockerd's words."""
    options, driver = request.options, kind.driver
    known = {OPTION_PARENT, kind.option_mode, kind.option_flag, *OPTION_FAMILY.values()}
    unknown = sorted(key for key in options if key not in known)
    if unknown:
        raise NotSupported(f"network option {unknown[0]} is not supported by the driver {driver}")
    mode = _word(kind, "mode", options.get(kind.option_mode, ""), kind.modes)
    flag = _word(kind, "flag", options.get(kind.option_flag, ""), kind.flags) if kind.flags else ""
    name = options.get(OPTION_PARENT, "")
    if name == "lo":
        raise InvalidArgument(f"loopback interface is not a valid {driver} parent link")
    if not name:
        return Parent(kind.own_parent + network_id[:12], mode, flag)
    for network in existing:
        if network.parent == name and network.driver == driver:
            _check_shared(network, mode)
    if name not in links:
        _check_vlan(name, links)
    return Parent(name, mode, flag)


def _word(kind: Kind, what: str, word: str, known: Mapping[str, int]) -> str:
    default = next(iter(known))
    if word and word not in known:
        shown = f"'{default}' mode" if what == "mode" else f"'{default}'"
        raise InvalidArgument(
            f"requested {kind.driver} {what} '{word}' is not valid, {shown} is the {kind.driver} driver default"
        )
    return word or default


def _check_shared(network: NetworkRecord, mode: str) -> None:
    """Refuse a second network on the parent of this one, of the same driver, where the two would disturb each other."""
    name = network.parent
    if network.driver == "ipvlan":  # mode and flag are the parent's, not each interface's
        raise Forbidden(f"network {network.name} is already using parent interface {name}")
    if "passthru" in (mode, network.mode):
        how = " in mode passthru" if network.mode == "passthru" else ""
        prefix = "" if how else "cannot use mode passthru, "
        raise Forbidden(f"{prefix}macvlan network {network.name} is already using parent interface {name}{how}")


def _check_vlan(name: str, links: Collection[str]) -> None:
    """An interface that is not there can be made if it is called as a VLAN of one that is."""
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


def vlan_of(name: str) -> tuple[str, int]:
    """(interface, VLAN id) of a recorded parent that is missing; ("", 0) if its name tells of none."""
    base, _, number = name.rpartition(".")
    return (base, int(number)) if base and number.isdigit() else ("", 0)


def users_of(parent: str, networks: Mapping[str, NetworkRecord], but: str) -> list[str]:
    """Names of other networks on an interface: it stays for them."""
    return [network.name for network in networks.values() if network.parent == parent and network.id != but]
