"""The allocator: an address for each task in each of its networks, and one per network for each service with a VIP.

Like the scheduler it is fed with changes and holds an index of the state, no truth: a new leader builds it anew, and
what records hold stays theirs. A task is NEW until it has all its addresses, then PENDING for the scheduler; where a
network has none left, the task says so, and gets one as soon as one comes free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network

from msgspec.structs import replace

from swarmlet.errors import Conflict, InvalidArgument
from swarmlet.model.defaults import cluster_networks, has_vip, ingress_ports
from swarmlet.model.network import Lease, Network, NetworkAttachment, Subnet
from swarmlet.model.service import Service
from swarmlet.model.states import NodeState, TaskState
from swarmlet.model.task import Task
from swarmlet_manager.decide.allocate import pending_status
from swarmlet_manager.decide.fixed import Wish, fixed_in
from swarmlet_manager.decide.networks import INGRESS, is_quiet
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.decide.ways import plan_ways
from swarmlet_manager.state import Change, Delete, Op, Put, State

#: Of a node in the routing mesh.
LAST_NUMBER = 65_534


class Exhausted(Conflict):
    """A network has no free address (dockerd answers 500). The text is for `service ps` too."""

    status = 500


class AddressInUse(Conflict):
    """A wanted address that is another's (dockerd answers 403)."""

    status = 403


class Pool:
    """One network's addresses of one family (part; IPv4's) by owner. They are given in turn, so that one that comes
    free rests for a while."""

    def __init__(self, network: Network, part: Subnet | None = None) -> None:
        part = part or network.v4
        self._network = network
        self.subnet = ip_network(part.subnet)
        self._range = ip_network(part.ip_range) if part.ip_range else self.subnet
        self._kind = type(self.subnet.network_address)
        self._reserved = {int(ip_address(text)) for text in (part.gateway, *part.auxiliary.values())}
        self._reserved.add(int(self.subnet.network_address))
        if self.subnet.version == 4:  # IPv6 has no broadcast; its first address is the routers'
            self._reserved.add(int(self.subnet.broadcast_address))
        self._owners: dict[int, set[str]] = {}
        self._next = int(self._range.network_address)

    @property
    def name(self) -> str:
        return self._network.name

    @property
    def taken(self) -> int:
        return len(self._owners)

    def hold(self, address: str, owner: str) -> None:
        """Count a recorded address as its owner's. Two owners of one address both count until both have let go."""
        number = int(ip_interface(address).ip)
        self._owners.setdefault(number, set()).add(owner)

    def go_on(self) -> None:
        """Begin behind the highest address in use: those just below may have come free a moment ago."""
        first = int(self._range.network_address)
        inside = (number for number in self._owners if first <= number < first + self._range.num_addresses)
        self._next = max(inside, default=first - 1) + 1

    def free(self, address: str, owner: str) -> None:
        """Not held is fine."""
        number = int(ip_interface(address).ip)
        owners = self._owners.get(number)
        if owners is not None:
            owners.discard(owner)
            if not owners:
                del self._owners[number]

    def owners(self, address: str) -> frozenset[str]:
        """Who holds an address, given without prefix."""
        return frozenset(self._owners.get(int(ip_address(address)), ()))

    def interface(self, address: str) -> str:
        """An address with the network's prefix."""
        return f"{address}/{self.subnet.prefixlen}"

    def claim(self, address: str, owner: str) -> str:
        """This very address, in interface form. InvalidArgument, AddressInUse."""
        try:
            number = int(self._kind(address))
        except ValueError as err:
            raise InvalidArgument(f"invalid IPv{self.subnet.version} address: {address}") from err
        if self._kind(number) not in self.subnet:
            raise InvalidArgument(f"no configured subnet or ip-range contain the IP address {address}")
        if number in self._reserved or self._owners.get(number, {owner}) != {owner}:
            raise AddressInUse("Address already in use")
        self._owners[number] = {owner}
        return self.interface(str(self._kind(number)))

    def take(self, owner: str) -> str:
        """The next free address, in interface form. Exhausted."""
        first, size = int(self._range.network_address), self._range.num_addresses
        # One step more than addresses that are not free must find one that is.
        for step in range(min(size, len(self._owners) + len(self._reserved) + 1)):
            number = first + (self._next - first + step) % size
            if number not in self._owners and number not in self._reserved:
                self._owners[number] = {owner}
                self._next = number + 1
                return f"{self._kind(number)}/{self.subnet.prefixlen}"
        raise Exhausted(
            f"no address is free in network {self._network.name} ({self._range}, {len(self._owners)} in use)"
        )


class Allocator:
    """One per leader. What a plan gives counts as given; if its writes fail, make a new Allocator of the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._pools: dict[str, Pool] = {}
        self._pools6: dict[str, Pool] = {}
        self._waiting: dict[str, Task] = {}
        self._services: set[str] = set(state.services)
        #: Networks without a free address, as far as is known: waiting tasks are not tried until one comes free.
        self._full: dict[str, str] = {}
        for network in state.networks.values():
            self._set_network(network, gone=False)
        for lease in state.leases.values():
            self._hold((lease.place,), lease.id)
        for service in state.services.values():
            self._set_service(None, service, gone=False)
        for task in state.tasks.values():
            self._set_task(None, task)
        for pool in (*self._pools.values(), *self._pools6.values()):
            pool.go_on()

    def apply(self, changes: Sequence[Change]) -> None:
        """Take in what was written, by the allocator as well as by others."""
        for change in changes:
            before, after = change.before, change.after
            match change.record:
                case Network() as network:
                    self._set_network(network, gone=after is None)
                case Task():
                    self._set_task(
                        before if isinstance(before, Task) else None, after if isinstance(after, Task) else None
                    )
                case Service() as service:
                    self._set_service(before if isinstance(before, Service) else None, service, gone=after is None)
                case Lease() as lease:
                    if after is None:
                        self._free((lease.place,), lease.id)
                    else:
                        self._hold((lease.place,), lease.id)

    def pool(self, network_id: str, version: int = 4) -> Pool | None:
        return (self._pools if version == 4 else self._pools6).get(network_id)

    def plan(self, now: int) -> Plan:
        """Addresses for every service and task that waits for some, the oldest task first."""
        ops: list[Op] = [
            Delete(network)
            for network in self._state.networks.values()
            if network.pending_delete and is_quiet(self._state, network)
        ]
        self._number_nodes(ops)
        ops += plan_ways(self._state, now)
        lacking = self._plan_services(now, ops)
        for task in sorted(self._waiting.values(), key=lambda task: (task.created_at, task.id)):
            reason = lacking.get(task.service_id, "")
            addresses: tuple[NetworkAttachment, ...] = ()
            if not reason:
                try:
                    addresses = self._give(self._wanted(task), task.id, task.networks, _of_task(task), task.service_id)
                except Exhausted as err:
                    reason = str(err)
            if reason:
                if task.status.err != reason:
                    waiting = replace(task.status, err=reason, at=now)
                    self._waiting[task.id] = changed = replace(task, status=waiting, updated_at=now)
                    ops.append(Put(changed))
                continue
            del self._waiting[task.id]
            ops.append(Put(replace(task, networks=addresses, status=pending_status(now), updated_at=now)))
        return Plan(ops=tuple(ops))

    def _wanted(self, task: Task) -> tuple[str, ...]:
        ingress = self._state.ingress
        published = (ingress.id if ingress is not None else INGRESS,) if ingress_ports(task.ports) else ()
        return (*published, *cluster_networks(task.spec))

    def _number_nodes(self, ops: list[Op]) -> None:
        """A place in the routing mesh for every node; one that has gone rests as long as possible."""
        nodes = self._state.nodes.values()
        highest = max((node.number for node in nodes), default=0)
        for node in sorted((node for node in nodes if not node.number), key=lambda node: (node.created_at, node.id)):
            used = {known.number for known in nodes}
            if highest < LAST_NUMBER:
                highest += 1
                number = highest
            else:
                number = next(free for free in range(1, LAST_NUMBER + 1) if free not in used)
            ops.append(Put(replace(node, number=number)))

    def _plan_services(self, now: int, ops: list[Op]) -> dict[str, str]:
        """VIPs where they are missing or not wanted any more. Returns why services lack one."""
        lacking: dict[str, str] = {}
        for service_id in sorted(self._services):
            service = self._state.services.get(service_id)
            if service is None or service.pending_delete:
                self._services.discard(service_id)
                continue
            wanted = cluster_networks(service.spec.task_template) if has_vip(service.spec) else ()
            try:
                chosen = {ident: fixed.of_service for ident, fixed in fixed_in(service.spec.task_template).items()}
                vips = self._give(wanted, service.id, service.vips, chosen, service.id)
            except Exhausted as err:
                lacking[service_id] = str(err)
                self._reserve(service)  # trying has let go of what its user has chosen
                continue
            self._services.discard(service_id)
            if vips != service.vips:
                self._free([vip for vip in service.vips if vip not in vips], service.id)
                self._hold(vips, service.id)  # one of its two families may be as it was
                self._reserve(service)
                ops.append(Put(replace(service, vips=vips, updated_at=now)))
        return lacking

    def _give(
        self, wanted: Sequence[str], owner: str, had: Sequence[NetworkAttachment], chosen: Mapping[str, Wish],
        service_id: str,
    ) -> tuple[NetworkAttachment, ...]:
        """An address of each family in each network, all or none; what is held already stays. Exhausted.

        chosen: network -> what the user of this service wants there.
        """
        kept = {attachment.network_id: attachment for attachment in had}
        given: list[NetworkAttachment] = []
        fresh: list[NetworkAttachment] = []
        try:
            for network_id in wanted:
                wish, known = chosen.get(network_id, Wish()), kept.get(network_id)
                if known is None or not _as_wished(known, wish):
                    known = self._place(network_id, owner, _with_kept(wish, known), service_id)
                    fresh.append(known)
                given.append(known)
        except Exhausted:
            self._let_go(fresh, owner)
            self._hold(had, owner)
            raise
        return tuple(given)

    def _place(self, network_id: str, owner: str, wish: Wish, service_id: str) -> NetworkAttachment:
        """An address of each family that the network has. Exhausted."""
        place = NetworkAttachment(
            network_id=network_id, mac=wish.mac, address=self._take_wished(network_id, wish.address, owner, service_id)
        )
        if network_id not in self._pools6:
            return place
        try:
            return replace(place, address6=self._take_wished(network_id, wish.address6, owner, service_id, version=6))
        except Exhausted:
            self._let_go([place], owner)
            raise

    def _take_wished(self, network_id: str, address: str, owner: str, service_id: str, version: int = 4) -> str:
        """An address that is kept for the service, or any for "". Exhausted, also while someone else still has it."""
        if not address:
            return self.take(network_id, owner, version)
        pool = self.pool(network_id, version)
        if pool is None:
            raise Exhausted(f"network {network_id} is gone")
        for holder in sorted(pool.owners(address) - {owner, service_id}):
            task = self._state.tasks.get(holder)
            if task is None or not self._is_lost(task):
                who = f"task {task.name}" if task is not None else f"{holder}"
                raise Exhausted(f"address {address} of network {pool.name} is still in use by {who}")
        taken = pool.interface(address)
        pool.hold(taken, owner)
        return taken

    def _is_lost(self, task: Task) -> bool:
        """Told to go, on a node that cannot be asked: whoever comes in its place takes its address over."""
        node = self._state.nodes.get(task.node_id)
        return task.desired_state > TaskState.RUNNING and (node is None or node.state is NodeState.DOWN)

    def take(self, network_id: str, owner: str, version: int = 4) -> str:
        """The next free address of a network's family, in interface form. Exhausted."""
        if (reason := self._full.get(network_id)) is not None:
            raise Exhausted(reason)
        if (pool := self.pool(network_id, version)) is None:
            raise Exhausted(f"network {network_id} is gone")
        try:
            return pool.take(owner)
        except Exhausted as err:
            self._full[network_id] = str(err)
            raise

    def free(self, place: NetworkAttachment, owner: str) -> None:
        """Take back what was given and is not to be written."""
        self._free((place,), owner)

    # Taking in

    def _set_network(self, network: Network, *, gone: bool) -> None:
        self._full.pop(network.id, None)
        if gone:
            self._pools.pop(network.id, None)
            self._pools6.pop(network.id, None)
        elif network.id not in self._pools:
            self._pools[network.id] = Pool(network)
            if network.v6.subnet:
                self._pools6[network.id] = Pool(network, network.v6)

    def _set_task(self, before: Task | None, after: Task | None) -> None:
        held = () if before is None else before.networks
        holds = after.networks if after is not None and not is_gone(after) else ()
        newest = after or before
        assert newest is not None
        self._hold(holds, newest.id)
        self._free([attachment for attachment in held if attachment not in holds], newest.id)
        if after is not None and after.status.state < TaskState.PENDING and after.desired_state <= TaskState.RUNNING:
            self._waiting[after.id] = after
        else:
            self._waiting.pop(newest.id, None)

    def _set_service(self, before: Service | None, service: Service, *, gone: bool) -> None:
        held = () if before is None else before.vips
        # While its tasks still stop nobody may get its address: the record holds it to its end.
        holds = () if gone else service.vips
        self._free([vip for vip in held if vip not in holds], service.id)
        if before is not None:
            self._free(list(_reserved(before)), service.id)
        if not gone:
            self._hold(holds, service.id)
            self._reserve(service)
        if gone:
            self._services.discard(service.id)
        elif before is None or before.spec is not service.spec:
            self._services.add(service.id)

    def _reserve(self, service: Service) -> None:
        """What its user has chosen is nobody else's."""
        self._hold(list(_reserved(service)), service.id)

    def _hold(self, attachments: Sequence[NetworkAttachment], owner: str) -> None:
        for attachment in attachments:
            for pool, address in self._pools_of(attachment):
                pool.hold(address, owner)

    def _free(self, attachments: Sequence[NetworkAttachment], owner: str) -> None:
        self._let_go(attachments, owner)
        for attachment in attachments:
            self._full.pop(attachment.network_id, None)

    def _let_go(self, attachments: Sequence[NetworkAttachment], owner: str) -> None:
        for attachment in attachments:
            for pool, address in self._pools_of(attachment):
                pool.free(address, owner)

    def _pools_of(self, attachment: NetworkAttachment) -> Iterator[tuple[Pool, str]]:
        """Its addresses with the pools they are of; of a network that is gone none."""
        for pools, address in ((self._pools, attachment.address), (self._pools6, attachment.address6)):
            if address and (pool := pools.get(attachment.network_id)) is not None:
                yield pool, address


def _of_task(task: Task) -> dict[str, Wish]:
    """Network -> what was chosen for this task's slot."""
    return {ident: fixed.of_slot(task.slot) for ident, fixed in fixed_in(task.spec).items()}


def _as_wished(place: NetworkAttachment, wish: Wish) -> bool:
    have = Wish(place.address.partition("/")[0], "", place.address6.partition("/")[0])
    return wish.address in ("", have.address) and wish.address6 in ("", have.address6)


def _with_kept(wish: Wish, known: NetworkAttachment | None) -> Wish:
    """The family that nothing is wished of keeps the address it has."""
    if known is None:
        return wish
    return wish._replace(
        address=wish.address or known.address.partition("/")[0],
        address6=wish.address6 or known.address6.partition("/")[0],
    )


def _reserved(service: Service) -> Iterator[NetworkAttachment]:
    for network_id, fixed in fixed_in(service.spec.task_template).items():
        for address in fixed.all:
            is_6 = ":" in address
            yield NetworkAttachment(
                network_id=network_id, address="" if is_6 else address, address6=address if is_6 else ""
            )
