"""Go's durations ("1h30m", "250ms"), as Docker's users write them. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    """Nanoseconds. ValueError if it is no duration."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, at = Fraction(0), 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        total += Fraction("0" + part[1] + "0" if part[1].endswith(".") else "0" + part[1]) * _UNITS[part[2]]
        at = part.end()
    if not rest or at != len(rest):
        raise ValueError(f"time: invalid duration {text!r}")
    return sign * int(total)
