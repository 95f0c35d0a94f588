"""Whether and when a container that has ended starts again (Docker's restart policies)."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet.model.container import RestartPolicy

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 60.0
#: A run of this length wipes the slate: the next delay is the first one again.
STEADY_RUN_S = 10.0


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again after this long."""

    delay_s: float


def after_exit(
    policy: RestartPolicy, *, exit_code: int, ran_s: float, restarts: int, stopped_by_user: bool, last_delay_s: float
) -> Again | None:
    """What an exit leads to; None leaves the container exited.

    restarts: how often the policy has restarted it so far. last_delay_s: the delay before the run that has
    just ended, 0 if that was no restart.
    """
    if stopped_by_user or not wants_to_run(policy, exit_code, restarts):
        return None
    if ran_s >= STEADY_RUN_S or last_delay_s <= 0:
        return Again(FIRST_DELAY_S)
    return Again(min(last_delay_s * 2, LONGEST_DELAY_S))


def after_boot(policy: RestartPolicy, *, exit_code: int, restarts: int, started: bool, manually_stopped: bool) -> bool:
    """Whether a container found stopped when the engine starts is to be started.

    As with dockerd, `always` comes back even if a user had stopped it; one that never ran does not start by itself.
    """
    if not started or (manually_stopped and policy.name != "always"):
        return False
    return wants_to_run(policy, exit_code, restarts)


def wants_to_run(policy: RestartPolicy, exit_code: int, restarts: int) -> bool:
    """The policy alone, whoever stopped the container."""
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name == "on-failure":
        limit = policy.maximum_retry_count
        return exit_code != 0 and (limit == 0 or restarts < limit)
    return False
