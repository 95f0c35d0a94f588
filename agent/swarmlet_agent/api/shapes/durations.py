"""Docker's words for how long ago (its go-units HumanDuration) and for a container's status."""

from __future__ import annotations

from swarmlet.model.times import NS
from swarmlet_agent.engine.container import ContainerState

_MINUTE, _HOUR = 60, 3600


def human_duration(nanoseconds: int) -> str:
    """0 -> "Less than a second", 95 s -> "About a minute", 26 h -> "26 hours"."""
    seconds = nanoseconds // NS
    minutes, hours = seconds // _MINUTE, (seconds + _HOUR // 2) // _HOUR
    for holds, text in (
        (seconds < 1, "Less than a second"),
        (seconds == 1, "1 second"),
        (seconds < 60, f"{seconds} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
    ):
        if holds:
            return text
    return f"{seconds // _HOUR // 24 // 365} years"


def next_change(state: ContainerState, now: int) -> int:
    """A time (ns) before which `status_text` stays as it is now: the next whole second of the first minute, the next
    whole minute later."""
    since = state.started_at if state.status in ("running", "paused") else state.finished_at
    age = max(0, now - since)
    unit = NS if age < _MINUTE * NS else _MINUTE * NS
    return since + (age // unit + 1) * unit


def status_text(state: ContainerState, now: int) -> str:
    """What `docker ps` shows as STATUS."""
    up = f"Up {human_duration(now - state.started_at)}"
    match state.status:
        case "paused":
            return f"{up} (Paused)"
        case "restarting":
            return f"Restarting ({state.exit_code}) {human_duration(now - state.finished_at)} ago"
        case "running":
            if state.health is None:
                return up
            health = state.health.status
            return f"{up} (health: starting)" if health == "starting" else f"{up} ({health})"
        case "removing":
            return "Removal In Progress"
        case "dead":
            return "Dead"
    if not state.started_at and not state.finished_at:
        return "Created"
    if not state.finished_at:
        return ""
    return f"Exited ({state.exit_code}) {human_duration(now - state.finished_at)} ago"
