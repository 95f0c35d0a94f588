"""Running health checks: one task per running container that has one; the verdicts are decided in decide/health.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from msgspec.structs import replace

from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.ids import new_hex_id
from swarmlet.model.times import NS
from swarmlet_agent.decide.health import LOG_LENGTH, OUTPUT_BYTES, Check, judge, next_probe_s, plan_check
from swarmlet_agent.decide.users import Identity
from swarmlet_agent.engine.container import Container, ExecRequest, Health, HealthResult
from swarmlet_agent.engine.core import Core, Unit
from swarmlet_agent.engine.execs import emit_exec
from swarmlet_agent.engine.plan import exec_plan
from swarmlet_agent.engine.ports import ExecProcess
from swarmlet_agent.images.durations import show_duration

log = get_logger(__name__)
#: After the probe is killed for its time-out, how long its end may take.
_KILL_WAIT_S = 5.0


class HealthChecks:
    """Started and ended by Lifecycle with each run."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def planned(self, record: Container) -> bool:
        """Whether the container has a health check that is on."""
        return plan_check(record.request.healthcheck, record.request.shell) is not None

    def begin(self, unit: Unit) -> None:
        """The container runs (again)."""
        check = plan_check(unit.record.request.healthcheck, unit.record.request.shell)
        if check is not None:
            unit.health = self._core.spawn(self._watch(unit, check), f"health {unit.id[:12]}")

    def end(self, unit: Unit) -> None:
        """The run is over."""
        if unit.health is not None:
            unit.health.cancel()
            unit.health = None

    async def _watch(self, unit: Unit, check: Check) -> None:
        while True:
            health = unit.record.state.health or Health()
            await asyncio.sleep(next_probe_s(health.status, self._age_s(unit), check))
            if unit.record.state.status != "running":
                continue  # paused: its processes could not answer
            result = await self._probe(unit.record, check)
            await self._apply(unit, check, result)

    async def _apply(self, unit: Unit, check: Check, result: HealthResult) -> None:
        """A change of the verdict is journaled and announced; further results of the same kind stay in memory."""
        async with unit.lock:
            record = unit.record
            health = record.state.health or Health()
            status, streak = judge(
                health.status, health.failing_streak, passed=result.exit_code == 0,
                since_start_s=self._age_s(unit), check=check,
            )  # fmt: skip
            after = Health(status=status, failing_streak=streak, log=(*health.log, result)[-LOG_LENGTH:])
            changed = replace(record, state=replace(record.state, health=after))
            if status == health.status:
                unit.record = changed
                return
            await self._core.save(unit, changed)
            self._core.emit(changed, f"health_status: {status}")

    async def _probe(self, record: Container, check: Check) -> HealthResult:
        started = self._core.now()
        request = ExecRequest(cmd=check.args)
        identity = Identity(record.uid, record.gid, record.groups)
        ident = new_hex_id()

        def tell(action: str, **attributes: str) -> None:
            emit_exec(self._core, record, ident, request.cmd, action, **attributes)

        tell("exec_create")
        tell("exec_start")
        try:
            process = await self._core.runtime.exec(record.id, exec_plan(record, request, identity, tty=False))
        except SwarmletError as err:
            return HealthResult(start=started, end=self._core.now(), exit_code=-1, output=str(err)[:OUTPUT_BYTES])
        output = bytearray()
        try:
            async with asyncio.timeout(check.timeout_s):
                await _read(process, output)
                code = await process.wait()
            tell("exec_die", exitCode=str(code))
        except TimeoutError:
            if (ended := await _kill(process)) is not None:
                tell("exec_die", exitCode=str(ended))
            code, text = -1, f"Health check exceeded timeout ({show_duration(round(check.timeout_s * NS))})"
            shown = output.decode("utf-8", "replace")
            output = bytearray((f"{text}: {shown}" if shown else text).encode())
        except asyncio.CancelledError:  # the container ended, or the engine: its exec must not outlive us
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            if not self._core.closing:
                tell("exec_die", exitCode=str(128 + signal.SIGKILL))
            raise
        finally:
            await process.streams.close()
        text = bytes(output[:OUTPUT_BYTES]).decode("utf-8", "replace")
        if len(output) > OUTPUT_BYTES:
            text += "..."
        return HealthResult(start=started, end=self._core.now(), exit_code=code, output=text)

    def _age_s(self, unit: Unit) -> float:
        return (self._core.now() - unit.record.state.started_at) / 1e9


async def _read(process: ExecProcess, into: bytearray) -> None:
    """All of its output, of which only the beginning is kept, and a byte more to tell that there was more."""
    async for _, piece in process.streams:
        into += piece[: max(0, OUTPUT_BYTES + 1 - len(into))]


async def _kill(process: ExecProcess) -> int | None:
    """Its exit code; None if it does not end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_KILL_WAIT_S):
            return await process.wait()
    except TimeoutError:
        return None
