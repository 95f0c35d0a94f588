"""The kernel's side of networks on a host's interface (macvlan, ipvlan). Runs in the "net" thread only.

A parent that was there before stays as it was; one that we made (a VLAN, or the closed network's own) has our group
number and goes with its last network.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from swarmlet.errors import Conflict, Internal, NotSupported
from swarmlet_agent.net import netlink
from swarmlet_agent.net.link_drivers import GROUP, delete_ours
from swarmlet_agent.net.netlink import Link, Message, Netlink, NetlinkError
from swarmlet_agent.net.plan_parents import KINDS, Kind, vlan_of
from swarmlet_agent.net.records import OWN_PARENTS, EndpointRecord, NetworkRecord

_UNKNOWN_KIND = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)


def _macvlan(network: NetworkRecord, name: str, parent: int, mac: str, netns_fd: int | None) -> Message:
    mode = KINDS["macvlan"].modes[network.mode]
    own = "" if network.mode == "passthru" else mac
    return netlink.new_macvlan(name, parent=parent, mode=mode, group=GROUP, mac=own, netns_fd=netns_fd)


def _ipvlan(network: NetworkRecord, name: str, parent: int, mac: str, netns_fd: int | None) -> Message:
    """It has no MAC of its own."""
    kind = KINDS["ipvlan"]
    mode, flag = kind.modes[network.mode], kind.flags[network.flag]
    return netlink.new_ipvlan(name, parent=parent, mode=mode, flag=flag, group=GROUP, netns_fd=netns_fd)


_INTERFACES: dict[str, Callable[[NetworkRecord, str, int, str, int | None], Message]] = {
    "macvlan": _macvlan, "ipvlan": _ipvlan,
}


class SiteLinks:
    """A `LinkDriver`: parents and containers' interfaces."""

    def __init__(self, host: Netlink, kind: Kind) -> None:
        self._host = host
        self._interface = _INTERFACES[kind.driver]

    def make(self, network: NetworkRecord) -> None:
        self.ensure(network)
        self._probe(network)

    def ensure(self, network: NetworkRecord) -> None:
        """The network's parent, up if it is ours. NotSupported where the kernel cannot, Conflict where it is gone."""
        link = self._host.link(network.parent)
        if link is None:
            if network.parent.startswith(OWN_PARENTS):
                link = self._make_closed(network.parent)
            else:
                link = self._make_vlan(network)
        if link.group == GROUP:
            self._host.send([netlink.set_up(link.index)])

    def _probe(self, network: NetworkRecord) -> None:
        """A try of an interface: says at once, not at the first container, that the kernel or the parent cannot."""
        name = f"mvp{network.id[:9]}"
        parent = self._parent(network)
        with _explained(network):
            self._host.send([self._interface(network, name, parent.index, "", None)])
        delete_ours(self._host, name)

    def remove(self, network: NetworkRecord) -> None:
        """Its parent, if that is ours: the caller knows that no other network is on it."""
        delete_ours(self._host, network.parent)

    def links_of(self, network: NetworkRecord) -> Iterable[str]:
        name = network.parent
        return (name, peer_of(name)) if name.startswith(OWN_PARENTS) else (name,)

    def plug(self, netns_fd: int, endpoint: EndpointRecord, network: NetworkRecord) -> None:
        """A container's interface in its namespace, down."""
        parent = self._parent(network)
        with _explained(network):
            self._host.send([self._interface(network, endpoint.interface, parent.index, endpoint.mac, netns_fd)])

    def _parent(self, network: NetworkRecord) -> Link:
        link = self._host.link(network.parent)
        if link is None:
            raise Conflict(f"network {network.name}: parent interface {network.parent} is not on this host")
        return link

    def _make_closed(self, name: str) -> Link:
        """An interface that leads nowhere: a dummy, or where the kernel has none, a pair whose other end is unused."""
        other = peer_of(name)
        try:
            self._host.send([netlink.new_link("dummy", name, group=GROUP)])
        except NetlinkError as err:
            if err.code not in _UNKNOWN_KIND:
                raise
            self._host.send([netlink.new_pair(name, other, group=GROUP)])
            if (end := self._host.link(other)) is not None:
                self._host.send([netlink.set_up(end.index)])
        return self._made(name)

    def _make_vlan(self, network: NetworkRecord) -> Link:
        base, number = vlan_of(network.parent)
        below = self._host.link(base) if base else None
        if below is None:
            raise Conflict(f"network {network.name}: parent interface {network.parent} is not on this host")
        try:
            self._host.send([netlink.new_vlan(network.parent, below=below.index, number=number, group=GROUP)])
        except NetlinkError as err:
            if err.code not in _UNKNOWN_KIND:
                raise
            raise NotSupported(
                f"network {network.name}: this host's kernel has no VLAN interfaces (module 8021q): {err}"
            ) from err
        return self._made(network.parent)

    def _made(self, name: str) -> Link:
        link = self._host.link(name)
        if link is None:
            raise Internal(f"interface {name} did not appear")
        return link


def peer_of(parent: str) -> str:
    """The unused end of a closed network's pair."""
    return "dp-" + parent.partition("-")[2]


@contextmanager
def _explained(network: NetworkRecord) -> Iterator[None]:
    """What the kernel's refusal of an interface means."""
    try:
        yield
    except NetlinkError as err:
        if err.code == errno.EOPNOTSUPP:
            driver = network.driver
            raise NotSupported(f"network {network.name}: this host's kernel has no {driver} (module {driver})") from err
        raise Conflict(
            f"network {network.name}: no interface can be made on {network.parent} in mode {network.mode}: {err}"
        ) from err
