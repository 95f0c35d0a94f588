"""Health checks: what to run, how often, and what a result means (moby daemon/health.go)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import HealthConfig
from swarmlet.model.times import NS

INTERVAL_NS = 30 * NS
TIMEOUT_NS = 30 * NS
START_INTERVAL_NS = 5 * NS
RETRIES = 3
#: Probe outputs are cut to this, and this many results are kept.
OUTPUT_BYTES = 4096
LOG_LENGTH = 5
_SHORTEST_NS = 1_000_000

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    """A health check with its defaults filled in; seconds."""

    args: tuple[str, ...]
    interval_s: float
    start_interval_s: float
    timeout_s: float
    start_period_s: float
    retries: int


def plan_check(config: HealthConfig | None, shell: Sequence[str]) -> Check | None:
    """What to run, or None: no check, one that is turned off, or (`unknown_kind`) one of an unknown kind."""
    if config is None or not config.test:
        return None
    kind, *words = config.test
    if kind == "CMD-SHELL":
        args = (*(shell or ("/bin/sh", "-c")), *words[:1])
    elif kind == "CMD":
        args = tuple(words)
    else:
        return None
    return Check(
        args=args,
        interval_s=(config.interval or INTERVAL_NS) / NS,
        start_interval_s=(config.start_interval or START_INTERVAL_NS) / NS,
        timeout_s=(config.timeout or TIMEOUT_NS) / NS,
        start_period_s=config.start_period / NS,
        retries=config.retries or RETRIES,
    )


def check_config(config: HealthConfig | None) -> None:
    """InvalidArgument, in dockerd's words, for impossible durations or counts."""
    if config is None:
        return
    for name, value in (
        ("Interval", config.interval), ("Timeout", config.timeout), ("StartPeriod", config.start_period),
        ("StartInterval", config.start_interval),
    ):  # fmt: skip
        if value and value < _SHORTEST_NS:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if config.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")


def unknown_kind(config: HealthConfig | None) -> list[str]:
    """What to tell of a test that is of no known kind: dockerd creates the container, and never runs it."""
    if config is None or not config.test or config.test[0] in ("NONE", "CMD", "CMD-SHELL"):
        return []
    return [f"Unknown healthcheck type '{config.test[0]}' (expected 'CMD'): the container has no health check."]


def judge(status: str, streak: int, *, passed: bool, since_start_s: float, check: Check) -> tuple[str, int]:
    """(status, failing streak) after a probe. Failures while starting, within the start period, do not count."""
    if passed:
        return HEALTHY, 0
    if status == STARTING and since_start_s < check.start_period_s:
        return STARTING, streak
    streak += 1
    return (UNHEALTHY if streak >= check.retries else status), streak


def next_probe_s(status: str, since_start_s: float, check: Check) -> float:
    """Seconds until the next probe: more often during the start period, so that a quick start is seen soon."""
    if status == STARTING and since_start_s < check.start_period_s:
        return min(check.start_interval_s, max(check.start_period_s - since_start_s, 0.001))
    return check.interval_s
