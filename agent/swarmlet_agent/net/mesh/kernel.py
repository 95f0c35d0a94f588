"""The routing mesh in the kernel of one node. Runs in the "net" thread only."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path

from swarmlet.errors import Conflict, Internal, NotSupported
from swarmlet.log import get_logger
from swarmlet_agent.net import conntrack, netlink, netns
from swarmlet_agent.net.dns_sockets import change_rules_here
from swarmlet_agent.net.link_drivers import ensure_ipv6_forwarding
from swarmlet_agent.net.mesh import messages
from swarmlet_agent.net.mesh.plan import (
    DEVICE,
    PROTOCOLS,
    Device,
    MeshState,
    Programmed,
    device,
    elements,
    plan,
    split_ways,
    way,
)
from swarmlet_agent.net.mesh.rules import FORMER, SETS, TABLE, ruleset
from swarmlet_agent.net.netlink import Link, Message, Netlink, NetlinkError
from swarmlet_agent.net.nftset import Change, ElementsError, ElementSocket, Verb
from swarmlet_agent.net.overlay.messages import RTM_GETNEIGH, neighbours_query
from swarmlet_agent.net.slots import NFPROTO, in_turn, no_table

log = get_logger(__name__)

#: Not the group of containers' links: those are swept when an agent comes back.
GROUP = 0x53574C02
#: Messages in one system call: their answers must fit the socket's buffer.
BATCH = 100
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH})


class Mesh:
    """One node's part of the mesh. Made by the thread, and in the namespace, whose traffic it is for.

    What an earlier agent left is taken over by the first `ensure`: what is right stays as it is.
    """

    def __init__(self) -> None:
        self._host = Netlink()
        self._sets = ElementSocket()
        self._programmed: Programmed | None = None
        self._ipv6 = Path("/proc/sys/net/ipv6").exists()

    def close(self) -> None:
        """At the agent's end: the mesh goes on without us."""
        self._host.close()
        self._sets.close()

    def ensure(self, state: MeshState) -> None:
        """Make the kernel what `state` says. After an error (NetlinkError, ElementsError, NftError) it is looked at
        anew by the next call."""
        fresh, index = self._ensure_device(device(state, ipv6=self._ipv6))
        before, self._programmed = self._programmed, None
        links = self._read(index) if before is None or fresh else before
        after = plan(before or Programmed(), state, ipv6=self._ipv6)
        if after.forwards_ipv6:
            ensure_ipv6_forwarding()
        # New ways first, then who is sent there; old ways go when nobody is sent there any more.
        new, old = after.ways.items() - links.ways.items(), links.ways.items() - after.ways.items()
        self._send(
            [messages.add_neighbour(index, one) for one in after.neighbours - links.neighbours]
            + [messages.add_route(index, one) for one in after.routes - links.routes]
            + [messages.add_route(index, way(*one)) for one in new]
            + [messages.add_rule(one) for one in after.rules - links.rules],
            frozenset({errno.EEXIST}),
        )
        self._ensure_elements(before, after)
        kept = {(one.underlay, one.address) for one in after.neighbours if not one.underlay}
        self._send(
            [messages.remove_rule(one) for one in links.rules - after.rules]
            + [messages.remove_route(index, one) for one in links.routes - after.routes]
            + [messages.remove_route(index, way(*one)) for one in old]
            + [
                messages.remove_neighbour(index, one)
                for one in links.neighbours - after.neighbours if (one.underlay, one.address) not in kept
            ],
            _GONE,
        )
        if before is not None:
            self._look_again(before, after)
        self._programmed = after

    def cut(self, addresses: Iterable[str]) -> None:
        """These backends are gone: UDP flows that lead there are forgotten, the next packet finds another."""
        if packed := frozenset(ip_address(address).packed for address in addresses):
            conntrack.cut_udp(self._sets.channel, packed)

    def remove(self) -> None:
        """Everything of the mesh goes. Not there, or not ours, is fine."""
        self._programmed = None
        change_rules_here("".join(no_table(family, name) for family in self._families() for name in (*FORMER, TABLE)))
        link = self._host.link(DEVICE)
        there = self._read(link.index if link is not None else 0)
        self._send([messages.remove_rule(rule) for rule in there.rules], _GONE)
        if link is not None and link.group == GROUP:
            self._send([netlink.delete_link(link.index)], _GONE)  # its routes and neighbours go with it

    # The device

    def _ensure_device(self, wanted: Device) -> tuple[bool, int]:
        """Whether it was made now, and its index."""
        link = self._host.link(DEVICE)
        if link is not None and (link.group != GROUP or link.kind != "vxlan"):
            raise Conflict(f"interface {DEVICE} exists and is not ours: the routing mesh needs that name")
        if link is not None and link.mac != wanted.mac:
            self._host.send([netlink.delete_link(link.index)], ignore=_GONE)  # it was made for another address
            link = None
        if link is not None and link.up:
            if link.mtu != wanted.mtu:
                self._host.send([netlink.set_mtu(link.index, wanted.mtu)])
            return False, link.index
        if link is None:
            link = self._make_device(wanted)
        self._set_switches()
        addresses = [netlink.add_address(link.index, ip_interface(str(address))) for address in wanted.addresses]
        self._host.send([*addresses, netlink.set_up(link.index)])
        return True, link.index

    def _make_device(self, wanted: Device) -> Link:
        try:
            self._host.send([messages.new_device(wanted, GROUP)])
        except NetlinkError as err:
            if err.code == errno.EOPNOTSUPP:
                raise NotSupported("this host's kernel has no VXLAN (module vxlan): no routing mesh") from err
            raise
        link = self._host.link(DEVICE)
        if link is None:
            raise Internal(f"interface {DEVICE} did not appear")
        return link

    def _set_switches(self) -> None:
        own = f"net/ipv4/conf/{DEVICE}"
        # Clients' addresses come in here that another way leads back to: at most "is there any way", where the host
        # asks for more.
        strict = Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text().strip() != "0"
        for switch, value in (("rp_filter", "2" if strict else "0"), ("send_redirects", "0"), ("route_localnet", "1")):
            netns.write_sysctl(f"{own}/{switch}", value)
        if self._ipv6:
            # Its addresses are given by us, and nobody announces anything here.
            for switch, value in (("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")):
                netns.write_sysctl(f"net/ipv6/conf/{DEVICE}/{switch}", value)
            netns.write_sysctl(f"net/ipv6/conf/{DEVICE}/disable_ipv6", "0")

    def _read(self, index: int) -> Programmed:
        """What the kernel has of ours, but for elements."""
        neighbours, routes, rules = set(), set(), set()
        for family in messages.NEIGHBOUR_FAMILIES if index else ():
            for body in self._dump(RTM_GETNEIGH, neighbours_query(family, index)):
                if (neighbour := messages.parse_neighbour(body)) is not None:
                    neighbours.add(neighbour)
        for family in self._families():
            for body in self._dump(netlink.RTM_GETROUTE, messages.routes_query(family)):
                if (route := messages.parse_route(body)) is not None:
                    routes.add(route)
            for body in self._dump(messages.RTM_GETRULE, messages.rules_query(family)):
                if (rule := messages.parse_rule(body)) is not None:
                    rules.add(rule)
        back, ways = split_ways(routes)
        return Programmed(frozenset(neighbours), back, frozenset(rules), ways=ways)

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        try:
            return self._host.dump(kind, body, "listing what the routing mesh has")
        except NetlinkError as err:
            if err.code == errno.ENOENT:  # no such table: no such routes
                return []
            raise

    def _families(self) -> tuple[int, ...]:
        return (4, 6) if self._ipv6 else (4,)

    def _send(self, batch: Sequence[Message], ignore: frozenset[int]) -> None:
        for first in range(0, len(batch), BATCH):
            self._host.send(batch[first : first + BATCH], ignore=ignore)

    # Elements

    def _ensure_elements(self, before: Programmed | None, after: Programmed) -> None:
        if before is not None:
            try:
                for changes in in_turn(elements(TABLE, before, after)):
                    self._sets.apply(changes)
                return
            except ElementsError as err:
                log.warning("mesh maps changed by someone else; loading them again", reason=str(err))
        for family in self._families():
            if not self._sets.has_table(NFPROTO[family], TABLE):
                change_rules_here(ruleset(family))
        emptied = [
            Change(Verb.REMOVE, NFPROTO[family], TABLE, name) for family in self._families() for name in SETS
        ]
        whole = elements(TABLE, Programmed(), after)
        try:
            self._sets.apply([*emptied, *whole])
        except ElementsError:
            change_rules_here("".join(ruleset(family) for family in self._families()))
            self._sets.apply(whole)
        # Those of an earlier agent led connections until ours did.
        if former := [
            (family, name) for family in self._families() for name in FORMER
            if self._sets.has_table(NFPROTO[family], name)
        ]:
            change_rules_here("".join(no_table(*table) for table in former))

    def _look_again(self, before: Programmed, after: Programmed) -> None:
        """UDP flows to ports that came or went meet the rules of now."""
        changed = {key[3] for key in before.slots.keys() ^ after.slots.keys() if key[2] == PROTOCOLS["udp"]}
        if changed:
            conntrack.flush_udp(frozenset(changed))

