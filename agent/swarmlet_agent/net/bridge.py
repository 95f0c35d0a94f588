"""Docker's local networks on this node: the engine's `Networks`, and the operations of the API's network calls.

Everything happens in the network namespace the agent runs in. Starting is recovering: the kernel is brought to
what the journal says, containers that outlived the agent keep their traffic throughout.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, Forbidden, Internal, NotFound, NotSupported
from swarmlet.ipam import parse_subnet, pick_subnet
from swarmlet.log import get_logger
from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.journal import Journal
from swarmlet_agent.net import plan_attach, plan_config, plan_parents, plan_rules, views
from swarmlet_agent.net.container_files import ContainerFiles
from swarmlet_agent.net.dns import EmbeddedDns, HostResolvers
from swarmlet_agent.net.firewall_check import explain, find_dropping
from swarmlet_agent.net.ground import ENDPOINTS, NETWORKS, Ground, OnEvent
from swarmlet_agent.net.kernel import KernelNet
from swarmlet_agent.net.mesh.plan import SUBNETS as MESH_SUBNETS
from swarmlet_agent.net.overlay.cluster import ClusterNetworks
from swarmlet_agent.net.overlay.leases import ClusterLeases
from swarmlet_agent.net.overlay.ways import EncryptedWays
from swarmlet_agent.net.plan_create import default_network, plan_network
from swarmlet_agent.net.plan_ipam import DEFAULT_POOLS, Pools
from swarmlet_agent.net.records import BRIDGE, HOST, NONE, SHARED, NetworkRecord, NotConnected, SandboxRecord
from swarmlet_agent.net.requests import NetworkConnect, NetworkCreate, NetworkDisconnect, NetworkView
from swarmlet_agent.net.sandboxes import Sandboxes
from swarmlet_agent.net.types import Attachment, ContainerView, InterfaceCounters, NetworkWish
from swarmlet_agent.net.wireguard.userspace import UserspaceDevices

log = get_logger(__name__)

#: How often other firewalls' rules are looked at.
FIREWALL_PERIOD_S = 60.0


class Containers(Protocol):
    """What connect and disconnect need of the engine."""

    def view(self, ref: str) -> ContainerView:
        """By name, id or id prefix. NotFound."""
        ...

    async def endpoint_changed(self, container_id: str, network: str, settings: EndpointSettings | None) -> None:
        """A client connected the container to a network (as attached, or as wished if it does not run), or took it
        off (None)."""
        ...


def _ignore_event(action: str, network: NetworkRecord, attributes: Mapping[str, str]) -> None:
    """For a user without interest in events."""


class BridgeNetworks:
    """`start` first, `close` last; containers keep their networks when this ends (only `teardown` ends them)."""

    def __init__(
        self, run_dir: Path, data_dir: Path, journal: Journal, *, bridge_name: str = "swl0",
        default_subnet: str = "172.17.0.0/16", default_subnet6: str = "", default_gateway: str = "", mtu: int = 1500,
        pools: Pools = DEFAULT_POOLS, wireguard_program: str = "",
        on_event: OnEvent = _ignore_event, host_resolv_conf: Path = Path("/etc/resolv.conf"),
        host_hosts: Path = Path("/etc/hosts"), clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._default = (bridge_name, default_subnet, default_subnet6, default_gateway, mtu)
        self._pools = pools
        self._clock = clock
        self._containers: Containers | None = None
        program = UserspaceDevices(wireguard_program, run_dir / "wireguard") if wireguard_program else None
        self._ground = Ground(KernelNet(run_dir / "netns", program), journal, on_event)
        self._dns = EmbeddedDns(self._ground.names, HostResolvers(host_resolv_conf), self._open_inside)
        texts = ContainerFiles(self._ground, data_dir, host_resolv_conf, host_hosts)
        self.leases = ClusterLeases(self._ground)
        self._sandboxes = Sandboxes(self._ground, self._dns, texts, self.leases, data_dir)
        self.cluster = ClusterNetworks(
            self._ground, self.leases, self._make_wide, self._unmake_wide,
            EncryptedWays(self._ground, data_dir / "tls" / "ways.json"),
        )
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def bind(self, containers: Containers, on_event: OnEvent | None = None) -> None:
        """Say who knows the containers, and who hears of events (they are made after the networks)."""
        self._containers = containers
        if on_event is not None:
            self._ground.on_event = on_event

    def bind_problems(self, on_problems: Callable[[], None]) -> None:
        """Say who hears that `problems` has changed."""
        self._ground.on_problems = on_problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps this host's networks from working, for its operator."""
        return tuple(problem for found in self._ground.problems.values() for problem in found)

    def subnets(self) -> tuple[str, ...]:
        """Of this host's networks and of the routing mesh itself: no address in them is the host's for others."""
        return (*map(str, self._ground.catalog.subnets()), *MESH_SUBNETS)

    # Life

    async def start(self) -> None:
        """Make the kernel what the journal says; adopt what runs. Internal, Conflict if that is impossible.

        Start before the runtime takes its copy of the mount namespace: the folder of namespaces must be shared.
        """
        ground = self._ground
        for _, value in ground.journal.items(NETWORKS):
            ground.catalog.put(msgspec.msgpack.decode(value, type=NetworkRecord))
        stored = ground.journal.items(ENDPOINTS)
        sandboxes = [msgspec.msgpack.decode(value, type=SandboxRecord) for _, value in stored]
        await ground.run(ground.kernel.open)
        await self._ensure_predefined({endpoint.network_id for box in sandboxes for endpoint in box.endpoints})
        self._sandboxes.restore(sandboxes, ground.catalog.by_id)
        await ground.run(self._recover)
        await self._sandboxes.adopt()
        self.leases.restore()
        await self.cluster.start()
        self._tasks = [
            asyncio.create_task(ground.reap(), name="net-reaper"),
            asyncio.create_task(self._undo_lost(), name="net-lost-leases"),
            asyncio.create_task(self._watch_firewalls(), name="net-firewall-check"),
            asyncio.create_task(self.cluster.mend(), name="net-again"),
            asyncio.create_task(self.cluster.entry.run(), name="net-mesh"),
            asyncio.create_task(self.cluster.entry.mend(), name="net-mesh-again"),
            asyncio.create_task(self.cluster.ways.keep(), name="net-ways"),
        ]

    async def close(self) -> None:
        """Stop serving; every container keeps its networks and published ports."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dns.close()
        await self._sandboxes.end_service()
        await self._ground.run(self._ground.kernel.close)
        self._ground.ports.close()
        self._ground.end_thread()

    async def teardown(self) -> None:
        """Remove every namespace, interface and rule of this agent from the host, for good. Then `close`.

        The run folder stays a shared mount: the runtime's own teardown ends that.
        """
        ground = self._ground
        await self._sandboxes.end_service(for_good=True)
        for ident in list(ground.live):
            self._dns.stop(ident)
            ground.ports.release(ident)
        ground.live.clear()
        await ground.run(ground.kernel.teardown)

    async def retain(self, container_ids: Collection[str]) -> None:
        """Drop what is kept for containers that no longer exist (all others, by full id)."""
        for ident in list(self._ground.sandboxes):
            if ident not in container_ids:
                await self.detach(ident)

    # engine.ports.Networks

    async def attach(self, wish: NetworkWish) -> Attachment:
        return await self._sandboxes.attach(wish)

    async def detach(self, container_id: str) -> None:
        await self._sandboxes.detach(container_id)
        await self.cluster.tidy()

    async def counters(self, container_id: str) -> Sequence[InterfaceCounters]:
        return await self._sandboxes.counters(container_id)

    async def renamed(self, container_id: str, name: str) -> None:
        """A container's new name, for lookups and network inspect. One without networks is fine."""
        async with self._ground.lock(container_id):
            if (sandbox := self._sandboxes.rename(container_id, name)) is not None:
                await self._ground.save(sandbox)

    # The API's operations

    def get(self, ref: str) -> NetworkRecord:
        """By name, id or id prefix. NotFound ("network x not found")."""
        return self._ground.catalog.get(ref)

    def list(self, filters: Filters) -> Sequence[NetworkView]:
        """Newest first, without containers. InvalidArgument for an unknown filter or value."""
        filters.check(*views.LIST_FILTERS)
        return [
            views.view(network)
            for network in sorted(self._ground.catalog.by_id.values(), key=lambda n: -n.created_at)
            if views.selects(filters, network, in_use=bool(self._sandboxes.of(network.id)))
        ]

    def inspect(self, ref: str) -> NetworkView:
        """One network with its containers. NotFound."""
        network = self.get(ref)
        return views.view(network, self._sandboxes.of(network.id))

    async def create(self, request: NetworkCreate) -> NetworkRecord:
        """A user-defined bridge network. Errors as `plan_network`."""
        ground = self._ground
        async with self._changing:
            links, routes = await ground.run(lambda: (ground.kernel.links(), ground.kernel.routes()))
            network = plan_network(
                request, network_id=new_hex_id(), now=self._clock(), existing=ground.catalog.by_id,
                host_routes=routes, links={link.name for link in links},
                # Random, and the same for ever: every engine has unique local networks of its own.
                seed=ground.catalog.get(BRIDGE).id, pools=self._pools,
            )
            if network.v6.subnet and not ground.kernel.has_ipv6:
                raise NotSupported(f"network {network.name}: this host's kernel has no IPv6")
            try:
                await ground.save_network(network)
                await ground.run(self._make_network, network)
            except BaseException:  # cancelled, too: undo, and pass it on
                await ground.journal.delete(NETWORKS, network.id)
                await ground.run(self._unmake_network, network)
                raise
            ground.catalog.put(network)
        await self.cluster.entry.refresh()  # its containers are clients of published ports too
        ground.on_event("create", network, {"name": network.name, "type": network.driver})
        return network

    async def remove(self, ref: str) -> None:
        """NotFound; Forbidden for a predefined network or one with containers on it."""
        async with self._changing:
            await self._remove(self.get(ref))

    async def prune(self, filters: Filters, kept: Collection[str] = ()) -> Sequence[str]:
        """Remove every unused user-defined network but those named in `kept`; their names."""
        filters.check(*views.PRUNE_FILTERS)
        until, removed = views.until_of(filters, self._clock()), []
        async with self._changing:
            for network in list(self._ground.catalog.by_id.values()):
                if network.name in kept or not views.prunes(filters, network, until):
                    continue
                if not self._sandboxes.of(network.id):
                    await self._remove(network)
                    removed.append(network.name)
        return removed

    async def connect(self, ref: str, request: NetworkConnect) -> None:
        """Connect a container, running or not. NotFound, Forbidden, InvalidArgument, Conflict."""
        settings, containers = request.endpoint_config, self._known_containers()
        container = containers.view(request.container)
        if not self.leases.of_cluster(ref):
            self.get(ref)
        given = await self._sandboxes.connect(container.id, ref, settings)
        if given is not None:
            network = self.get(ref)
        else:  # not running: its next start will
            network = await self._not_here(ref)
            plan_attach.check_settings(network, settings)
            plan_attach.check_connect(plan_attach.kind_of(container.network_mode), network)
            if network.name in container.endpoints and network.scope == "local":
                return  # what is kept for its next start stays as it is (moby updateNetworkSettings)
            given = msgspec.structs.replace(settings, network_id=network.id)
        await containers.endpoint_changed(container.id, network.name, given)

    async def disconnect(self, ref: str, request: NetworkDisconnect) -> None:
        """Take a container off a network. force: also one that the engine no longer knows."""
        containers = self._known_containers()
        network = self._ground.catalog.find(ref)
        try:
            container = containers.view(request.container)
        except NotFound:
            if not request.force:
                raise
            await self._sandboxes.disconnect(self._sandboxes.find(request.container).container_id, self.get(ref))
            await self.cluster.tidy()
            return
        if network is None and ref in container.endpoints:
            name = ref  # perhaps one of the cluster's, here only while a container on it runs
        else:
            network = network or await self._not_here(ref)
            name = network.name
            if not await self._sandboxes.disconnect(container.id, network):
                plan_attach.check_disconnect(network)
                if name not in container.endpoints:
                    raise NotConnected(f"container {container.id} is not connected to the network {name}")
            await self.cluster.tidy()
        await containers.endpoint_changed(container.id, name, None)

    async def leave_cluster(self) -> None:
        """This node is no member any more: plain containers are taken off the cluster's networks, as on Docker."""
        for lease in self.leases.held:
            await self._undo(lease.id)

    # Inside

    async def _undo_lost(self) -> None:
        """Forever: endpoints whose leases the manager has taken back."""
        while True:
            ident = await self.leases.lost.get()
            try:
                await self._undo(ident)
            except Exception:  # said again with the next statement
                log.exception("a container could not be taken off a network of the cluster", endpoint_id=ident)

    async def _undo(self, endpoint_id: str) -> None:
        """Take a running container off the network that it has this endpoint in, with its configuration."""
        for ident in list(self._ground.live):
            sandbox = self._ground.sandboxes[ident]
            for endpoint in sandbox.endpoints:
                if endpoint.id == endpoint_id:
                    log.warning(
                        "container is taken off a network of the cluster: its address is not its own any more",
                        container_id=ident, network=endpoint.network, address=endpoint.ip,
                    )
                    await self.disconnect(endpoint.network_id, NetworkDisconnect(container=ident, force=True))
        self.leases.give_back(endpoint_id)
        await self.cluster.tidy()

    async def _not_here(self, ref: str) -> NetworkRecord:
        """A network that a manager may have to be asked for. NotFound."""
        return await self.leases.look_up(ref) if self.leases.of_cluster(ref) else self.get(ref)

    def _known_containers(self) -> Containers:
        if self._containers is None:
            raise Internal("the networks do not know any containers yet")
        return self._containers

    def _make_network(self, network: NetworkRecord) -> None:
        ground = self._ground
        if network.exclusive:
            return  # a configuration network: there is nothing to make
        ground.kernel.driver(network).make(network)
        ground.kernel.change_rules(
            plan_rules.add_network(network),
            lambda: plan_rules.ruleset([*ground.catalog.bridges(), network], ground.published()),
        )

    async def _make_wide(self, network: NetworkRecord) -> None:
        await self._ground.run(self._make_network, network)

    async def _unmake_wide(self, network: NetworkRecord) -> None:
        ground = self._ground
        await ground.run(self._unmake_network, network)
        await ground.run(ground.kernel.change_rules, plan_rules.remove_network(network), ground.rules)

    def _unmake_network(self, network: NetworkRecord) -> None:
        """Its links, unless another network (of a VLAN interface there may be several) is on them."""
        ground = self._ground
        if network.exclusive:
            return
        if not network.parent or not plan_parents.users_of(network.parent, ground.catalog.by_id, network.id):
            ground.kernel.driver(network).remove(network)

    async def _remove(self, network: NetworkRecord) -> None:
        ground = self._ground
        if network.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        plan_config.check_unused(network, ground.catalog.by_id.values())
        attached = self._sandboxes.of(network.id)
        if attached:
            active = ", ".join(f'name:"{box.container_name}" id:"{endpoint.id[:12]}"' for box, endpoint in attached)
            raise Forbidden(
                f"error while removing network: network {network.name} id {network.id} has active endpoints ({active})"
            )
        ground.catalog.drop(network.id)
        try:
            await ground.journal.delete(NETWORKS, network.id)
            await ground.run(self._unmake_network, network)
            await ground.run(ground.kernel.change_rules, plan_rules.remove_network(network), ground.rules)
        except BaseException:  # cancelled, too: undo, and pass it on
            ground.catalog.put(network)
            raise
        ground.on_event("destroy", network, {"name": network.name, "type": network.driver})

    async def _ensure_predefined(self, in_use: set[str]) -> None:
        """bridge, host and none. in_use: networks that containers have addresses of."""
        ground = self._ground
        for name, driver in ((NONE, "null"), (HOST, "host")):
            if ground.catalog.find(name) is None:
                network = NetworkRecord(id=new_hex_id(), name=name, driver=driver, created_at=self._clock())
                ground.catalog.put(network)
                await ground.save_network(network)
        known = ground.catalog.find(BRIDGE)
        bridge, subnet, subnet6, gateway, mtu = self._default
        configured = f"{bridge} {subnet} {gateway} {mtu}" + (f" {subnet6}" if subnet6 else "")
        if known is not None and known.configured == configured:
            return
        if known is not None and known.id in in_use:
            log.warning("default network keeps its old settings while containers use it", subnet=known.subnet)
            return
        if known is not None:  # its bridge may have another address, or another name, from now on
            await ground.run(self._unmake_network, known)
        links, routes = await ground.run(lambda: (ground.kernel.links(), ground.kernel.routes()))
        foreign = routes if known is None and bridge not in {link.name for link in links} else []
        if any(route.overlaps(parse_subnet(subnet)) for route in foreign):
            # Another engine's bridge, or a network of the site: two ways to one address would break both.
            chosen = pick_subnet(ground.catalog.subnets(), foreign, self._pools.of(4))
            log.warning("the default network's subnet is in use on this host", subnet=subnet, taken_instead=chosen)
            subnet, gateway = str(chosen), ""
        network = default_network(
            network_id=known.id if known is not None else new_hex_id(), bridge=bridge, subnet=subnet,
            subnet6=subnet6, gateway=gateway, mtu=mtu, configured=configured,
            now=known.created_at if known is not None else self._clock(),
        )
        ground.catalog.put(network)
        await ground.save_network(network)

    def _recover(self) -> None:
        """In the net thread: find out what lives, remove what nobody knows, make what is missing."""
        ground, kernel = self._ground, self._ground.kernel
        links = kernel.links()
        for ident, sandbox in ground.sandboxes.items():
            if sandbox.kind == HOST or (sandbox.has_namespace and kernel.alive(sandbox, links)):
                ground.live.add(ident)
        for ident, sandbox in ground.sandboxes.items():
            if sandbox.kind == SHARED and sandbox.share_with in ground.live:
                ground.live.add(ident)
        veths = {endpoint.veth for ident in ground.live for endpoint in ground.sandboxes[ident].endpoints}
        kernel.sweep(ground.live, veths, ground.catalog.with_links())
        for network in ground.catalog.with_links():
            try:
                kernel.driver(network).ensure(network)
            except (Conflict, Internal, NotSupported) as err:
                if network.predefined:
                    raise
                # One network that cannot be had is no reason to leave all others without an agent.
                log.error("network cannot be made; its containers cannot start", network=network.name, reason=str(err))
        kernel.load_rules(ground.rules())
        for ident in ground.live:
            for endpoint in ground.sandboxes[ident].endpoints:
                if endpoint.veth:
                    kernel.bridges.ensure_master(endpoint, ground.catalog.by_id[endpoint.network_id])

    async def _watch_firewalls(self) -> None:
        """They come and go: somebody installs Docker, or reloads firewalld."""
        while True:
            try:
                found = await find_dropping()
            except (OSError, TimeoutError, msgspec.DecodeError) as err:
                log.warning("other firewalls' rules could not be looked at", reason=str(err))
            else:
                self._ground.set_problems("firewall", tuple(explain(chain) for chain in found))
            await asyncio.sleep(FIREWALL_PERIOD_S)

    async def _open_inside(self, container_id: str, family: int, kind: int) -> socket.socket:
        return await self._ground.run(self._ground.kernel.open_socket, container_id, family, kind)
