"""The `filters=` parameter of list calls: decoding, checking, and matching what is common."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from swarmlet.errors import InvalidArgument
from swarmlet.model.times import parse_timestamp

#: Longest pattern tried: names and ids are at most a few hundred characters.
MAX_PATTERN = 300
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+")
_MOMENT = re.compile(r"@-?[0-9]{1,20}")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_NS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}

#: What `docker events --filter` knows (Engine API SystemEvents).
EVENT_FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
    "scope", "secret", "service", "type", "volume",
)  # fmt: skip


class Filters:
    """key -> values; values of one key are alternatives, except labels, which must all match."""

    def __init__(self, values: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self._values = dict(values or {})

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> Collection[str]:
        return self._values.keys()

    def get(self, key: str) -> tuple[str, ...]:
        """() if the key is not filtered by."""
        return self._values.get(key, ())

    def having(self, key: str, *values: str) -> Filters:
        """The same, but with these values of one key."""
        return Filters({**self._values, key: values})

    def encoded(self) -> str:
        """As a client sends them; `decode_filters` reads it again."""
        return msgspec.json.encode(self._values).decode()

    def check(self, *allowed: str) -> None:
        """InvalidArgument, in dockerd's words, for a key that this list does not know."""
        for key in self._values:
            if key not in allowed:
                raise InvalidArgument(f"invalid filter '{key}'")

    def flag(self, key: str) -> bool | None:
        """A boolean filter: None if absent. InvalidArgument for anything but true/false/1/0."""
        values = {value.lower() for value in self.get(key)}
        if not values:
            return None
        if values <= {"1", "true", "t"}:
            return True
        if values <= {"0", "false", "f"}:
            return False
        raise InvalidArgument(f"invalid filter '{key}=[{' '.join(self.get(key))}]'")

    def matches_labels(self, labels: Mapping[str, str], key: str = "label") -> bool:
        """Every `name` or `name=value` must hold."""
        for wanted in self.get(key):
            name, equals, value = wanted.partition("=")
            if name not in labels or (equals and labels[name] != value):
                return False
        return True

    def matches(self, key: str, *candidates: str) -> bool:
        """True if the key is not filtered by, or one of its values is exactly one of the candidates."""
        return key not in self._values or any(value in candidates for value in self._values[key])

    def matches_prefix(self, key: str, candidate: str) -> bool:
        """As `matches`, for ids: a value may be a prefix of the candidate."""
        return key not in self._values or any(candidate.startswith(value) for value in self._values[key])

    def matches_pattern(self, key: str, *candidates: str) -> bool:
        """As `matches`, but a value may also be a regular expression found somewhere in a candidate."""
        return key not in self._values or any(
            value == candidate or _occurs(value, candidate) for value in self._values[key] for candidate in candidates
        )

    def matches_part(self, key: str, candidate: str) -> bool:
        """As `matches`, for names: a value may occur anywhere in the candidate."""
        return key not in self._values or any(value in candidate for value in self._values[key])


def _occurs(pattern: str, text: str) -> bool:
    """False for a pattern that is no regular expression, or one too long to be meant."""
    try:
        return len(pattern) <= MAX_PATTERN and re.search(pattern, text) is not None
    except (re.error, RecursionError):
        return False


def decode_filters(text: str) -> Filters:
    """From JSON: {"key": ["value"]} or, from older clients, {"key": {"value": true}}. "" is no filter."""
    if not text:
        return Filters()
    try:
        raw: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as err:
        raise InvalidArgument(f"invalid filter: {err}") from err
    if raw is None:
        return Filters()
    if not isinstance(raw, dict):
        raise InvalidArgument("invalid filter: expected a JSON object")
    values: dict[str, tuple[str, ...]] = {}
    for key, given in raw.items():
        if isinstance(given, dict):
            chosen = [value for value, on in given.items() if on]
        elif isinstance(given, list):
            chosen = given
        else:
            raise InvalidArgument(f"invalid filter '{key}': expected a list of strings")
        if not all(isinstance(value, str) for value in chosen):
            raise InvalidArgument(f"invalid filter '{key}': expected a list of strings")
        values[key] = tuple(chosen)
    return Filters(values)


def moment(at_ns: int) -> str:
    """A value of before and since that means a time: no name or id of anything looks like it.

    For the manager: what a client names there may be on one node only, and its time is what the others need.
    """
    return f"@{at_ns}"


def moments_of(filters: Filters, key: str, created_at: Callable[[str], int]) -> list[int]:
    """The times (ns since the epoch) that before or since mean. created_at: of an object by name; NotFound."""
    return [
        int(value[1:]) if _MOMENT.fullmatch(value) else created_at(value)
        for value in filters.get(key)
    ]


def until_of(filters: Filters, now: int) -> int | None:
    """The `until` filter in nanoseconds since the epoch: a time, or a duration like 10m before now. InvalidArgument."""
    values = filters.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidArgument("more than one until filter specified")
    text = values[0]
    if _DURATION.fullmatch(text):
        return now - int(sum(float(number) * _NS[unit] for number, unit in _DURATION_PART.findall(text)))
    try:
        return parse_timestamp(text)
    except ValueError as err:
        raise InvalidArgument(f'failed to parse value as time or duration: "{text}"') from err
