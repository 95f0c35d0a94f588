"""WireGuard devices in the kernel. Runs in the "net" thread only, in the agent's own network namespace."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface

from swarmlet.errors import Conflict, Internal, NotSupported
from swarmlet_agent.net import netlink
from swarmlet_agent.net.netlink import Link, Message, Netlink, NetlinkError, attr, new_link
from swarmlet_agent.net.wireguard import messages
from swarmlet_agent.net.wireguard.plan import PREFIX, Generation, WireguardState, difference, leftovers

#: Not the group of containers' links: those are swept when an agent comes back.
GROUP = 0x53574C03
MISSING = "this host's kernel has no WireGuard (module wireguard): networks cannot be encrypted"
#: Messages in one system call: their answers must fit the socket's buffer.
BATCH = 100
_GONE = frozenset({errno.ENODEV, errno.ESRCH})


class Wireguard:
    """One node's encrypted ways to the others."""

    def __init__(self) -> None:
        self._host = Netlink()
        self._generic = Netlink(messages.NETLINK_GENERIC)
        self._family = 0

    def close(self) -> None:
        """At the agent's end: packets go on without us."""
        self._host.close()
        self._generic.close()

    def supported(self) -> bool:
        """Whether this kernel has WireGuard (asking loads the module)."""
        try:
            self._number()
        except NotSupported:
            return False
        return True

    def ensure(self, state: WireguardState) -> None:
        """Make the devices and routes what `state` says. NotSupported without WireGuard, NetlinkError."""
        family = self._number() if state.generations else 0
        for generation in state.generations:
            link = self._ensure_link(generation, state)
            now = messages.parse_device(
                self._generic.dump(family, messages.device_query(link.name), f"reading WireGuard device {link.name}")
            )
            if change := difference(now, generation):
                self._generic.send(messages.set_device(family, link.name, change))
            self._host.send([
                netlink.add_address(link.index, ip_interface(state.inner)), netlink.set_up(link.index),
            ])
            # One way to each node at a time; what comes by another generation's is taken all the same.
            inside = {peer.inner for peer in generation.peers}
            old = [ip_address(peer.inner) for peer in now.peers if peer.inner and peer.inner not in inside]
            self._send([netlink.remove_host_route(link.index, inner) for inner in old])
            if generation.number == state.active:
                self._send([netlink.host_route(link.index, ip_address(inner)) for inner in sorted(inside)])
        for name in leftovers([link.name for link in self._ours()], state):
            self._delete(name)

    def remove(self) -> None:
        """Every device of ours goes, with its routes and keys. Not there is fine."""
        for link in list(self._ours()):
            self._delete(link.name)

    def _number(self) -> int:
        if not self._family:
            try:
                answer = self._generic.get(messages.CONTROLLER, messages.family_query(), "looking for WireGuard")
            except NetlinkError as err:
                if err.code == errno.ENOENT:
                    raise NotSupported(MISSING) from err
                raise
            self._family = messages.parse_family(answer)
        return self._family

    def _ensure_link(self, generation: Generation, state: WireguardState) -> Link:
        name = generation.device
        link = self._host.link(name)
        if link is None:
            try:
                more = attr(netlink.IFLA_MTU, struct.pack("=I", state.mtu))
                self._host.send([new_link("wireguard", name, group=GROUP, more=more)])
            except NetlinkError as err:
                if err.code == errno.EOPNOTSUPP:
                    raise NotSupported(MISSING) from err
                raise
            link = self._host.link(name)
            if link is None:
                raise Internal(f"interface {name} did not appear")
        elif link.group != GROUP or link.kind != "wireguard":
            raise Conflict(f"interface {name} exists and is not ours: encrypted networks need that name")
        return link

    def _ours(self) -> Iterator[Link]:
        return (link for link in self._host.links() if link.group == GROUP and link.name.startswith(PREFIX))

    def _send(self, batch: Sequence[Message]) -> None:
        for first in range(0, len(batch), BATCH):
            self._host.send(batch[first : first + BATCH], ignore=_GONE)

    def _delete(self, name: str) -> None:
        if (link := self._host.link(name)) is not None:
            self._host.send([netlink.delete_link(link.index)], ignore=_GONE)

