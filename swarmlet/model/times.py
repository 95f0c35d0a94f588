"""Points in time are integers: nanoseconds since the epoch, UTC. 0 means never.

Integers because Docker's timestamps have nanoseconds, which `datetime` cannot hold, and because a
million task records carry several each.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

NS = 1_000_000_000
#: What Docker shows for "never" (Go's zero time).
ZERO_TIME = "0001-01-01T00:00:00Z"

_RFC3339 = re.compile(r"^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)?$")


def rfc3339(at_ns: int) -> str:
    """RFC 3339 with nanoseconds, as Docker prints; `ZERO_TIME` for 0."""
    if at_ns == 0:
        return ZERO_TIME
    seconds, rest = divmod(at_ns, NS)
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{rest:09d}Z"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds of an RFC 3339 time (no zone means UTC). ValueError if it is none."""
    match = _RFC3339.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z", "z") else zone
    whole = datetime.fromisoformat(f"{day}T{clock}{zone}")
    if whole.year == 1 and whole.month == 1 and whole.day == 1:
        return 0
    return int(whole.timestamp()) * NS + int((fraction or "").ljust(9, "0") or 0)


def parse_timestamp(text: str) -> int:
    """Nanoseconds of `since`/`until` as clients send it: seconds[.fraction] since the epoch, or RFC 3339."""
    seconds, _, fraction = text.partition(".")
    if seconds.lstrip("-").isdigit() and (not fraction or fraction.isdigit()):
        return int(seconds) * NS + int(fraction[:9].ljust(9, "0") or 0)
    return parse_rfc3339(text)
