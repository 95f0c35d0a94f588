"""The task worker: makes this node's containers follow the tasks it was assigned.

Every task is looked at again whenever its orders or its container change; `decide.next_step` says what to do. What
is on disk (journal table "tasks") is the order and, once it is final, the status; everything between is read off
the container, so an agent that comes back finishes what the last one began, with or without a manager.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotFound, NotModified, SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.loops import Runner
from swarmlet.model.base import Record
from swarmlet.model.container import TASK_LABEL, ContainerCreate
from swarmlet.model.defaults import stop_grace_period_ns
from swarmlet.model.network import NetworkAttachment
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.model.template import NodeFacts
from swarmlet.model.times import NS
from swarmlet.wire.contents import Content
from swarmlet_agent.engine.container import Container, SuppliedFile
from swarmlet_agent.engine.events import Event, EventBus
from swarmlet_agent.journal import Journal, Write
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.worker.contents import ContentStore, NotHere, supplied_files
from swarmlet_agent.worker.convert import container_for, container_spec
from swarmlet_agent.worker.decide import (
    Become,
    Forget,
    Idle,
    Prepare,
    Start,
    Step,
    Stop,
    failed,
    next_step,
    recovered,
)
from swarmlet_agent.worker.pulls import ImageMissing, ImageSource, Puller

log = get_logger(__name__)

TABLE = "tasks"
#: Containers made and started at the same time: more only makes each of them slower.
STARTS = 4
#: Container events after which a task is worth a look.
EVENTS = ("die", "destroy", "health_status", "start", "oom")


class TaskEngine(Protocol):
    """The engine, as a task needs it."""

    @property
    def events(self) -> EventBus: ...

    async def create(
        self, name: str, request: ContainerCreate, *, supplied: Sequence[SuppliedFile] = ()
    ) -> tuple[Container, list[str]]: ...

    async def supply(self, ref: str, contents: Sequence[bytes]) -> None: ...

    def get(self, ref: str) -> Container: ...

    def list(self) -> list[Container]: ...

    async def start_container(self, ref: str) -> None: ...

    async def stop(self, ref: str, timeout_s: int | None = None) -> None: ...

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None: ...


class NetworkNames(Protocol):
    """The networks of this node, as a task needs them."""

    def get(self, ref: str) -> NetworkRecord:
        """NotFound."""
        ...


class Stored(Record, frozen=True, kw_only=True):
    """A task in the journal; status only once it is final."""

    task: Task
    status: TaskStatus | None = None


@dataclass(slots=True)
class _Local:
    """One task in memory."""

    task: Task
    status: TaskStatus
    released: bool = False


class TaskWorker:
    def __init__(
        self,
        engine: TaskEngine,
        images: ImageSource,
        journal: Journal,
        *,
        node: Callable[[], NodeFacts],
        report: Callable[[str, TaskStatus], None],
        forget: Callable[[str], None],
        networks: NetworkNames,
        starts: int = STARTS,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """report: tells the manager a status; forget: nothing need be told of this task any more."""
        self._engine = engine
        self._journal = journal
        self._node = node
        self._report = report
        self._forget = forget
        self._networks = networks
        self._now = now
        self._puller = Puller(images)
        self._auth: dict[str, str] = {}  # service -> credentials, in memory only
        self._contents = ContentStore()
        self._waiting: set[str] = set()  # tasks that are to start and lack a secret or config
        self._tasks: dict[str, _Local] = {}
        self._slots = asyncio.Semaphore(starts)
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._runner: Runner[str] = Runner(self._look, name="task")
        self._events: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Take up what the last agent left (the engine has adopted its containers before)."""
        decoder = msgspec.msgpack.Decoder(Stored)
        for ident, data in self._journal.items(TABLE):
            stored = decoder.decode(data)
            status = stored.status or recovered(stored.task, self._container(stored.task), self._now())
            self._tasks[ident] = _Local(stored.task, status)
        self._events = asyncio.create_task(self._follow_events(), name="task events")
        for ident, local in self._tasks.items():
            self._report(ident, local.status)
            self._runner.poke(ident)

    async def close(self) -> None:
        """Stop looking; containers live on."""
        if self._events is not None:
            self._events.cancel()
            await asyncio.gather(self._events, return_exceptions=True)
        await self._runner.close()
        await self._puller.close()

    @property
    def tasks(self) -> dict[str, TaskStatus]:
        """Task id -> observed status."""
        return {ident: local.status for ident, local in self._tasks.items()}

    # Orders

    def supplied(self, items: Sequence[Content]) -> None:
        """Secrets and configs, for the orders that follow."""
        self._contents.add(items)
        waiting, self._waiting = self._waiting, set()
        for ident in waiting:
            self._runner.poke(ident)

    async def assign(
        self, *, full: bool, tasks: Sequence[Task], removed: Sequence[str], registry_auth: Mapping[str, str],
        unneeded: Sequence[str] = (),
    ) -> None:
        """Returns once the orders are on disk. full: tasks that are not listed are released. unneeded: secrets and
        configs to be forgotten."""
        self._contents.forget(unneeded)
        if full:
            self._contents.keep_those_of(tasks)
        self._auth.update(registry_auth)
        gone = set(removed)
        if full:
            gone |= self._tasks.keys() - {task.id for task in tasks}
        news = [task for task in tasks if self._is_news(task)]
        await self._journal.write(*(self._write(task) for task in news))
        for task in news:
            self._take(task)
        for task in tasks:
            self._repeat_if_behind(task)
        for ident in gone & self._tasks.keys():
            self._tasks[ident].released = True
            self._look_again(ident)
        if full:
            await self._remove_strangers()

    def _is_news(self, task: Task) -> bool:
        known = self._tasks.get(task.id)
        return known is None or known.released or known.task.desired_state is not task.desired_state

    def _write(self, task: Task) -> Write:
        known = self._tasks.get(task.id)
        status = known.status if known is not None and known.status.state.is_terminal else None
        return Write(TABLE, task.id, msgspec.msgpack.encode(Stored(task=task, status=status)))

    def _take(self, task: Task) -> None:
        local = self._tasks.get(task.id)
        if local is None:
            # A task the manager has seen further than we remember was ours before our journal was lost.
            status = recovered(task, self._container(task), self._now())
            if task.status.state.is_terminal:
                status = task.status
            self._tasks[task.id] = _Local(task, status)
        else:
            local.task, local.released = task, False
        self._look_again(task.id)

    def _repeat_if_behind(self, task: Task) -> None:
        """The manager has seen less than was reported: a report got lost with its leader."""
        local = self._tasks[task.id]
        if local.status.state > max(task.status.state, TaskState.ASSIGNED):
            self._report(task.id, local.status)

    def _look_again(self, ident: str) -> None:
        local = self._tasks[ident]
        unwanted = local.released or local.task.desired_state >= TaskState.SHUTDOWN
        if unwanted and (waiting := self._preparing.get(ident)) is not None:
            waiting.cancel()  # nobody needs the image it waits for
        self._runner.poke(ident)

    async def _remove_strangers(self) -> None:
        """Containers of tasks nobody knows: their records went while no agent ran."""
        for container in self._engine.list():
            ident = container.request.labels.get(TASK_LABEL)
            if ident and ident not in self._tasks:
                log.warning("removing the container of an unknown task", container_id=container.id, task_id=ident)
                try:
                    await self._engine.remove(container.id, force=True, volumes=True)
                except NotFound:
                    continue
                except SwarmletError as err:
                    log.warning("container cannot be removed", container_id=container.id, reason=err)

    # Looking

    async def _look(self, ident: str) -> None:
        """Do what is next until there is nothing to do. Waits for a place among the starting ones as long as it
        creates or starts, so that a container is made and started in one go."""
        holds = False
        try:
            while (local := self._tasks.get(ident)) is not None:
                step = self._next(local)
                if isinstance(step, Idle):
                    return
                if isinstance(step, Start) and self._lacks_contents(local):
                    return
                if isinstance(step, Start | Prepare):
                    if isinstance(step, Prepare) and not self._puller.present(container_spec(local.task).image):
                        await self._fetch(local)
                        continue
                    if not holds:
                        await self._slots.acquire()
                        holds = True
                        continue  # the world may have changed while waiting
                elif holds and isinstance(step, Stop | Forget):
                    self._slots.release()
                    holds = False
                await self._perform(local, step)
        finally:
            if holds:
                self._slots.release()

    def _next(self, local: _Local) -> Step:
        container = self._container(local.task)
        return next_step(local.task, local.status, container, released=local.released, now=self._now())

    async def _perform(self, local: _Local, step: Step) -> None:
        match step:
            case Become(status):
                await self._become(local, status)
            case Prepare():
                await self._create(local)
            case Start():
                await self._start_container(local)
            case Stop():
                await self._stop(local.task)
            case Forget():
                await self._remove(local.task)
            case Idle():
                pass

    async def _become(self, local: _Local, status: TaskStatus) -> None:
        """A final status is on disk before anyone hears of it: the task must never run again."""
        if status.state.is_terminal:
            stored = Stored(task=local.task, status=status)
            await self._journal.put(TABLE, local.task.id, msgspec.msgpack.encode(stored))
            if status.err:
                log.info("task ended", task_id=local.task.id, state=status.state.api_name, reason=status.err)
        local.status = status
        self._report(local.task.id, status)

    async def _fail(self, local: _Local, err: str) -> None:
        await self._become(local, failed(local.status, err, self._now()))

    async def _fetch(self, local: _Local) -> None:
        """Pull the image; the wait ends early if the task is not wanted any more."""
        ident, ref = local.task.id, container_spec(local.task).image
        waiting = asyncio.ensure_future(self._puller.ensure(ref, self._auth.get(local.task.service_id, "")))
        self._preparing[ident] = waiting
        try:
            await asyncio.wait([waiting])
        finally:
            del self._preparing[ident]
            waiting.cancel()
        if waiting.cancelled():
            return
        error = waiting.exception()
        if isinstance(error, ImageMissing | InvalidArgument):
            await self._fail(local, str(error))
        elif error is not None:
            raise error

    async def _create(self, local: _Local) -> None:
        try:
            request = container_for(local.task, self._node(), self._networks_of(local.task))
            await self._engine.create(local.task.name, request, supplied=supplied_files(local.task))
        except Unavailable:
            raise  # not the task's fault: try again
        except SwarmletError as err:
            await self._fail(local, str(err))

    def _networks_of(self, task: Task) -> dict[str, NetworkAttachment]:
        """Name -> its place in it, of the cluster's networks. Unavailable while one of them is not here yet."""
        try:
            return {self._networks.get(place.network_id).name: place for place in task.networks}
        except NotFound as err:
            raise Unavailable(str(err)) from err

    def _lacks_contents(self, local: _Local) -> bool:
        """Whether a secret or config has still to come, with the next session; the task is looked at again then."""
        try:
            self._contents.files(local.task, self._node())
        except NotHere:
            self._waiting.add(local.task.id)
            return True
        except InvalidArgument:
            return False  # the start says so
        return False

    async def _start_container(self, local: _Local) -> None:
        try:
            if supplied_files(local.task):
                await self._engine.supply(local.task.name, self._contents.files(local.task, self._node()))
            await self._engine.start_container(local.task.name)
        except NotModified:
            return
        except NotHere:
            return  # gone just now, and so is the wish to start it
        except SwarmletError as err:
            # What dockerd gives a container that could not be started: 126, 127 or 128.
            if (container := self._container(local.task)) is not None:
                local.status = replace(local.status, exit_code=container.state.exit_code)
            await self._fail(local, f"starting container failed: {err}")

    async def _stop(self, task: Task) -> None:
        """With the task's own grace period; returns once the container has stopped."""
        grace = stop_grace_period_ns(task.spec)
        try:
            await self._engine.stop(task.name, timeout_s=-(-grace // NS))
        except (NotFound, NotModified):
            return

    async def _remove(self, task: Task) -> None:
        try:
            await self._engine.remove(task.name, force=True, volumes=True)
        except NotFound:
            log.debug("container was gone already", task_id=task.id)
        await self._journal.delete(TABLE, task.id)
        self._forget(task.id)
        local = self._tasks.get(task.id)
        if local is not None and local.released:
            del self._tasks[task.id]
        if not any(other.task.service_id == task.service_id for other in self._tasks.values()):
            self._auth.pop(task.service_id, None)

    def _container(self, task: Task) -> Container | None:
        try:
            return self._engine.get(task.name)
        except NotFound:
            return None

    # What happens to containers

    async def _follow_events(self) -> None:
        while True:
            with self._engine.events.subscribe() as events:
                for ident in self._tasks:  # something may have happened before we listened
                    self._runner.poke(ident)
                try:
                    async for event in events:
                        self._happened(event)
                    return
                except Unavailable:  # too slow: look at everything again
                    log.warning("task worker missed events")

    def _happened(self, event: Event) -> None:
        if event.type != "container" or event.action.partition(":")[0] not in EVENTS:
            return
        ident = event.attributes.get(TASK_LABEL, "")
        if ident in self._tasks:
            self._runner.poke(ident)
