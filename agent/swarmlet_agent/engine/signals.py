"""Stopping, killing, pausing: what a client does to a running container.

None of these holds the unit's lock while it waits for the program to end: a `kill` or `rm -f` must get
through while a `stop` is waiting out its grace period.
"""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, NotModified
from swarmlet_agent.decide.signals import catches, parse_signal
from swarmlet_agent.engine.container import Container, WaitResult
from swarmlet_agent.engine.core import Core, Unit

_Ended = Callable[[], Awaitable[WaitResult]]

STOP_TIMEOUT_S = 10
#: A killed process that is not gone after this is stuck in the kernel.
KILL_WAIT_S = 10.0
#: How often a program that was not ready for its stop signal is looked at: at first, and at most.
READY_FIRST_S, READY_LAST_S = 0.01, 0.5


class Signals:
    """One per engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def stop(self, unit: Unit, timeout_s: int | None, signal: str) -> None:
        """Stop signal, grace period (-1: for ever), SIGKILL; returns once ports and mounts are free again.

        NotModified if it does not run. Internal if even SIGKILL has no effect.
        """
        config = unit.record.request
        number = parse_signal(signal or config.stop_signal or "SIGTERM")
        if timeout_s is None:
            timeout_s = STOP_TIMEOUT_S if config.stop_timeout is None else config.stop_timeout
        async with unit.lock:
            record = unit.record
            if not record.is_running:
                raise NotModified("container is already stopped")
            waiter = unit.waiters.register("not-running")
            again: asyncio.Task[None] | None = None
            if record.state.status == "restarting":
                await self._give_up_restart(unit)
            else:
                ready = _catches(record.state.pid, number)
                await self._send(unit, number)
                if not ready:
                    again = asyncio.create_task(self._send_when_ready(unit, number), name="stop signal again")
        try:
            await self._outlast(unit, waiter.result, timeout_s)
        finally:
            waiter.close()
            if again is not None:
                again.cancel()
                await asyncio.wait([again])
        async with unit.lock:  # ours once the exit has been handled in full
            self._core.emit(record, "stop")

    async def kill(self, unit: Unit, signal: str) -> None:
        """Send a signal; SIGKILL is waited for. Conflict if it does not run."""
        number = parse_signal(signal or "SIGKILL")
        async with unit.lock:
            if not unit.record.is_running:
                raise Conflict(f"container {unit.id} is not running")
            if unit.record.state.status == "restarting":
                await self._give_up_restart(unit)
                return
            waiter = unit.waiters.register("not-running")
            await self._send(unit, number)
        try:
            if number == signals.SIGKILL:
                await self._gone(unit, waiter.result)
        finally:
            waiter.close()

    async def _send_when_ready(self, unit: Unit, number: int) -> None:
        """The kernel drops a signal that process 1 of a namespace has no handler for (pid_namespaces(7)): a program
        that was just starting, and would have ended in peace, would be killed after its whole grace period."""
        pid, pause = unit.record.state.pid, READY_FIRST_S
        while unit.record.state.pid == pid and unit.record.has_process:
            if _catches(pid, number):
                await self._core.runtime.kill(unit.id, number)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, READY_LAST_S)

    async def _outlast(self, unit: Unit, ended: _Ended, timeout_s: int) -> None:
        try:
            async with asyncio.timeout(None if timeout_s < 0 else timeout_s):
                await ended()
                return
        except TimeoutError:
            pass
        async with unit.lock:
            if unit.record.has_process and unit.id in self._core.units:
                await self._send(unit, signals.SIGKILL)
        await self._gone(unit, ended)

    async def _gone(self, unit: Unit, ended: _Ended) -> None:
        try:
            async with asyncio.timeout(KILL_WAIT_S):
                await ended()
        except TimeoutError as err:
            raise Internal(
                f"cannot kill container: {unit.id}: tried to kill container, but did not receive an exit event"
            ) from err

    async def _send(self, unit: Unit, number: int) -> None:
        """The lock is held and the container has a process. That a user ended it is on disk before the signal is
        sent where the restart policy would otherwise bring it back."""
        record = unit.record
        if not record.state.manually_stopped:
            record = replace(record, state=replace(record.state, manually_stopped=True))
            if record.host.restart_policy.name in ("", "no"):
                unit.record = record
            else:
                await self._core.save(unit, record)
        await self._core.runtime.kill(unit.id, number)
        self._core.emit(record, "kill", signal=str(number))
        if record.state.status == "paused":  # a frozen process takes no signal
            await self._core.runtime.resume(unit.id)
            await self._core.save(unit, replace(record, state=replace(record.state, status="running")))
            self._core.emit(record, "unpause")

    async def _give_up_restart(self, unit: Unit) -> None:
        """It was waiting for its next start: that is called off."""
        if unit.again is not None:
            unit.again.cancel()
            unit.again = None
        state = replace(unit.record.state, status="exited", manually_stopped=True)
        await self._core.save(unit, replace(unit.record, state=state))
        unit.waiters.stopped(WaitResult(exit_code=state.exit_code, error=state.error))

    async def pause(self, unit: Unit) -> None:
        """Freeze every process. Conflict unless it runs."""
        async with unit.lock:
            _check_pausable(unit.record)
            await self._core.runtime.pause(unit.id)
            await self._core.save(unit, replace(unit.record, state=replace(unit.record.state, status="paused")))
            self._core.emit(unit.record, "pause")

    async def unpause(self, unit: Unit) -> None:
        """Internal unless it is paused."""
        async with unit.lock:
            if unit.record.state.status != "paused":
                raise Internal(f"Container {unit.id} is not paused")  # dockerd has no other status for it
            await self._core.runtime.resume(unit.id)
            await self._core.save(unit, replace(unit.record, state=replace(unit.record.state, status="running")))
            self._core.emit(unit.record, "unpause")


def _check_pausable(record: Container) -> None:
    status = record.state.status
    if status == "paused":
        raise Conflict(f"container {record.id} is already paused")
    if status == "restarting":
        raise Conflict(f"container {record.id} is restarting, wait until the container is running")
    if status != "running":
        raise Conflict(f"container {record.id} is not running")


def _catches(pid: int, number: int) -> bool:
    try:
        return catches(Path(f"/proc/{pid}/status").read_text(), number)
    except (FileNotFoundError, ProcessLookupError):
        return False
