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


def show_duration(nanoseconds: int) -> str:
    """As Go prints it: "1h30m0s", "1.5s", "250ms", "0s"."""
    if nanoseconds < 10**9:
        unit, size = next((pair for pair in (("ms", 10**6), ("µs", 10**3)) if nanoseconds >= pair[1]), ("ns", 1))
        return f"{_decimal(nanoseconds, size)}{unit}" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes_left = divmod(minutes, 60)
    shown = f"{hours}h" if hours else ""
    shown += f"{minutes_left}m" if minutes else ""
    return f"{shown}{_decimal(rest, 10**9)}s"


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)
