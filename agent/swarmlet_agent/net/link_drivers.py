"""What the kernel has of a network, driver by driver: its own links, and how a container's interface hangs on them.

Runs in the "net" thread only. A new kind of network is a new `LinkDriver`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Protocol

from swarmlet.errors import Conflict, Internal
from swarmlet.ipam import mac_of
from swarmlet_agent.net import netlink, netns
from swarmlet_agent.net.netlink import Link, Netlink, NetlinkError
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord

#: Interfaces with this group number are ours (a veth or bridge of any other group is never touched).
GROUP = 0x53574C01
_GONE = frozenset({errno.ENODEV})


class LinkDriver(Protocol):
    """One kind of network. The host's links of it, and containers' interfaces."""

    def make(self, network: NetworkRecord) -> None:
        """A new network: as `ensure`, and refuse at once what no container could have."""
        ...

    def ensure(self, network: NetworkRecord) -> None:
        """The network's own links are there and up. Conflict if a name is someone else's."""
        ...

    def remove(self, network: NetworkRecord) -> None:
        """Its own links go. Not there, or not ours, is fine."""
        ...

    def plug(self, netns_fd: int, endpoint: EndpointRecord, network: NetworkRecord) -> None:
        """A container's interface, under the endpoint's name for it, in its namespace; down, without addresses."""
        ...

    def links_of(self, network: NetworkRecord) -> Iterable[str]:
        """Names on the host that belong to the network."""
        ...


def delete_ours(host: Netlink, name: str) -> None:
    """Not there, or not ours, is fine."""
    link = host.link(name)
    if link is not None and link.group == GROUP:
        host.send([netlink.delete_link(link.index)], ignore=_GONE)


class BridgeLinks:
    """A bridge for each network, with the gateway's addresses; a veth pair for each container."""

    def __init__(self, host: Netlink) -> None:
        self._host = host

    def make(self, network: NetworkRecord) -> None:
        self.ensure(network)

    def ensure(self, network: NetworkRecord) -> None:
        link = self._host.link(network.bridge)
        if link is None:
            mac = mac_of(ip_address(network.families[0].gateway))
            self._host.send([netlink.new_bridge(network.bridge, mac=mac, mtu=network.mtu, group=GROUP)])
            link = self._bridge(network.bridge)
        elif link.group != GROUP or link.kind != "bridge":
            raise Conflict(f"network {network.name}: interface {network.bridge} exists and is not ours")
        self._set_ipv6(network)
        # For ports published on 127.0.0.1; the ruleset's guard chain closes what this would open.
        netns.write_sysctl(f"net/ipv4/conf/{network.bridge}/route_localnet", "1")
        addresses = [
            netlink.add_address(link.index, ip_interface(f"{part.gateway}/{ip_network(part.subnet).prefixlen}"))
            for part in network.bridge_parts
        ]
        self._host.send([*addresses, netlink.set_up(link.index)])

    def remove(self, network: NetworkRecord) -> None:
        delete_ours(self._host, network.bridge)

    def plug(self, netns_fd: int, endpoint: EndpointRecord, network: NetworkRecord) -> None:
        bridge = self._bridge(network.bridge)
        pair = [
            netlink.new_veth(
                endpoint.veth, bridge=bridge.index, mtu=network.mtu, group=GROUP, peer_name=endpoint.interface,
                peer_mac=endpoint.mac, peer_netns_fd=netns_fd,
            ),
            # Hairpin: on hosts with br_netfilter a container reaches its own published port through the bridge.
            netlink.set_bridge_port(endpoint.veth, hairpin=True, isolated=not network.inter_container),
        ]
        try:
            self._host.send(pair)
        except NetlinkError as err:
            if err.code != errno.EEXIST:
                raise
            # The same container's interface of a moment ago, which the kernel is still about to reap.
            delete_ours(self._host, endpoint.veth)
            self._host.send(pair)

    def ensure_master(self, endpoint: EndpointRecord, network: NetworkRecord) -> None:
        """A recorded interface is in its bridge (someone may have removed the bridge meanwhile)."""
        bridge, link = self._host.link(network.bridge), self._host.link(endpoint.veth)
        if bridge is not None and link is not None and link.master != bridge.index:
            port = netlink.set_bridge_port(endpoint.veth, hairpin=True, isolated=not network.inter_container)
            self._host.send([netlink.set_master(link.index, bridge.index), port])

    def links_of(self, network: NetworkRecord) -> Iterable[str]:
        return (network.bridge,)

    def _bridge(self, name: str) -> Link:
        link = self._host.link(name)
        if link is None:
            raise Internal(f"bridge {name} is missing; restart the agent to make it again")
        return link

    def _set_ipv6(self, network: NetworkRecord) -> None:
        """IPv6 on the network's bridge, and forwarding on the host, or off before the bridge comes up: else it would
        announce itself."""
        own = f"net/ipv6/conf/{network.bridge}"
        if not network.v6.subnet:
            with contextlib.suppress(Internal):  # a kernel without IPv6 has no such switch
                netns.write_sysctl(f"{own}/disable_ipv6", "1")
            return
        # No probing for duplicates: until it ends, the bridge could not even ask for a container's link address.
        for switch, value in (("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")):
            netns.write_sysctl(f"{own}/{switch}", value)
        ensure_ipv6_forwarding()


def ensure_ipv6_forwarding() -> None:
    """The host forwards IPv6 packets. What it learnt from routers itself stays: an interface that listens to their
    announcements goes on doing so (2), which a forwarding host otherwise would not."""
    folder = Path("/proc/sys/net/ipv6/conf")
    if (folder / "all/forwarding").read_text().strip() == "1":
        return
    for switch in folder.glob("*/accept_ra"):
        if switch.read_text().strip() == "1":
            netns.write_sysctl(f"net/ipv6/conf/{switch.parent.name}/accept_ra", "2")
    netns.write_sysctl("net/ipv6/conf/default/forwarding", "1")
    netns.write_sysctl("net/ipv6/conf/all/forwarding", "1")
