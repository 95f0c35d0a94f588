"""Which containers `docker ps` shows: Engine API ContainerList's options, decided on records alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from swarmlet.engine_api.filters import Filters, moments_of
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.container import TASK_LABEL
from swarmlet_agent.api.shapes.parts import split_port
from swarmlet_agent.engine.container import Container

FILTER_KEYS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network",
    "publish", "since", "status", "volume",
)  # fmt: skip
STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
#: The label that the containers of tasks carry.
_PORTS = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?")


@dataclass(frozen=True, slots=True)
class ListQuery:
    """limit: the newest n, of any state; 0 = no limit."""

    filters: Filters
    all: bool = False
    limit: int = 0


def select(
    containers: Iterable[Container],
    query: ListQuery,
    *,
    find: Callable[[str], Container],
    image_id: Callable[[str], str],
) -> list[Container]:
    """Newest first. `find` resolves before/since (NotFound), `image_id` an ancestor (NotFound: matches none)."""
    filters = query.filters
    filters.check(*FILTER_KEYS)
    _check_values(filters)
    before = moments_of(filters, "before", lambda ref: find(ref).created_at)
    since = moments_of(filters, "since", lambda ref: find(ref).created_at)
    ancestors = {found for ref in filters.get("ancestor") if (found := _image(image_id, ref)) is not None}
    show_stopped = query.all or query.limit > 0 or "status" in filters
    chosen = [
        container
        for container in sorted(containers, key=lambda each: (-each.created_at, each.id))
        if (show_stopped or container.is_running)
        and all(container.created_at < moment for moment in before)
        and all(container.created_at > moment for moment in since)
        and ("ancestor" not in filters or container.image_id in ancestors)
        and _matches(container, filters)
    ]
    return chosen[: query.limit] if query.limit > 0 else chosen


def _image(image_id: Callable[[str], str], ref: str) -> str | None:
    try:
        return image_id(ref)
    except NotFound:
        return None


def _check_values(filters: Filters) -> None:
    for status in filters.get("status"):
        if status not in STATUSES:
            raise InvalidArgument(
                f"invalid filter 'status={status}': invalid value for state ({status}): must be one of "
                "created, running, paused, restarting, removing, exited, dead"
            )
    for health in filters.get("health"):
        if health not in ("none", "starting", "healthy", "unhealthy"):
            raise InvalidArgument(
                f"invalid filter 'health={health}': invalid value for health ({health}): must be one of "
                "none, starting, healthy, unhealthy"
            )
    for code in filters.get("exited"):
        if not re.fullmatch(r"-?\d+", code):
            raise InvalidArgument(f"invalid filter 'exited={code}': the exit code is not a number")
    for isolation in filters.get("isolation"):
        if isolation not in ("default", "process", "hyperv", ""):
            raise InvalidArgument(f"invalid filter 'isolation={isolation}'")
    for key in ("publish", "expose"):
        for value in filters.get(key):
            _port_range(key, value)
    filters.flag("is-task")


def _matches(container: Container, filters: Filters) -> bool:
    state = container.state
    is_task = filters.flag("is-task")
    health = "none" if state.health is None else state.health.status
    stopped = not container.is_running and state.started_at
    return (
        filters.matches_pattern("id", container.id)
        and filters.matches_pattern("name", container.name, f"/{container.name}")
        and filters.matches_labels(container.config.labels)
        and filters.matches("status", state.status)
        and ("exited" not in filters or bool(stopped and str(state.exit_code) in filters.get("exited")))
        and filters.matches("health", health)
        and (is_task is None or is_task == (TASK_LABEL in container.config.labels))
        and filters.matches("isolation", "default", "")
        and _matches_network(container, filters)
        and _matches_volume(container, filters)
        and _matches_ports(container, filters)
    )


def _matches_network(container: Container, filters: Filters) -> bool:
    if "network" not in filters:
        return True
    names = {container.host.network_mode or "bridge", *container.endpoints}
    ids = [endpoint.network_id for endpoint in container.endpoints.values() if endpoint.network_id]
    return any(
        value in names or any(value and ident.startswith(value) for ident in ids) for value in filters.get("network")
    )


def _matches_volume(container: Container, filters: Filters) -> bool:
    if "volume" not in filters:
        return True
    known = {word for mount in container.mounts for word in (mount.name, mount.source, mount.destination) if word}
    return any(value.rstrip("/") in known or value in known for value in filters.get("volume"))


def _matches_ports(container: Container, filters: Filters) -> bool:
    """publish names ports of the host, expose the container's own; one of both will do (moby daemon/list.go)."""
    if "publish" not in filters and "expose" not in filters:
        return True
    exposed = [split_port(port) for port in container.ports]
    published = [
        (int(binding.host_port), split_port(port)[1])
        for port, bindings in container.ports.items() for binding in bindings if binding.host_port
    ]
    return _has_port(filters, "publish", published) or _has_port(filters, "expose", exposed)


def _has_port(filters: Filters, key: str, ports: Sequence[tuple[int, str]]) -> bool:
    for value in filters.get(key):
        first, last, protocol = _port_range(key, value)
        if any(first <= port <= last and protocol == kind for port, kind in ports):
            return True
    return False


def _port_range(key: str, value: str) -> tuple[int, int, str]:
    match = _PORTS.fullmatch(value)
    if match is None:
        raise InvalidArgument(f"invalid filter '{key}={value}': expected a port, port/protocol or a range of ports")
    first = int(match[1])
    return first, int(match[2] or first), match[3] or "tcp"
