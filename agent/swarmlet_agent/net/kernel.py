"""The kernel's side of local networks: namespaces, their interfaces, rules. Runs in the "net" thread only.

All calls are synchronous and belong to one thread, which enters namespaces and comes back. The kernel is asked,
never remembered: every `ensure_…` looks first.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet.ipam import AnyNetwork
from swarmlet.log import get_logger
from swarmlet_agent.net import conntrack, netlink, netns, plan_attach, plan_endpoint
from swarmlet_agent.net.balance.kernel import Balancers
from swarmlet_agent.net.dns_sockets import DnsSockets, bind_dns, change_rules_here
from swarmlet_agent.net.link_drivers import GROUP, BridgeLinks, LinkDriver, delete_ours
from swarmlet_agent.net.mesh.kernel import Mesh
from swarmlet_agent.net.netlink import Link, Message, Netlink
from swarmlet_agent.net.nft import Nft, NftError
from swarmlet_agent.net.nftset import ElementsError, ElementSocket
from swarmlet_agent.net.overlay.links import OverlayLinks
from swarmlet_agent.net.plan_attach import DefaultRoutes
from swarmlet_agent.net.plan_dns_rules import dns_rules
from swarmlet_agent.net.plan_parents import KINDS
from swarmlet_agent.net.plan_port_elements import port_changes
from swarmlet_agent.net.plan_rules import TABLE, dns_ruleset, no_ruleset, without_ipv6
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord, PortRecord, SandboxRecord
from swarmlet_agent.net.site_links import SiteLinks
from swarmlet_agent.net.slots import NFPROTO
from swarmlet_agent.net.wireguard.kernel import Wireguard
from swarmlet_agent.net.wireguard.userspace import UserspaceDevices

log = get_logger(__name__)


class KernelNet:
    """One host's (one agent namespace's) kernel objects. `open` first; for one thread."""

    def __init__(self, netns_folder: Path, wireguard: UserspaceDevices | None = None) -> None:
        """wireguard: the program that encrypts where the kernel cannot."""
        self.folder = netns_folder
        self._host: Netlink | None = None
        self._nft: Nft | None = None
        self._elements: ElementSocket | None = None
        self._drivers: dict[str, LinkDriver] = {}
        #: Virtual addresses of services, in containers' namespaces.
        self.balancers = Balancers(netns_folder)
        #: A kernel made or started without IPv6 has no firewall for it either.
        self.has_ipv6 = Path("/proc/sys/net/ipv6").is_dir()
        self._mesh: Mesh | None = None
        self._wireguard: Wireguard | None = None
        self._wireguard_program = wireguard
        #: Opened by a build whose caller may have been cancelled; the caller takes them out.
        self._dns: dict[str, DnsSockets] = {}

    @property
    def host(self) -> Netlink:
        if self._host is None:
            raise Internal("the networks are not started")
        return self._host

    @property
    def nft(self) -> Nft:
        if self._nft is None:
            raise Internal("the networks are not started")
        return self._nft

    @property
    def elements(self) -> ElementSocket:
        if self._elements is None:
            raise Internal("the networks are not started")
        return self._elements

    @property
    def mesh(self) -> Mesh:
        if self._mesh is None:
            raise Internal("the networks are not started")
        return self._mesh

    @property
    def wireguard(self) -> Wireguard:
        if self._wireguard is None:
            raise Internal("the networks are not started")
        return self._wireguard

    def open(self) -> None:
        netns.ensure_folder(self.folder)
        netns.write_sysctl("net/ipv4/ip_forward", "1")
        self._host, self._nft, self._elements = Netlink(), Nft(), ElementSocket()
        self.bridges = BridgeLinks(self._host)
        self.overlays = OverlayLinks(self._host)
        self._mesh = Mesh()
        self._wireguard = Wireguard(self._wireguard_program)
        sites = {name: SiteLinks(self._host, kind) for name, kind in KINDS.items()}
        self._drivers = {"bridge": self.bridges, "overlay": self.overlays, **sites}

    def close(self) -> None:
        for sockets in self._dns.values():
            sockets.close()
        self._dns.clear()
        self.balancers.close()
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None
        if self._wireguard is not None:
            self._wireguard.close()
            self._wireguard = None
        if self._host is not None:
            self._host.close()
        if self._nft is not None:
            self._nft.close()
        if self._elements is not None:
            self._elements.close()
        self._host = self._nft = self._elements = None

    def path(self, container_id: str) -> Path:
        return self.folder / container_id

    # Networks

    def driver(self, network: NetworkRecord) -> LinkDriver:
        """KeyError for a network without links (host, none)."""
        return self._drivers[network.driver]

    def links(self) -> list[Link]:
        return self.host.links()

    def routes(self) -> list[AnyNetwork]:
        return self.host.routes()

    # Rules

    def change_rules(self, change: str, whole: Callable[[], str]) -> None:
        """Apply a change; if the table is not as we left it, load all of it anew (`whole` is what should be)."""
        if not change:
            return
        try:
            self._run_rules(change)
        except NftError as err:
            log.warning("firewall table changed by someone else; loading it again", reason=str(err))
            self._run_rules(whole())

    def change_ports(
        self, before: Sequence[PortRecord], after: Sequence[PortRecord], whole: Callable[[], str]
    ) -> None:
        """Published ports, as `change_rules` for what is changed by text."""
        changes = port_changes(before, after)
        if not self.has_ipv6:
            changes = tuple(change for change in changes if change.family != NFPROTO[6])
        try:
            self.elements.apply(changes)
        except ElementsError as err:
            log.warning("firewall table changed by someone else; loading it again", reason=str(err))
            self._run_rules(whole())

    def load_rules(self, whole: str) -> None:
        self._run_rules(whole)

    def _run_rules(self, text: str) -> None:
        if text := text if self.has_ipv6 else without_ipv6(text):
            self.nft.run(text)

    # Sandboxes

    def build(self, sandbox: SandboxRecord, networks: dict[str, NetworkRecord], routes: DefaultRoutes) -> int:
        """A namespace with all its interfaces and, if wanted, DNS sockets; returns their port (0: none).

        What an earlier try left is removed first; what a failing one leaves, the caller removes with `destroy`.
        """
        self.destroy(sandbox.container_id)
        with netns.new_namespace(self.path(sandbox.container_id), sandbox.user_namespace) as descriptor:
            inner = Netlink()
            try:
                self._prepare(inner)
                port = self._open_dns(sandbox) if sandbox.dns_port else 0
                for endpoint in sandbox.endpoints:
                    if endpoint.interface:
                        network = networks[endpoint.network_id]
                        self._plug(inner, descriptor, endpoint, network, routes.of(endpoint))
            finally:
                inner.close()
        return port

    def plug(self, container_id: str, endpoint: EndpointRecord, network: NetworkRecord) -> None:
        """One more interface in a living namespace, without a default route."""
        with netns.inside(self.path(container_id)) as descriptor:
            inner = Netlink()
            try:
                self._plug(inner, descriptor, endpoint, network, ())
            finally:
                inner.close()

    def unplug(self, container_id: str, endpoint: EndpointRecord) -> None:
        """Take an interface away; not there is fine."""
        if endpoint.veth:
            delete_ours(self.host, endpoint.veth)
        else:
            self._delete_inside(container_id, [endpoint.interface])

    def set_default_route(self, container_id: str, endpoint: EndpointRecord, gateway: str) -> None:
        with netns.inside(self.path(container_id)):
            inner = Netlink()
            try:
                link = inner.link(endpoint.interface)
                if link is None:
                    raise Internal(f"interface {endpoint.interface} of container {container_id} is missing")
                inner.send([netlink.default_route(link.index, ip_address(gateway))])
            finally:
                inner.close()

    def destroy(self, container_id: str, endpoints: Iterable[EndpointRecord] = ()) -> None:
        """Let go of a namespace; the kernel takes its interfaces down in its own time. Not there is fine.

        endpoints: those without an end on the host are deleted first, for their addresses are the site's.
        """
        inner = [endpoint.interface for endpoint in endpoints if endpoint.interface and not endpoint.veth]
        if inner:
            self._delete_inside(container_id, inner)
        if (sockets := self._dns.pop(container_id, None)) is not None:
            sockets.close()
        self.balancers.forget(container_id)
        netns.forget(self.path(container_id))

    def take_dns(self, container_id: str) -> DnsSockets | None:
        """The sockets that `build` or `open_dns` opened, to be served and closed by the caller. From any thread."""
        return self._dns.pop(container_id, None)

    def open_dns(self, sandbox: SandboxRecord) -> int:
        """DNS sockets, and the rules that lead to them, in a living namespace that had none."""
        with netns.inside(self.path(sandbox.container_id)):
            return self._open_dns(sandbox)

    def reopen_dns(self, sandbox: SandboxRecord) -> int:
        """DNS sockets for a container that outlived the agent: its rules lead to the recorded port.

        Where another process has taken that port meanwhile, another one and other rules.
        """
        with netns.inside(self.path(sandbox.container_id)):
            sockets = bind_dns(sandbox.dns_port)
            self._dns[sandbox.container_id] = sockets
            if sockets.port != sandbox.dns_port:
                change_rules_here(f"delete table {TABLE}\n" + dns_ruleset(sockets.port))
            return sockets.port

    def open_socket(self, container_id: str, family: int, kind: int) -> socket.socket:
        """A non-blocking socket that sends from inside the container's namespace."""
        with netns.inside(self.path(container_id)):
            return socket.socket(family, kind | socket.SOCK_NONBLOCK)

    def alive(self, sandbox: SandboxRecord, links: Iterable[Link]) -> bool:
        """True if the namespace and every interface of a recorded sandbox are there."""
        names = {link.name for link in links}
        return netns.is_namespace(self.path(sandbox.container_id)) and all(
            endpoint.veth in names for endpoint in sandbox.endpoints if endpoint.veth
        )

    def counters(self, container_id: str) -> list[Link]:
        """The interfaces of a container with their statistics. FileNotFoundError if it has no namespace."""
        with netns.inside(self.path(container_id)):
            inner = Netlink()
            try:
                return inner.links(counters=True)
            finally:
                inner.close()

    def gone(self, veths: Sequence[str]) -> set[str]:
        """Those of these interfaces that no longer exist."""
        return {name for name in veths if self.host.link(name) is None}

    def delete_links(self, names: Iterable[str]) -> None:
        """Ours only. For what the kernel did not reap because something still holds the namespace."""
        for name in names:
            delete_ours(self.host, name)

    def flush_udp(self, ports: Sequence[int]) -> None:
        """Forget tracked UDP flows to these host ports, so that the next packet meets the rules of now."""
        if ports:
            conntrack.flush_udp(frozenset(ports))

    # Whole hosts

    def sweep(self, live: set[str], veths: set[str], networks: Iterable[NetworkRecord]) -> None:
        """After a crash: remove what is ours and unknown, put recorded interfaces back into their bridges."""
        for entry in list(self.folder.iterdir()):
            if entry.name not in live:
                netns.forget(entry)
        known = veths | {name for network in networks for name in self.driver(network).links_of(network)}
        for link in self.host.links():
            if link.group == GROUP and link.name not in known:
                log.info("removing a leftover interface", interface=link.name)
                self.host.send([netlink.delete_link(link.index)], ignore=frozenset({errno.ENODEV}))

    def teardown(self) -> None:
        """Remove everything of ours from this namespace."""
        for sockets in self._dns.values():
            sockets.close()
        self._dns.clear()
        self.balancers.close()
        netns.remove_folder(self.folder)
        self.mesh.remove()
        self.wireguard.remove()
        for link in self.host.links():
            if link.group == GROUP:
                self.host.send([netlink.delete_link(link.index)], ignore=frozenset({errno.ENODEV}))
        self._run_rules(no_ruleset())

    # Inside a namespace

    def _prepare(self, inner: Netlink) -> None:
        # As Docker: low ports and ping without privileges in a namespace of its own. An interface has IPv6 only where
        # its network has (the loopback keeps ::1); a kernel without IPv6 has no such switch.
        netns.write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
        netns.write_sysctl("net/ipv4/ping_group_range", "0 2147483647")
        with contextlib.suppress(Internal):
            netns.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        inner.send([netlink.set_up(1)])

    def _plug(
        self, inner: Netlink, descriptor: int, endpoint: EndpointRecord, network: NetworkRecord, routes: Sequence[str]
    ) -> None:
        """routes: gateways of default routes over it. The thread is in the container's namespace."""
        self.driver(network).plug(descriptor, endpoint, network)
        link = inner.link(endpoint.interface)
        if link is None:
            raise Internal(f"interface {endpoint.interface} did not appear in the container's namespace")
        ipam = endpoint.wish.ipam_config
        further = plan_attach.link_local(ipam.link_local_ips) if ipam is not None else []
        if endpoint.ip6 or any(address.version == 6 for address in further):
            # Addresses are given by us, who know that nobody else has them: no probing, no announcements heard.
            for switch, value in (("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")):
                netns.write_sysctl(f"net/ipv6/conf/{endpoint.interface}/{switch}", value)
        for name, value in plan_endpoint.sysctls(endpoint.wish.driver_opts, endpoint.interface):
            netns.write_sysctl(name, value)
        messages: list[Message] = [
            netlink.add_address(link.index, ip_interface(f"{address}/{prefix}"))
            for address, prefix in ((endpoint.ip, endpoint.prefix), (endpoint.ip6, endpoint.prefix6)) if address
        ]
        messages += [netlink.add_address(link.index, address) for address in further]
        messages.append(netlink.set_up(link.index))
        messages += [netlink.default_route(link.index, ip_address(gateway)) for gateway in routes]
        inner.send(messages)

    def _delete_inside(self, container_id: str, interfaces: Iterable[str]) -> None:
        """Interfaces of a namespace; without it they are gone too."""
        with contextlib.suppress(FileNotFoundError), netns.inside(self.path(container_id)):
            inner = Netlink()
            try:
                for name in interfaces:
                    if (link := inner.link(name)) is not None:
                        inner.send([netlink.delete_link(link.index)], ignore=frozenset({errno.ENODEV}))
            finally:
                inner.close()

    def _open_dns(self, sandbox: SandboxRecord) -> int:
        """In the container's namespace: sockets, and the rules that lead port 53 to them."""
        sockets = bind_dns(sandbox.dns_port)
        self._dns[sandbox.container_id] = sockets
        with ElementSocket() as rules:
            rules.make(dns_rules(sockets.port), "leading port 53 to the embedded DNS server")
        return sockets.port
