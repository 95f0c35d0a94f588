"""A container's runs: start, end, restart policy, and taking up again what a previous agent left running.

    created ── start ──> running <──> paused
       ^                    │ exit
       └ (failed start)     v
                  exited or, by policy, restarting ── delay ──> running

A start is journaled once the program runs. Cut before that, the next engine finds the unit's marker and
no record of a run, and takes away whatever was made: so there are never two processes of one container.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, NotModified, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.decide.restart import Again, after_boot, after_exit
from swarmlet_agent.engine.bringup import Bringup, exit_code_of
from swarmlet_agent.engine.container import Container, Health, WaitResult
from swarmlet_agent.engine.core import TABLE, Core, Unit, encode
from swarmlet_agent.engine.health import HealthChecks
from swarmlet_agent.engine.plan import at_rest
from swarmlet_agent.engine.removal import Removal
from swarmlet_agent.engine.rotation import LogRotation
from swarmlet_agent.engine.shipping import LogShipping
from swarmlet_agent.runtime.types import Exit

log = get_logger(__name__)
#: What an end counts as whose exit code nobody knows: the machine went down (moby: 255).
LOST_EXIT_CODE = 255
#: How long the runtime may take to tell how a container ended that is no longer there.
EXIT_LOOKUP_S = 5.0


class Lifecycle:
    """One per engine."""

    def __init__(
        self, core: Core, bringup: Bringup, removal: Removal, checks: HealthChecks, shipping: LogShipping,
        rotation: LogRotation,
    ) -> None:
        self._core = core
        self._bringup = bringup
        self._removal = removal
        self._checks = checks
        self._shipping = shipping
        self._rotation = rotation

    async def start(self, unit: Unit) -> None:
        """A client's start. NotModified if it runs, Conflict while paused or being removed, StartFailed and others."""
        async with unit.lock:
            state = unit.record.state
            if state.status == "paused":
                raise Conflict("cannot start a paused container, try unpause instead")
            if unit.record.is_running:
                raise NotModified("container already started")
            if unit.removing or state.status in ("removing", "dead"):
                raise Conflict("container is marked for removal and cannot be started")
            unit.delay_s = 0.0
            record = replace(unit.record, restart_count=0, state=replace(state, manually_stopped=False))
            try:
                await self._launch(unit, record)
            except SwarmletError as err:
                await self._start_failed(unit, record, err)
                raise

    async def adopt(self, unit: Unit) -> None:
        """Bring record and reality together after an agent's start (callers run this once per unit)."""
        record = unit.record
        async with unit.lock:
            if record.state.status == "removing":
                await self._removal.destroy(unit, volumes=record.removes_volumes)
            elif record.has_process:
                unit.dirty = True
                pid = await self._core.runtime.alive(unit.id)
                if pid is None:
                    self._shipping.begin(unit)
                    await self._ended(unit, await self._lost_exit(unit))
                    return
                if pid != record.state.pid:
                    await self._core.save(unit, replace(record, state=replace(record.state, pid=pid)))
                # A pause or unpause may have been cut before it was journaled, so never answered: undo it.
                freeze = self._core.runtime.pause if record.state.status == "paused" else self._core.runtime.resume
                await freeze(unit.id)
                self._begin(unit)
            else:
                self._shipping.catch_up(unit)
                await self._adopt_stopped(unit, record)

    async def _adopt_stopped(self, unit: Unit, record: Container) -> None:
        if unit.dirty:  # a start, or the clearing up after an end, was cut
            await self._bringup.down(unit)
        if record.state.status in ("exited", "dead"):
            await self._clear_supplies(unit)
        state, policy = record.state, record.host.restart_policy
        if record.host.auto_remove:
            await self._removal.destroy(unit, volumes=True)
        elif state.status == "restarting":
            self._schedule(unit, Again(0.0))
        elif after_boot(
            policy, exit_code=state.exit_code, restarts=0, started=state.started_at != 0,
            manually_stopped=state.manually_stopped,
        ):  # fmt: skip
            waiting = replace(state, status="restarting", manually_stopped=False)
            unit.record = replace(record, state=waiting, restart_count=0)
            self._schedule(unit, Again(0.0))

    async def _lost_exit(self, unit: Unit) -> Exit:
        try:
            async with asyncio.timeout(EXIT_LOOKUP_S):
                return await self._core.runtime.wait(unit.id)
        except (SwarmletError, TimeoutError) as err:
            log.warning("exit code unknown", container_id=unit.id, error=str(err))
            return Exit(code=LOST_EXIT_CODE, at=self._core.now())

    async def _launch(self, unit: Unit, record: Container) -> None:
        """Start and journal it; on an error nothing of it is left, and the record is as it was."""
        try:
            health = Health() if self._checks.planned(record) else None
            record = replace(record, state=replace(record.state, health=health))
            await self._shipping.check(record)
            started = await self._bringup.up(unit, record)
            await self._core.save(unit, started)
        except asyncio.CancelledError:
            raise  # the engine closes: start() repairs
        except Exception as err:
            await self._clear(unit)
            if isinstance(err, SwarmletError):
                raise
            log.exception("start failed", container_id=unit.id)
            raise Internal(f"container {unit.record.short_id} could not be started: {err}") from err
        self._core.emit(started, "start")
        self._begin(unit)

    def _begin(self, unit: Unit) -> None:
        """Watch a run, from its start or from adoption. A closing engine leaves that to the next one."""
        if self._core.closing:
            return
        unit.monitor = self._core.spawn(self._watch(unit), f"monitor {unit.id[:12]}")
        self._checks.begin(unit)
        self._shipping.begin(unit)

    async def _start_failed(self, unit: Unit, record: Container, error: SwarmletError) -> None:
        """It could not be started: keep the reason, or remove what was to be removed anyway. Who waits for the next
        exit goes on waiting, as with dockerd: there was no run, and a client may try again."""
        code = exit_code_of(error)
        status = "exited" if record.state.started_at else "created"
        state = replace(record.state, status=status, pid=0, exit_code=code, error=str(error))
        record = replace(record, state=state, endpoints=at_rest(record), ports={})
        for pending in tuple(unit.pending):
            pending.end()
        self._core.emit(record, "die", exitCode=str(code))
        if record.host.auto_remove and not unit.keep:
            unit.record = record
            await self._removal.destroy(unit, volumes=True)
        else:
            await self._core.save(unit, record)
            await self._clear_supplies(unit)

    async def _watch(self, unit: Unit) -> None:
        """Wait for the end of a run, and handle it."""
        try:
            exit = await self._core.runtime.wait(unit.id)
        except SwarmletError as err:
            log.error("the end of a container cannot be watched", container_id=unit.id, error=str(err))
            exit = await self._lost_exit(unit)
        async with unit.lock:
            unit.monitor = None
            if unit.record.has_process:
                await self._ended(unit, exit)

    async def _ended(self, unit: Unit, exit: Exit) -> None:
        """A run is over; the lock is held. First the truth on disk and the network freed, then those who wait are
        told, then the rest is cleared away before anyone else gets the lock."""
        core, record, before = self._core, unit.record, unit.record.state
        self._checks.end(unit)
        self._shipping.end(unit)
        if not record.host.auto_remove:
            await self._rotation.trim(record)
        ran_s = max(0.0, (exit.at - before.started_at) / 1e9)
        again = after_exit(
            record.host.restart_policy, exit_code=exit.code, ran_s=ran_s, restarts=record.restart_count,
            stopped_by_user=before.manually_stopped or unit.keep or unit.removing, last_delay_s=unit.delay_s,
        )  # fmt: skip
        state = replace(
            before, status="restarting" if again else "exited", pid=0, exit_code=exit.code, error="",
            oom_killed=exit.oom_killed, finished_at=exit.at,
        )  # fmt: skip
        ended = replace(
            record, state=state, endpoints=at_rest(record), ports={}, netns_path="", sandbox_id="",
            restart_count=record.restart_count + (1 if again else 0),
        )  # fmt: skip
        if exit.oom_killed:
            core.emit(record, "oom")
        result = WaitResult(exit_code=exit.code)
        if record.host.auto_remove and not unit.keep:
            unit.record = ended
            await self._off_networks(unit)
            core.emit(ended, "die", exitCode=str(exit.code), execDuration=str(int(ran_s)))
            core.late_results.note(unit.id, result, core.now())
            unit.waiters.stopped(result)
            await self._remove_ended(unit)
            return
        detached, saved = await asyncio.gather(
            core.networks.detach(unit.id), core.journal.put(TABLE, unit.id, encode(ended)), return_exceptions=True
        )
        if saved is not None:
            raise saved  # the record still says running: the next engine handles this end again
        unit.record = ended  # not before: who sees it ended may remove its networks
        core.emit(ended, "die", exitCode=str(exit.code), execDuration=str(int(ran_s)))
        unit.waiters.stopped(result)
        await self._clear(unit, keep_network=detached is None)
        if again:
            self._schedule(unit, again)
        elif not unit.keep:
            await self._clear_supplies(unit)

    async def _off_networks(self, unit: Unit) -> None:
        """Events tell of it before the end itself (moby handleContainerExit). What fails, the removal tries again."""
        try:
            await self._core.networks.detach(unit.id)
        except (SwarmletError, OSError) as err:
            log.warning("a container that ended stays in its networks for now", container_id=unit.id, error=str(err))

    async def _remove_ended(self, unit: Unit) -> None:
        """`--rm`. If it cannot be removed it stays as exited, for a client to try."""
        try:
            await self._removal.destroy(unit, volumes=True, clear_later=True)
        except SwarmletError as err:
            log.error("container could not be removed after its end", container_id=unit.id, error=str(err))
            state = replace(unit.record.state, status="dead", error=str(err))
            await self._core.save(unit, replace(unit.record, state=state))

    async def _clear(self, unit: Unit, *, keep_network: bool = False) -> None:
        """Take the run's leftovers away; what resists is tried again before the next start or removal."""
        try:
            await self._bringup.down(unit, keep_network=keep_network)
        except (SwarmletError, OSError) as err:
            log.error("leftovers of a run stay behind", container_id=unit.id, error=str(err))

    async def _clear_supplies(self, unit: Unit) -> None:
        """What its task had given it: no further run is due."""
        if unit.record.supplied:
            try:
                await self._core.supplies.clear(unit.id)
            except SwarmletError as err:
                log.error("secrets of a container stay until it is removed", container_id=unit.id, error=str(err))

    def _schedule(self, unit: Unit, again: Again) -> None:
        unit.delay_s = again.delay_s
        if self._core.closing:  # its record says restarting: the next engine sees to it
            return
        unit.again = self._core.spawn(self._start_again(unit, again.delay_s), f"restart {unit.id[:12]}")

    async def _start_again(self, unit: Unit, delay_s: float) -> None:
        """The restart policy's start. Failing to start counts as a run that failed at once."""
        await asyncio.sleep(delay_s)
        async with unit.lock:
            unit.again = None
            record = unit.record
            if record.state.status != "restarting" or self._core.closing:
                return
            try:
                await self._launch(unit, record)
            except SwarmletError as err:
                log.warning("restart failed", container_id=unit.id, error=str(err))
                await self._restart_failed(unit, record, err)

    async def _restart_failed(self, unit: Unit, record: Container, error: SwarmletError) -> None:
        code = exit_code_of(error)
        again = after_exit(
            record.host.restart_policy, exit_code=code, ran_s=0.0, restarts=record.restart_count,
            stopped_by_user=False, last_delay_s=unit.delay_s,
        )  # fmt: skip
        if again is None:
            await self._start_failed(unit, record, error)
            unit.waiters.stopped(WaitResult(exit_code=code, error=str(error)))
            return
        state = replace(record.state, exit_code=code, error=str(error))
        await self._core.save(unit, replace(record, state=state, restart_count=record.restart_count + 1))
        self._schedule(unit, again)
