"""WireGuard devices, in the kernel where that has them. For the "net" thread, in the agent's own network namespace."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface
from typing import Protocol

from swarmlet.errors import Conflict, Internal, NotSupported
from swarmlet_agent.net import netlink
from swarmlet_agent.net.netlink import Link, Message, Netlink, NetlinkError, new_link
from swarmlet_agent.net.wireguard import messages
from swarmlet_agent.net.wireguard.plan import (
    PREFIX,
    DeviceChange,
    DeviceNow,
    Generation,
    WireguardState,
    difference,
    leftovers,
)
from swarmlet_agent.net.wireguard.userspace import UserspaceDevices

#: Not the group of containers' links: those are swept when an agent comes back.
GROUP = 0x53574C03
MISSING = "this host's kernel has no WireGuard (module wireguard): networks cannot be encrypted"
#: Messages in one system call: their answers must fit the socket's buffer.
BATCH = 100
_GONE = frozenset({errno.ENODEV, errno.ESRCH})


class Devices(Protocol):
    """Who has WireGuard's devices: the kernel, or a program."""

    def lacking(self) -> str:
        """Why there can be none, "" if there can."""
        ...

    def create(self, name: str) -> None:
        """A device and its interface. NotSupported, Internal."""
        ...

    def read(self, name: str) -> DeviceNow: ...

    def change(self, name: str, change: DeviceChange) -> None: ...

    def removed(self, name: str) -> None:
        """Its interface is gone."""
        ...


class KernelDevices:
    def __init__(self, host: Netlink) -> None:
        self._host = host
        self._generic = Netlink(messages.NETLINK_GENERIC)
        self._family = 0

    def close(self) -> None:
        self._generic.close()

    def lacking(self) -> str:
        """Asking loads the kernel's module."""
        try:
            self._number()
        except NotSupported as err:
            return str(err)
        return ""

    def create(self, name: str) -> None:
        try:
            self._host.send([new_link("wireguard", name, group=GROUP)])
        except NetlinkError as err:
            if err.code == errno.EOPNOTSUPP:
                raise NotSupported(MISSING) from err
            raise

    def read(self, name: str) -> DeviceNow:
        query = messages.device_query(name)
        return messages.parse_device(self._generic.dump(self._number(), query, f"reading WireGuard device {name}"))

    def change(self, name: str, change: DeviceChange) -> None:
        self._generic.send(messages.set_device(self._number(), name, change))

    def removed(self, name: str) -> None:
        """Nothing is left of it."""

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


class Wireguard:
    """One node's encrypted ways to the others. program: what serves where the kernel cannot, with its folder."""

    def __init__(self, program: UserspaceDevices | None = None) -> None:
        self._host = Netlink()
        self._kernel = KernelDevices(self._host)
        self._devices: Devices = self._kernel
        if program is not None and self._kernel.lacking():
            self._devices = program

    def close(self) -> None:
        """At the agent's end: packets go on without us."""
        self._kernel.close()
        self._host.close()

    def lacking(self) -> str:
        """Why this host cannot encrypt, "" if it can."""
        return self._devices.lacking()

    def ensure(self, state: WireguardState) -> None:
        """Make the devices and routes what `state` says. NotSupported without WireGuard, NetlinkError, Internal."""
        if state.generations and (lacking := self.lacking()):
            raise NotSupported(lacking)
        for generation in state.generations:
            link = self._ensure_link(generation, state)
            now = self._devices.read(link.name)
            if change := difference(now, generation):
                self._devices.change(link.name, change)
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

    def _ensure_link(self, generation: Generation, state: WireguardState) -> Link:
        name = generation.device
        link = self._host.link(name)
        if link is None:
            self._devices.create(name)
            link = self._host.link(name)
            if link is None:
                raise Internal(f"interface {name} did not appear")
            if link.group != GROUP:  # a program knows nothing of groups
                self._host.send([netlink.set_group(link.index, GROUP)])
        elif link.group != GROUP:
            raise Conflict(f"interface {name} exists and is not ours: encrypted networks need that name")
        if link.mtu != state.mtu:
            self._host.send([netlink.set_mtu(link.index, state.mtu)])
        return link

    def _ours(self) -> Iterator[Link]:
        return (link for link in self._host.links() if link.group == GROUP and link.name.startswith(PREFIX))

    def _send(self, batch: Sequence[Message]) -> None:
        for first in range(0, len(batch), BATCH):
            self._host.send(batch[first : first + BATCH], ignore=_GONE)

    def _delete(self, name: str) -> None:
        if (link := self._host.link(name)) is not None:
            self._host.send([netlink.delete_link(link.index)], ignore=_GONE)
            self._devices.removed(name)
