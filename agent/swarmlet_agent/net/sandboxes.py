"""Containers' attachments: made, taken away, changed while they run, and adopted after a restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Conflict, Forbidden, NotFound
from swarmlet.ipam import PoolExhausted
from swarmlet.log import get_logger
from swarmlet.model.container import EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet.model.network import Lease
from swarmlet_agent.net import files, plan_attach, plan_files
from swarmlet_agent.net.container_files import ContainerFiles, split_link
from swarmlet_agent.net.dns import EmbeddedDns
from swarmlet_agent.net.dns_answers import Asker
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.leasing import Leasing
from swarmlet_agent.net.overlay.leases import ClusterLeases
from swarmlet_agent.net.plan_ports import EPHEMERAL, aim, published
from swarmlet_agent.net.records import (
    HOST,
    SHARED,
    AddressTaken,
    EndpointRecord,
    NetworkRecord,
    NotConnected,
    PortRecord,
    SandboxRecord,
)
from swarmlet_agent.net.relay import Relays
from swarmlet_agent.net.types import Attachment, InterfaceCounters, NetworkWish

log = get_logger(__name__)
replace = msgspec.structs.replace


class Sandboxes:
    """All containers' attachments of this node."""

    def __init__(
        self, ground: Ground, dns: EmbeddedDns, texts: ContainerFiles, leases: ClusterLeases, data_dir: Path
    ) -> None:
        self._ground = ground
        self._leases = leases
        self._relays = Relays(ground.ports.socket, data_dir)
        self._dns = dns
        self._files = texts
        self._leasing = Leasing(ground)

    # Attach and detach

    async def attach(self, wish: NetworkWish) -> Attachment:
        """See engine.ports.Networks."""
        ground, ident = self._ground, wish.container_id
        async with ground.lock(ident):
            known, wanted = ground.sandboxes.get(ident), plan_attach.digest(wish)
            before: SandboxRecord | None = None
            if known is not None:
                if known.digest == wanted and ident in ground.live and await self._exists(known):
                    return self.attachment(known)
                before = known if known.digest == wanted else None
                await self._detach(known, reaped=True)
            await ground.reap_former(ident)
            leases = await self._leases.take_all(wish, before)
            try:
                try:
                    sandbox = self._plan(wish, wanted, before, leases)
                except (AddressTaken, PoolExhausted) as err:
                    await self._free_addresses(wish, err)
                    sandbox = self._plan(wish, wanted, before, leases)
            except BaseException:  # cancelled, too: undo, and pass it on
                self._leases.give_back(*(lease.id for lease in leases.values()))
                raise
            await self._make(sandbox)
            await self._files.refresh_linked(sandbox)
            return self.attachment(sandbox)

    async def detach(self, container_id: str) -> None:
        """See engine.ports.Networks."""
        async with self._ground.lock(container_id):
            if (sandbox := self._ground.sandboxes.get(container_id)) is not None:
                await self._detach(sandbox)

    def attachment(self, sandbox: SandboxRecord) -> Attachment:
        """A sandbox as the engine sees it."""
        folder = self._files.folder(sandbox.container_id)
        if sandbox.kind == SHARED:
            other = self._ground.sandboxes[sandbox.share_with]
            seen = self.attachment(other)
            return Attachment(seen.netns_path, {}, {}, seen.files, sandbox.sandbox_id)
        path = None if sandbox.kind == HOST else str(self._ground.kernel.path(sandbox.container_id))
        return Attachment(
            netns_path=path,
            endpoints={endpoint.network: endpoint.settings() for endpoint in sandbox.endpoints},
            ports=published(sandbox.ports, sandbox.port_wishes), files=files.bound_files(folder),
            sandbox_id=sandbox.sandbox_id,
        )

    async def _exists(self, sandbox: SandboxRecord) -> bool:
        ground = self._ground
        if sandbox.kind == HOST:
            return True
        if sandbox.kind == SHARED:
            return sandbox.share_with in ground.live
        return await ground.run(lambda: ground.kernel.alive(sandbox, ground.kernel.links()))

    async def _free_addresses(self, wish: NetworkWish, err: AddressTaken | PoolExhausted) -> None:
        """A taken address or a full pool: perhaps addresses only rest. Raises `err` if none does."""
        ground = self._ground
        wanted = {place.network.id for place in plan_attach.places(wish, ground.catalog.get)}
        resting = {entry.endpoint.network_id for entry in ground.resting.values()} & wanted
        if not resting:
            raise err
        for network_id in resting:
            await ground.reap_network(network_id)

    def _plan(
        self, wish: NetworkWish, digest: str, before: SandboxRecord | None, leases: Mapping[str, Lease]
    ) -> SandboxRecord:
        """Addresses and ports for a wish, all or none; registered as live, not yet made. before: what it had once.

        leases: those that a manager has given, by network.
        """
        ground = self._ground
        plan_files.check_servers(wish.dns)
        base = SandboxRecord(
            container_id=wish.container_id, container_name=wish.container_name, digest=digest,
            sandbox_id=new_hex_id(), kind=plan_attach.kind_of(wish.mode, wish.share_with), hostname=wish.hostname,
            domainname=wish.domainname, dns=wish.dns, dns_search=wish.dns_search, dns_options=wish.dns_options,
            extra_hosts=wish.extra_hosts, links=wish.links, port_wishes=dict(wish.ports), share_with=wish.share_with,
            user_namespace=wish.user_namespace,
        )
        if base.kind == SHARED:
            if wish.share_with not in ground.live:
                raise Conflict(f"cannot join network of a non running container: {wish.share_with}")
            sandbox = base
        else:
            places = plan_attach.places(wish, ground.catalog.get)
            # Bad extra hosts and links to nobody are refused before anything is leased.
            self._files.check(base, {place.network.name for place in places})
            sandbox = self._leasing.endpoints(base, places, before, leases)
        ground.sandboxes[sandbox.container_id] = sandbox
        ground.live.add(sandbox.container_id)
        return sandbox

    async def _make(self, sandbox: SandboxRecord) -> None:
        """The journal entry, the files and the kernel's part; undone if any of it fails or is cancelled."""
        ground = self._ground
        try:
            folder, texts = self._files.folder(sandbox.container_id), self._files.texts(sandbox)
            results = await asyncio.gather(
                ground.save(sandbox), ground.run(self._make_here, sandbox, folder, texts), return_exceptions=True,
            )
            if (failure := next((r for r in results if isinstance(r, BaseException)), None)) is not None:
                raise failure
        except BaseException:  # cancelled, too: undo, and pass it on
            await _to_the_end(self._detach(sandbox, made=False))
            raise
        for endpoint in sandbox.endpoints:
            ground.names.add(endpoint)
            ground.tell("connect", sandbox, endpoint)
        self._relays.serve(sandbox.container_id, sandbox.ports)
        self._serve_dns(sandbox)

    def _make_here(self, sandbox: SandboxRecord, folder: Path, texts: dict[str, str]) -> None:
        """In the net thread: a third thread would cost more in changes of thread than it saves."""
        ground = self._ground
        files.write_files(folder, texts)
        if not sandbox.has_namespace:
            return
        ground.kernel.build(sandbox, ground.catalog.by_id, self._leasing.routes(sandbox))
        if services := ground.services_of(sandbox):
            ground.kernel.balancers.apply(sandbox.container_id, services)
        ground.kernel.change_ports((), sandbox.ports, ground.rules)
        self._flush_udp(sandbox.ports)

    async def _detach(self, sandbox: SandboxRecord, *, reaped: bool = False, made: bool = True) -> None:
        """Undo everything. reaped: wait until its interfaces are gone and its addresses free again.

        made False: its making failed somewhere, so what there is to undo is not known.
        """
        ground, ident = self._ground, sandbox.container_id
        was_live = ident in ground.live
        ground.sandboxes.pop(ident, None)
        ground.live.discard(ident)
        self._relays.stop(ident)
        ground.ports.release(ident)
        self._dns.stop(ident)
        for endpoint in sandbox.endpoints:
            ground.names.remove(endpoint)
        try:
            await asyncio.gather(ground.forget(ident), ground.run(self._undo_in_kernel, sandbox, was_live, made))
        finally:
            for endpoint in sandbox.endpoints:
                ground.rest(ident, endpoint)
                self._leases.give_back(endpoint.id)
                if was_live and made:
                    ground.tell("disconnect", sandbox, endpoint)
        if reaped:
            for network_id in {endpoint.network_id for endpoint in sandbox.endpoints if endpoint.veth}:
                await ground.reap_network(network_id)

    def _undo_in_kernel(self, sandbox: SandboxRecord, was_live: bool, made: bool) -> None:
        ground = self._ground
        if not sandbox.has_namespace:
            return
        ground.kernel.destroy(sandbox.container_id, sandbox.endpoints)
        if not made and sandbox.ports:
            ground.kernel.load_rules(ground.rules())
        elif was_live:
            ground.kernel.change_ports(sandbox.ports, (), ground.rules)
            self._flush_udp(sandbox.ports)

    def _flush_udp(self, ports: Sequence[PortRecord]) -> None:
        try:
            self._ground.kernel.flush_udp([port.host_port for port in ports if port.protocol == "udp"])
        except OSError as err:
            log.warning("tracked UDP flows could not be forgotten", reason=str(err))

    # Connect and disconnect of a running container

    async def connect(self, container_id: str, ref: str, settings: EndpointSettings) -> EndpointSettings | None:
        """Another interface for a running container; None if it is not attached at all now."""
        ground = self._ground
        async with ground.lock(container_id):
            sandbox = self._live(container_id)
            if sandbox is None:
                return None
            if (known := ground.catalog.find(ref)) is not None:
                _check_connect(sandbox, known, settings)
            lease = await self._lease(sandbox, ref, settings) if self._leases.of_cluster(ref) else None
            try:
                network = ground.catalog.get(ref)
                _check_connect(sandbox, network, settings)
                return await self._connect(sandbox, network, settings, lease)
            except BaseException:  # cancelled, too: undo, and pass it on
                if lease is not None:
                    self._leases.give_back(lease.id)
                raise

    async def _lease(self, sandbox: SandboxRecord, ref: str, settings: EndpointSettings) -> Lease:
        ident, name = sandbox.container_id, sandbox.container_name
        names = plan_attach.dns_names(name, ident, sandbox.hostname, settings)
        return await self._leases.take(ref, settings, container_id=ident, container_name=name, names=names)

    async def _connect(
        self, sandbox: SandboxRecord, network: NetworkRecord, settings: EndpointSettings, lease: Lease | None
    ) -> EndpointSettings:
        ground, container_id = self._ground, sandbox.container_id
        try:
            endpoint = self._leasing.lease(sandbox, network, settings, sandbox.endpoints, lease=lease)
        except (AddressTaken, PoolExhausted):
            await ground.reap_network(network.id)  # what is missing may only rest
            endpoint = self._leasing.lease(sandbox, network, settings, sandbox.endpoints, lease=lease)
        changed = replace(sandbox, endpoints=(*sandbox.endpoints, endpoint))
        if endpoint.names and not changed.dns_port:
            changed = replace(changed, dns_port=random.choice(EPHEMERAL))
        try:
            await ground.run(ground.kernel.plug, container_id, endpoint, network)
            changed = await self._settle(sandbox, changed)
        except BaseException:  # cancelled, too: undo, and pass it on
            await _to_the_end(ground.run(ground.kernel.unplug, container_id, endpoint))
            ground.rest(container_id, endpoint)
            raise
        ground.names.add(endpoint)
        ground.tell("connect", changed, endpoint)
        return endpoint.settings()

    async def disconnect(self, container_id: str, network: NetworkRecord) -> bool:
        """Take a running container off a network; False if it is not attached at all now."""
        ground = self._ground
        async with ground.lock(container_id):
            sandbox = self._live(container_id)
            if sandbox is None:
                return False
            if (endpoint := sandbox.on(network.id)) is None:
                raise NotConnected(f"container {container_id} is not connected to network {network.name}")
            plan_attach.check_disconnect(network)
            rest = tuple(other for other in sandbox.endpoints if other.id != endpoint.id)
            ground.names.remove(endpoint)
            await ground.run(ground.kernel.unplug, container_id, endpoint)
            await self._settle(sandbox, replace(sandbox, endpoints=rest))
            ground.rest(container_id, endpoint)
            self._leases.give_back(endpoint.id)
            ground.tell("disconnect", sandbox, endpoint)
            return True

    async def _settle(self, before: SandboxRecord, after: SandboxRecord) -> SandboxRecord:
        """Default route, published ports, DNS, files and journal of a container whose endpoints have changed."""
        ground, ident = self._ground, after.container_id
        old, new = self._leasing.routes(before), self._leasing.routes(after)
        for endpoint in after.endpoints:
            for gateway in new.of(endpoint):
                if gateway not in old.of(endpoint):
                    await ground.run(ground.kernel.set_default_route, ident, endpoint, gateway)
        if new.main is None:
            self._relays.stop(ident)
            ground.ports.release(ident)
            after = replace(after, ports=())
        elif old.main is None:
            after = replace(after, ports=self._leasing.take_ports(after))
        else:
            targets = aim({port.host_ip for port in before.ports}, *new.targets)
            after = replace(
                after, ports=tuple(replace(port, target_ip=targets[port.host_ip]) for port in before.ports)
            )
        if after.dns_port and not before.dns_port:
            after = replace(after, dns_port=await ground.run(ground.kernel.open_dns, after))
        ground.sandboxes[ident] = after
        await ground.run(ground.kernel.balancers.apply, ident, ground.services_of(after))
        if after.ports != before.ports:
            await ground.run(ground.kernel.change_ports, before.ports, after.ports, ground.rules)
            await ground.run(self._flush_udp, (*before.ports, *after.ports))
        self._relays.serve(ident, after.ports)
        await ground.run(files.write_files, self._files.folder(ident), self._files.texts(after))
        self._serve_dns(after)
        await ground.save(after)
        return after

    def _live(self, container_id: str) -> SandboxRecord | None:
        return self._ground.sandboxes.get(container_id) if container_id in self._ground.live else None

    def rename(self, container_id: str, name: str) -> SandboxRecord | None:
        """A new container name, at once for lookups; returns the record to save, None if it has none."""
        ground = self._ground
        if (sandbox := ground.sandboxes.get(container_id)) is None:
            return None
        endpoints = []
        for endpoint in sandbox.endpoints:
            ground.names.remove(endpoint)
            names = plan_attach.dns_names(name, container_id, sandbox.hostname, endpoint.wish) if endpoint.names else ()
            endpoints.append(replace(endpoint, names=names))
        renamed = replace(sandbox, container_name=name, endpoints=tuple(endpoints))
        ground.sandboxes[container_id] = renamed
        self._leases.renamed(renamed)
        if container_id in ground.live:
            for endpoint in renamed.endpoints:
                ground.names.add(endpoint)
        return renamed

    # DNS and files

    def _serve_dns(self, sandbox: SandboxRecord) -> None:
        ground, ident = self._ground, sandbox.container_id
        networks = [ground.catalog.by_id[endpoint.network_id] for endpoint in sandbox.endpoints]
        links = [*sandbox.links, *(link for endpoint in sandbox.endpoints for link in endpoint.wish.links)]
        asker = Asker(
            container_id=ident, networks=tuple(network.id for network in networks), servers=sandbox.dns,
            private={alias.lower(): target.lower() for target, alias in map(split_link, links)},
            forward=any(not network.closed for network in networks),
        )
        if (sockets := ground.kernel.take_dns(ident)) is not None:
            self._dns.serve(asker, sockets)
        else:
            self._dns.update(asker)

    # Statistics and adoption

    async def counters(self, container_id: str) -> Sequence[InterfaceCounters]:
        sandbox = self._live(container_id)
        if sandbox is None or not sandbox.has_namespace:
            return ()
        try:
            links = await self._ground.run(self._ground.kernel.counters, container_id)
        except FileNotFoundError:  # detached meanwhile
            return ()
        return [
            InterfaceCounters(
                link.name, rx_packets=c[0], tx_packets=c[1], rx_bytes=c[2], tx_bytes=c[3], rx_errors=c[4],
                tx_errors=c[5], rx_dropped=c[6], tx_dropped=c[7],
            )
            for link in links if link.name != "lo" and len(c := link.counters) == 8
        ]

    def restore(self, sandboxes: Sequence[SandboxRecord], networks: dict[str, NetworkRecord]) -> None:
        """Count leases from the journal as taken. A record whose network is gone keeps what is left of it."""
        for sandbox in sandboxes:
            endpoints = tuple(endpoint for endpoint in sandbox.endpoints if endpoint.network_id in networks)
            self._ground.sandboxes[sandbox.container_id] = replace(sandbox, endpoints=endpoints)
            for endpoint in endpoints:
                self._ground.catalog.hold(endpoint)

    async def adopt(self) -> None:
        """Take over what runs: hold its ports, answer its DNS. The kernel's objects were checked before."""
        ground = self._ground
        await self._relays.adopt(ground.live)
        for ident in sorted(ground.live):
            sandbox = ground.sandboxes[ident]
            for trouble in ground.ports.adopt(ident, sandbox.ports, sandbox.container_name):
                log.warning("a published port is held by another process", container_id=ident, reason=str(trouble))
            self._relays.serve(ident, sandbox.ports)
            if sandbox.dns_port:
                port = await ground.run(ground.kernel.reopen_dns, sandbox)
                if port != sandbox.dns_port:
                    sandbox = replace(sandbox, dns_port=port)
                    ground.sandboxes[ident] = sandbox
                    await ground.save(sandbox)
            for endpoint in sandbox.endpoints:
                ground.names.add(endpoint)
            self._serve_dns(sandbox)

    async def end_service(self, *, for_good: bool = False) -> None:
        """Accept no more connections to relay; everything else of the containers' networks stays.

        for_good: end those that there are.
        """
        if for_good:
            for ident in self._ground.live:
                self._relays.stop(ident)
        await self._relays.close()

    def of(self, network_id: str) -> list[tuple[SandboxRecord, EndpointRecord]]:
        """Attached containers of a network."""
        ground = self._ground
        return [
            (ground.sandboxes[ident], endpoint) for ident in sorted(ground.live)
            if (endpoint := ground.sandboxes[ident].on(network_id)) is not None
        ]

    def find(self, ref: str) -> SandboxRecord:
        """An attached container by name or id. NotFound."""
        if (sandbox := self._files.find(ref.removeprefix("/"))) is None:
            raise NotFound("container", ref)
        return sandbox


def _check_connect(sandbox: SandboxRecord, network: NetworkRecord, settings: EndpointSettings) -> None:
    plan_attach.check_settings(network, settings)
    plan_attach.check_connect(sandbox.kind, network)
    if sandbox.on(network.id) is not None:
        raise Forbidden(f"endpoint with name {sandbox.container_name} already exists in network {network.name}")


async def _to_the_end(work: Coroutine[Any, Any, object]) -> None:
    """Finish work even while this task is being cancelled; the cancellation goes on behind it."""
    task = asyncio.create_task(work, name="net-undo")
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()
