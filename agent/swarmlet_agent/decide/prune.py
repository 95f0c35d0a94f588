"""Which containers `container prune` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ContainerConfig
from swarmlet.model.times import NS, parse_timestamp

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Prunable(Protocol):
    """What the decision needs of a container."""

    @property
    def is_running(self) -> bool: ...
    @property
    def created_at(self) -> int: ...
    @property
    def config(self) -> ContainerConfig: ...


Item = TypeVar("Item", bound=Prunable)


def to_prune(containers: Iterable[Item], filters: Filters, *, now: int) -> list[Item]:
    """Those that do not run, were created before `until`, have every `label` and none of `label!`. now: ns."""
    until = [parse_until(text, now) for text in filters.get("until")]
    if len(until) > 1:
        raise InvalidArgument("more than one until filter specified")
    return [
        item
        for item in containers
        if not item.is_running
        and (not until or item.created_at < until[0])
        and filters.matches_labels(item.config.labels)
        and not ("label!" in filters and filters.matches_labels(item.config.labels, "label!"))
    ]


def parse_until(text: str, now: int) -> int:
    """ns of a time: a duration before now in Go's form ("10m", "1h30m"), seconds since the epoch or RFC 3339."""
    rest, total, seen = text, 0.0, False
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:digits], rest[digits:]
        letters = len(rest) - len(rest.lstrip("nusmh"))
        unit, rest = rest[:letters], rest[letters:]
        if unit not in _UNITS_S or not number.replace(".", "", 1).isdigit():
            break
        total, seen = total + float(number) * _UNITS_S[unit], True
    else:
        if seen:
            return now - int(total * NS)
    try:
        return parse_timestamp(text)
    except ValueError as err:
        raise InvalidArgument(f'failed to parse value as time or duration: "{text}"') from err
