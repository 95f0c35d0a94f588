"""What the parts of the networks share: memory, the net thread, the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import msgspec

from swarmlet.log import get_logger
from swarmlet_agent.journal import Journal, Write
from swarmlet_agent.net.catalog import Catalog
from swarmlet_agent.net.holds import PortBook
from swarmlet_agent.net.kernel import KernelNet
from swarmlet_agent.net.names import NameTable
from swarmlet_agent.net.plan_rules import ruleset
from swarmlet_agent.net.records import BRIDGE, EndpointRecord, NetworkRecord, PortRecord, SandboxRecord

log = get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

NETWORKS, ENDPOINTS = "networks", "endpoints"
#: How long the kernel may take to reap a namespace before its interfaces are deleted one by one.
REAP_PATIENCE_S = 2.0
REAP_INTERVAL_S = 0.25
#: How long an attach that needs a resting address waits before the interface that has it is deleted.
REAP_NOW_S = 0.25
_POLL_S = 0.005
#: Containers whose former places are remembered; the oldest is forgotten first.
MAX_FORMER = 1024

#: (action, network, attributes): create, connect, disconnect, destroy.
OnEvent = Callable[[str, NetworkRecord, Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class _Resting:
    """An endpoint whose addresses are kept back until the interface that had them is gone."""

    endpoint: EndpointRecord
    since: float


class Ground:
    """State with one owner (the event loop's thread); the kernel is reached through `run` only."""

    def __init__(self, kernel: KernelNet, journal: Journal, on_event: OnEvent) -> None:
        self.kernel = kernel
        self.journal = journal
        self.on_event = on_event
        self.catalog = Catalog()
        self.names = NameTable()
        self.ports = PortBook()
        self.sandboxes: dict[str, SandboxRecord] = {}
        #: Containers whose namespace exists (or is being made).
        self.live: set[str] = set()
        #: Addresses in networks of the cluster that a manager has given to containers of this node, by network.
        self.granted: dict[str, AbstractSet[str]] = {}
        #: Virtual addresses of services and who serves each now, by network. Replaced whole: read from any thread.
        self.vips: dict[str, dict[str, tuple[str, ...]]] = {}
        #: What this host cannot do and why, by whose business it is; `on_problems` hears of changes.
        self.problems: dict[str, tuple[str, ...]] = {}
        self.on_problems: Callable[[], None] = lambda: None
        self.resting: dict[str, _Resting] = {}
        self.rest_began = asyncio.Event()
        #: Container -> network -> its last place there: who starts again gets the addresses it had.
        self.former: dict[str, dict[str, EndpointRecord]] = {}
        self._thread = ThreadPoolExecutor(1, "net")
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In the net thread, after everything asked for before.

        A caller that is cancelled leaves the work to finish; what it does next there comes after it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def set_problems(self, source: str, problems: tuple[str, ...]) -> None:
        """What is wrong now, for the operator; each is logged once as it comes."""
        before = self.problems.get(source, ())
        if problems == before:
            return
        for problem in problems:
            if problem not in before:
                log.warning(problem)
        self.problems[source] = problems
        self.on_problems()

    def end_thread(self) -> None:
        self._thread.shutdown(wait=True)

    @asynccontextmanager
    async def lock(self, container_id: str) -> AsyncIterator[None]:
        """One change of a container's networks at a time."""
        held, users = self._locks.get(container_id, (asyncio.Lock(), 0))
        self._locks[container_id] = (held, users + 1)
        try:
            async with held:
                yield
        finally:
            _, users = self._locks[container_id]
            if users == 1:
                del self._locks[container_id]
            else:
                self._locks[container_id] = (held, users - 1)

    def rules(self) -> str:
        """The whole firewall table as it should be now."""
        return ruleset(self.catalog.bridges(), self.published())

    def published(self) -> list[PortRecord]:
        """Every port that leads to a container now. From any thread."""
        return [port for ident, sandbox in list(self.sandboxes.items()) if ident in self.live for port in sandbox.ports]

    def services_of(self, sandbox: SandboxRecord) -> dict[str, tuple[str, ...]]:
        """Every virtual address that a container may use, with its backends. From any thread."""
        if sandbox.kind != BRIDGE:
            return {}
        found: dict[str, tuple[str, ...]] = {}
        for endpoint in sandbox.endpoints:
            found |= self.vips.get(endpoint.network_id, {})
        return found

    async def save(self, sandbox: SandboxRecord) -> None:
        await self.journal.put(ENDPOINTS, sandbox.container_id, msgspec.msgpack.encode(sandbox))

    async def save_network(self, network: NetworkRecord) -> None:
        await self.journal.put(NETWORKS, network.id, msgspec.msgpack.encode(network))

    async def forget(self, *container_ids: str) -> None:
        await self.journal.write(*(Write(ENDPOINTS, ident, None) for ident in container_ids))

    def tell(self, action: str, sandbox: SandboxRecord, endpoint: EndpointRecord) -> None:
        """connect or disconnect of an endpoint."""
        if (network := self.catalog.by_id.get(endpoint.network_id)) is not None:
            attributes = {"container": sandbox.container_id, "name": network.name, "type": network.driver}
            self.on_event(action, network, attributes)

    # Addresses that rest

    def rest(self, container_id: str, endpoint: EndpointRecord) -> None:
        """Keep addresses back until its interface is gone: a dying namespace still answers for them."""
        places = self.former.pop(container_id, {})
        self.former[container_id] = places | {endpoint.network_id: endpoint}
        if len(self.former) > MAX_FORMER:
            del self.former[next(iter(self.former))]
        if endpoint.veth:
            self.resting[endpoint.veth] = _Resting(endpoint, time.monotonic())
            self.rest_began.set()
        else:
            self.catalog.give_back(endpoint)

    async def reap(self) -> None:
        """Forever: give back addresses whose interface the kernel has reaped, and help where it does not."""
        while True:
            await self.rest_began.wait()
            await asyncio.sleep(REAP_INTERVAL_S)
            try:
                await self._reap_once()
            except Exception:  # the next round tries again; nothing is lost but some addresses' time
                log.exception("reaping interfaces failed")

    async def _reap_once(self) -> None:
        gone = await self.run(self.kernel.gone, list(self.resting))
        late = time.monotonic() - REAP_PATIENCE_S
        overdue = [veth for veth, entry in self.resting.items() if veth not in gone and entry.since < late]
        if overdue:
            # Something else still holds the namespace: a container that shares it, or a process left behind.
            await self.run(self.kernel.delete_links, overdue)
        self._wake_up(gone)
        if not self.resting:
            self.rest_began.clear()

    async def reap_network(self, network_id: str) -> None:
        """Make a network's resting addresses free now."""
        await self._reap_now({veth for veth, entry in self.resting.items() if entry.endpoint.network_id == network_id})

    async def reap_former(self, container_id: str) -> None:
        """Make the addresses that a container had free now, for it to have them again."""
        former = {place.veth for place in self.former.get(container_id, {}).values()}
        await self._reap_now(former & self.resting.keys())

    async def _reap_now(self, veths: set[str]) -> None:
        """Wait a little for the kernel, then delete what is left."""
        deadline = time.monotonic() + REAP_NOW_S
        left = set(veths)
        while left:
            left -= await self.run(self.kernel.gone, sorted(left))
            if left and time.monotonic() >= deadline:
                await self.run(self.kernel.delete_links, sorted(left))
                break
            if left:
                await asyncio.sleep(_POLL_S)
        self._wake_up(veths)

    def _wake_up(self, veths: set[str]) -> None:
        for veth in veths:
            if (entry := self.resting.pop(veth, None)) is not None:
                self.catalog.give_back(entry.endpoint)
