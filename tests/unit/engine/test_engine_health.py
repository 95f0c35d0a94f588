"""Health checks: their verdicts, their probes, and what they never do."""

from __future__ import annotations

import asyncio

import pytest
from engine_made import request
from msgspec.structs import replace

from swarmlet.model.common import HealthConfig
from swarmlet.model.times import NS
from swarmlet_agent.decide.health import Check, judge, next_probe_s, plan_check

CHECK = Check(("probe",), interval_s=30, start_interval_s=5, timeout_s=30, start_period_s=10, retries=2)
LONG = ("sleep", "1000")


def test_what_is_run():
    assert plan_check(None, ()) is None
    assert plan_check(HealthConfig(test=("NONE",)), ()) is None
    assert plan_check(HealthConfig(interval=5 * NS), ()) is None
    shell = plan_check(HealthConfig(test=("CMD-SHELL", "curl -f x")), ())
    assert shell is not None
    assert shell.args == ("/bin/sh", "-c", "curl -f x")
    assert (shell.interval_s, shell.timeout_s, shell.retries, shell.start_interval_s) == (30, 30, 3, 5)
    own = plan_check(HealthConfig(test=("CMD-SHELL", "x"), retries=1), ("/bin/bash", "-c"))
    assert own is not None
    assert (own.args, own.retries) == (("/bin/bash", "-c", "x"), 1)
    assert plan_check(HealthConfig(test=("RUN", "x")), ()) is None


async def test_a_check_of_no_known_kind_is_never_run_and_told_of(node):
    record, warnings = await node.engine.create("", replace(request(), healthcheck=HealthConfig(test=("true",))))
    await node.engine.start_container(record.id)

    assert warnings == ["Unknown healthcheck type 'true' (expected 'CMD'): the container has no health check."]
    assert node.engine.get(record.id).request.healthcheck.test == ("true",)
    assert node.engine.get(record.id).state.health is None


@pytest.mark.parametrize(
    ("status", "streak", "passed", "age", "after"),
    [
        ("starting", 0, False, 5, ("starting", 0)),  # within the start period
        ("starting", 0, False, 11, ("starting", 1)),
        ("starting", 1, False, 11, ("unhealthy", 2)),
        ("starting", 1, True, 5, ("healthy", 0)),
        ("healthy", 0, False, 5, ("healthy", 1)),  # once healthy, the start period protects no longer
        ("healthy", 1, False, 50, ("unhealthy", 2)),
        ("unhealthy", 7, True, 50, ("healthy", 0)),
    ],
)
def test_verdicts(status, streak, passed, age, after):
    assert judge(status, streak, passed=passed, since_start_s=age, check=CHECK) == after


def test_probes_are_closer_together_while_it_starts():
    assert next_probe_s("starting", 0, CHECK) == 5
    assert next_probe_s("starting", 8, CHECK) == 2
    assert next_probe_s("starting", 12, CHECK) == 30
    assert next_probe_s("healthy", 1, CHECK) == 30


def check(*test: str, **over: int) -> HealthConfig:
    return HealthConfig(test=test, **{"interval": NS // 100, "retries": 2, **over})  # type: ignore[arg-type]


async def status_of(node, ident: str, wanted: str) -> None:
    async with asyncio.timeout(30):
        while node.engine.get(ident).state.health.status != wanted:
            await asyncio.sleep(0.005)


@pytest.mark.looptime
async def test_a_probe_that_passes_makes_it_healthy_and_is_announced(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "echo", "fine"))
    assert node.engine.get(ident).state.health.status == "starting"

    await status_of(node, ident, "healthy")
    await asyncio.sleep(0.1)
    health = node.engine.get(ident).state.health
    assert len(health.log) == 5
    assert (health.log[0].exit_code, health.log[0].output) == (0, "fine\n")
    actions = [event.action for event in node.engine.events._ring]
    assert actions.count("health_status: healthy") == 1


async def test_a_failing_probe_makes_it_unhealthy_after_its_retries(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "exit", "1"))
    await status_of(node, ident, "unhealthy")

    assert node.engine.get(ident).state.health.failing_streak == 2
    assert (await node.again()).get(ident).state.health.status == "unhealthy"


async def test_a_probe_that_cannot_run_counts_as_failed(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "nosuch"))
    await status_of(node, ident, "unhealthy")

    assert "executable file not found" in node.engine.get(ident).state.health.log[0].output


async def test_a_probe_that_takes_too_long_is_killed(node, monkeypatch):
    killed = []
    monkeypatch.setattr("swarmlet_agent.engine.health._KILL_WAIT_S", 0.01)
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
    ident = await node.run(*LONG, healthcheck=check("CMD", "sleep", timeout=NS // 100))
    await status_of(node, ident, "unhealthy")

    assert len(killed) >= 2
    assert node.engine.get(ident).state.health.log[0].output.startswith("Health check exceeded timeout (10ms)")


async def test_a_probe_is_told_of_as_an_exec(node):
    """As Docker does: three events each, of one id."""
    ident = await node.run(*LONG, healthcheck=check("CMD", "echo", "fine"))
    await status_of(node, ident, "healthy")
    told = [event for event in node.engine.events._ring if event.action.startswith("exec_")][:3]
    assert [event.action for event in told] == ["exec_create: echo fine", "exec_start: echo fine", "exec_die"]
    assert len({event.attributes["execID"] for event in told}) == 1
    assert told[2].attributes["exitCode"] == "0" and {event.actor_id for event in told} == {ident}


async def test_a_probe_that_cannot_run_has_no_end(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "nosuch"))
    await status_of(node, ident, "unhealthy")
    actions = {event.action for event in node.engine.events._ring if event.action.startswith("exec_")}
    assert actions == {"exec_create: nosuch ", "exec_start: nosuch "}


@pytest.mark.looptime
async def test_probing_ends_with_the_run(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "echo"))
    await status_of(node, ident, "healthy")
    await node.engine.stop(ident)
    count = node.world.calls.count("runtime.exec")
    await asyncio.sleep(0.1)

    assert node.world.calls.count("runtime.exec") == count


@pytest.mark.looptime
async def test_a_paused_container_is_not_probed(node):
    ident = await node.run(*LONG, healthcheck=check("CMD", "echo"))
    await status_of(node, ident, "healthy")
    await node.engine.pause(ident)
    await asyncio.sleep(0.03)
    count = node.world.calls.count("runtime.exec")
    await asyncio.sleep(0.1)

    assert node.world.calls.count("runtime.exec") == count
