"""The kernel's side of overlay networks: a bridge and a VXLAN device each. Runs in the "net" thread only.

The bridge has the network's gateway address on every node: what leaves the network leaves it where it is.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from swarmlet.errors import Internal, NotSupported
from swarmlet.ipam import mac_of
from swarmlet_agent.net import netlink, netns
from swarmlet_agent.net.link_drivers import GROUP, BridgeLinks, delete_ours
from swarmlet_agent.net.netlink import Link, Message, NetlinkError
from swarmlet_agent.net.overlay import messages
from swarmlet_agent.net.records import NetworkRecord

#: Messages in one system call: their answers must fit the socket's buffer.
BATCH = 100
_GONE = frozenset({errno.ENOENT, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class Remote:
    """An endpoint on another node: its address and MAC, and the node's address."""

    address: str
    mac: str
    node: str


class OverlayLinks(BridgeLinks):
    """A `LinkDriver`: as a local bridge, with one more port that leads to the other nodes."""

    def ensure(self, network: NetworkRecord) -> None:
        super().ensure(network)
        name = vxlan_of(network)
        if self._host.link(name) is None:
            local = ip_address(network.underlay)
            try:
                self._host.send([messages.new_vxlan(
                    name, vni=network.vni, local=local, mac=_own_mac(network), mtu=network.mtu, group=GROUP,
                    port=network.port,
                )])
            except NetlinkError as err:
                if err.code == errno.EOPNOTSUPP:
                    text = f"network {network.name}: this host's kernel has no VXLAN (module vxlan)"
                    raise NotSupported(text) from err
                raise
        vxlan, bridge = self._link(name), self._link(network.bridge)
        with contextlib.suppress(Internal):  # a kernel without IPv6 has no such switch
            netns.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        steps = [messages.set_port(vxlan.index), netlink.set_up(vxlan.index)]
        if vxlan.master != bridge.index:
            steps.insert(0, netlink.set_master(vxlan.index, bridge.index))
        self._host.send(steps)

    def remove(self, network: NetworkRecord) -> None:
        delete_ours(self._host, vxlan_of(network))
        super().remove(network)

    def links_of(self, network: NetworkRecord) -> Iterable[str]:
        return (network.bridge, vxlan_of(network))

    def program(
        self, network: NetworkRecord, before: Mapping[str, Remote] | None, after: Mapping[str, Remote]
    ) -> None:
        """Make the kernel know the remote endpoints of `after`, given that it knows those of `before` (by address).

        before None: an agent that is gone may have told it anything; what is not in `after` goes.
        """
        vxlan, bridge = self._link(vxlan_of(network)).index, self._link(network.bridge).index
        removing = self._strangers(vxlan, bridge, after) if before is None else []
        before = before or {}
        adding: list[Message] = []
        kept = {remote.mac for remote in after.values()}
        for address, known in before.items():
            if (now := after.get(address)) is None or now.mac != known.mac:
                gone = messages.remove_remote(vxlan, bridge, address=ip_address(address), mac=known.mac)
                # A MAC that goes on with another address keeps its entry.
                removing += gone[1:] if known.mac in kept else gone
        for address, remote in after.items():
            if before.get(address) != remote:
                adding += messages.add_remote(
                    vxlan, bridge, address=ip_address(address), mac=remote.mac, node=ip_address(remote.node)
                )
        for first in range(0, len(removing), BATCH):
            self._host.send(removing[first : first + BATCH], ignore=_GONE)
        for first in range(0, len(adding), BATCH):
            self._host.send(adding[first : first + BATCH])

    def _strangers(self, vxlan: int, bridge: int, after: Mapping[str, Remote]) -> list[Message]:
        """What removes entries that are nobody's in `after`."""
        # An entry is in two tables, and listed twice.
        listed = {messages.parse_forward(body) for body in self._dump(messages.AF_BRIDGE, vxlan)}
        strange = listed - {remote.mac for remote in after.values()}
        known = {ip_address(address) for address in after}
        removing = [messages.remove_forward(vxlan, mac) for mac in strange if mac is not None]
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(family, bridge):
                address = messages.parse_neighbour(body)
                if address is not None and address not in known:
                    removing.append(messages.remove_neighbour(bridge, address))
        return removing

    def _dump(self, family: int, index: int) -> list[bytes]:
        body = messages.neighbours_query(family, index)
        return self._host.dump(messages.RTM_GETNEIGH, body, f"listing the neighbours of link {index}")

    def _link(self, name: str) -> Link:
        link = self._host.link(name)
        if link is None:
            raise Internal(f"interface {name} is missing; restart the agent to make it again")
        return link


def vxlan_of(network: NetworkRecord) -> str:
    return f"vx-{network.id[:12]}"


def bridge_of(network_id: str) -> str:
    return f"ov-{network_id[:12]}"


def _own_mac(network: NetworkRecord) -> str:
    """Of the VXLAN device; any that no container has."""
    return "02:43" + mac_of(ip_address(network.gateway))[5:]
