"""Lists of processors and memory nodes, as cpuset(7) has them."""

from __future__ import annotations

from swarmlet.errors import InvalidArgument


def parse_set(text: str, name: str) -> frozenset[int]:
    """Numbers of "0-2,5" (cpuset(7) list format); at most 8192 as the kernel."""
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) > 8192:
            raise InvalidArgument(f"Invalid value {text} for cpuset {name}: invalid format: {text}")
        if int(last or first) < int(first):
            raise InvalidArgument(f"Invalid value {text} for cpuset {name}: invalid format: {text}")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
