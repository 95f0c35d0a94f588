"""This host's place in a cluster: becoming its first manager, joining it, leaving it, and what /info says of that.

What has been decided stands in `<data>/membership.json` before anything is started, so that a restart, at any moment,
goes on where the last one was. The certificate (session/identity.py) is what makes a host a member; the file only
says whether a manager runs here and whom to dial.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from swarmlet.errors import InvalidArgument, NotSupported, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.states import Availability, Role
from swarmlet.pki import write_private
from swarmlet.wire.joining import Founding
from swarmlet_agent.addresses import (
    advertised,
    authority,
    availability_of,
    data_path,
    founding_of,
    listening,
    with_port,
)
from swarmlet_agent.net.host_addresses import host_interfaces
from swarmlet_agent.poweroff import host_goes_down
from swarmlet_agent.session import identity as identities
from swarmlet_agent.session.identity import NodeIdentity

log = get_logger(__name__)

#: A manager's first start makes an etcd, a CA and a cluster.
MANAGER_START_S = 60.0
LOOK_AGAIN_S = 0.1
#: How long the answer to an init or a join waits for the node to be ready; it becomes so in any case.
READY_S = 10.0
LEFT = "This node is not part of a swarm"
ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file."""

    manager: bool = False
    managers: tuple[str, ...] = ()  # "host:port" to dial first
    address: str = ""  # where this host is reached
    data_address: str = ""  # where packets of the cluster's networks go, "" = the same
    manager_port: int = 0  # where a manager here listens, 0 = as the settings say
    founding: Founding = Founding()  # of an init: what the cluster is to be like, and what this node begins as
    availability: Availability = Availability.ACTIVE


@dataclass(frozen=True, slots=True)
class Status:
    """For /info and `_ping`. state: inactive, pending, active or error."""

    state: str
    node_id: str = ""
    manager: bool = False
    error: str = ""
    managers: tuple[str, ...] = ()


class ManagerProcess(Protocol):
    """The swarmlet-manager of this host."""

    async def ensure(self) -> None:
        """Start it if it does not run, and from now on whenever it ends."""
        ...

    async def remove(self) -> None:
        """Stop it and its etcd, and delete its data."""
        ...


class Line(Protocol):
    """The session with the cluster, and what serves it: started when the host becomes a member."""

    async def start(self, identity: NodeIdentity, managers: Sequence[str], *, is_manager: bool) -> None: ...

    async def ready(self) -> None:
        """Until the cluster has the node as ready."""
        ...

    async def stop(self, *, forget: bool, back_soon: bool = False) -> None:
        """forget: the tasks of the cluster are stopped and removed, and what was remembered of it. back_soon: the next
        agent takes the tasks up where they are."""
        ...

    @property
    def error(self) -> str:
        """Why the cluster no longer wants this node, "" if it does."""
        ...


class Member:
    """One per agent. init, join and leave exclude each other."""

    def __init__(
        self,
        data_dir: Path,
        manager_socket: Path,
        manager: ManagerProcess,
        line: Line,
        *,
        hostname: str,
        default_address: Callable[[], str],
        ping_manager: Callable[[], Awaitable[bool]],
        manager_port: int,
        node_port: int,
    ) -> None:
        self._data_dir = data_dir
        self._file = data_dir / "membership.json"
        self._manager_socket = manager_socket
        self._manager = manager
        self._line = line
        self._hostname = hostname
        self._default_address = default_address
        self._ping_manager = ping_manager
        self._manager_port = manager_port
        self._node_port = node_port
        self._lock = asyncio.Lock()
        self._membership: Membership | None = None
        self._identity: NodeIdentity | None = None
        self._finishing: asyncio.Task[None] | None = None
        self.address = ""  # where this node is reached, once it is a member

    @property
    def data_address(self) -> str:
        """Where packets of the cluster's networks for this node go, if not to `address`."""
        return "" if self._membership is None else self._membership.data_address

    @property
    def manager_port(self) -> int:
        """Where a manager of this host listens."""
        return (self._membership.manager_port if self._membership is not None else 0) or self._manager_port

    async def start(self) -> None:
        """Go on as what this host was. A manager that needs time to come up does not hold up the engine."""
        self._membership = await asyncio.to_thread(self._load)
        if self._membership is None:
            return
        if self._membership.manager:
            await self._manager.ensure()
        self._identity = identities.load_identity(self._data_dir)
        if self._identity is not None:
            self.address = self._membership.address or self._default_address()
            await self._line.start(
                self._identity, self._membership.managers, is_manager=self._membership.manager
            )
        elif self._membership.manager:
            # An init was cut off in its middle: its file says what was meant, and this finishes it.
            self._finishing = asyncio.create_task(self._finish(self._membership), name="finish init")

    async def close(self) -> None:
        """The agent ends: containers, manager and membership stay. Where the host goes down, containers do not, and the
        cluster should not wait for them."""
        if self._finishing is not None:
            self._finishing.cancel()
            await asyncio.wait([self._finishing])
        await self._line.stop(forget=False, back_soon=not await host_goes_down())

    def status(self) -> Status:
        if self._membership is None:
            return Status("inactive")
        if self._identity is None:
            return Status("pending", manager=self._membership.manager, managers=self._membership.managers)
        state = "error" if self._line.error else "active"
        return Status(
            state, self._identity.node_id, self._membership.manager, self._line.error, self._membership.managers
        )

    @property
    def is_manager(self) -> bool:
        return self._membership is not None and self._membership.manager

    async def init(self, request: dict[str, Any]) -> str:
        """`docker swarm init`: become the first manager of a new cluster. Returns the node's id.

        Unavailable if this host is a member already, InvalidArgument for a bad address.
        """
        if request.get("ForceNewCluster") and self._membership is not None:
            raise NotSupported(
                "ForceNewCluster is not supported on a member of a cluster: its state is kept in etcd, which needs no "
                "other managers. Leave the cluster first to begin a new one"
            )
        self._need_none()
        founding = founding_of(request)
        availability = availability_of(request)
        port = self._listening(request)
        address, data_address = self._own_addresses(request)
        async with self._only_when_inactive():
            dial = (authority(address, port),)
            self.address = address
            wanted = Membership(
                manager=True, managers=dial, address=address, data_address=data_address, founding=founding,
                availability=availability, manager_port=0 if port == self._manager_port else port,
            )
            await self._save(wanted)
            try:
                identity = await self._join_own_manager(wanted)
            except BaseException:  # cancelled, too: undo, and pass it on
                await asyncio.shield(self._undo())
                raise
            await self._begin(identity, dial)
            await self._ready()
            return identity.node_id

    async def join(self, request: dict[str, Any]) -> None:
        """`docker swarm join`. Forbidden for a wrong token, Unavailable if no manager answers."""
        self._need_none()
        port, availability = self._listening(request), availability_of(request)
        token = request.get("JoinToken") or ""
        remotes = request.get("RemoteAddrs") or []
        if not isinstance(token, str) or not isinstance(remotes, list) or not all(isinstance(r, str) for r in remotes):
            raise InvalidArgument("invalid JSON: JoinToken must be a string and RemoteAddrs a list of strings")
        if not remotes:
            raise InvalidArgument("at least 1 RemoteAddr is required to join")
        dial = tuple(with_port(remote, 2377) for remote in remotes)
        address, data_address = self._own_addresses(request)
        async with self._only_when_inactive():
            identity = await identities.join(
                self._data_dir, dial, token, hostname=self._hostname, addr=address, availability=availability
            )
            self.address = address
            is_manager = identity.role is Role.MANAGER
            await self._save(
                Membership(
                    manager=is_manager, managers=dial, address=address, data_address=data_address,
                    manager_port=0 if port == self._manager_port else port,
                )
            )
            if is_manager:
                await self._manager.ensure()
            await self._begin(identity, dial)
            await self._ready()

    async def leave(self, *, force: bool) -> None:
        """`docker swarm leave`: the cluster's containers here end; a manager's state goes with it (force)."""
        async with self._lock:
            if self._membership is None:
                raise Unavailable(f"{LEFT}")
            if self._membership.manager and not force:
                raise Unavailable(
                    "You are attempting to leave the swarm on a node that is participating as a manager. Removing the "
                    "last manager erases all current state of the swarm. Use `--force` to ignore this message."
                )
            await self._line.stop(forget=True)
            await self._undo()
            log.info("left the cluster")

    async def _join_own_manager(self, wanted: Membership) -> NodeIdentity:
        await self._manager.ensure()
        await self._wait_for_manager()
        return await identities.join_locally(
            self._data_dir, self._manager_socket, hostname=self._hostname, addr=wanted.address,
            manager_addr=wanted.managers[0] if wanted.managers else "", founding=wanted.founding,
            availability=wanted.availability,
        )

    async def _finish(self, membership: Membership) -> None:
        async with self._lock:
            try:
                self.address = membership.address
                await self._begin(await self._join_own_manager(membership), membership.managers)
            except SwarmletError as err:
                log.error("this host's manager could not be joined: restart the agent to try again", reason=err)

    async def _begin(self, identity: NodeIdentity, dial: Sequence[str]) -> None:
        self._identity = identity
        # Not before the membership is on disk: an agent that ends between the two is told to join again.
        await asyncio.to_thread(identities.forget_request, self._data_dir)
        await self._line.start(identity, dial, is_manager=self.is_manager)
        log.info("member of a cluster", node_id=identity.node_id, role=identity.role)

    async def _ready(self) -> None:
        """Clients go on with what they have made: a node that others know, that changes by itself no more, and whose
        manager answers, if it has one."""
        try:
            async with asyncio.timeout(READY_S):
                await self._line.ready()
                if self.is_manager:
                    await self._manager_answers()
        except TimeoutError:
            log.warning("a member of the cluster, but not ready yet", after_s=READY_S)

    async def _undo(self) -> None:
        was_manager = self.is_manager
        self._membership, self._identity = None, None
        await asyncio.to_thread(self._file.unlink, missing_ok=True)
        await asyncio.to_thread(identities.forget_identity, self._data_dir)
        if was_manager:
            await self._manager.remove()

    def _need_none(self) -> None:
        """A member is told so before anything else it asked for is looked at."""
        if self._membership is not None:
            raise Unavailable(ALREADY)

    @contextlib.asynccontextmanager
    async def _only_when_inactive(self) -> Any:
        async with self._lock:
            self._need_none()
            yield

    async def _wait_for_manager(self) -> None:
        try:
            async with asyncio.timeout(MANAGER_START_S):
                await self._manager_answers()
        except TimeoutError as err:
            raise Unavailable(
                f"the manager did not come up in {MANAGER_START_S:.0f} s: see its log {self._data_dir}/manager.log"
            ) from err

    async def _manager_answers(self) -> None:
        while True:
            if await self._ping_manager():
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    def _own_addresses(self, request: dict[str, Any]) -> tuple[str, str]:
        """Where others reach this host, and where packets of the cluster's networks do ("": there too)."""
        advertise, data = (str(request.get(name) or "") for name in ("AdvertiseAddr", "DataPathAddr"))
        address = advertised(advertise, self._default_address, host_interfaces)
        own = data_path(data, host_interfaces)
        return address, "" if own == address else own

    def _listening(self, request: dict[str, Any]) -> int:
        """The port that a manager here listens on, on every address."""
        listen = str(request.get("ListenAddr") or "")
        return listening(listen, default=self._manager_port, node_port=self._node_port)

    def _load(self) -> Membership | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Membership)
        except FileNotFoundError:
            return None

    async def _save(self, membership: Membership) -> None:
        await asyncio.to_thread(write_private, self._file, msgspec.json.encode(membership).decode())
        self._membership = membership
