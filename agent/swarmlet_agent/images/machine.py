"""What this machine runs best: its platform with the level of its processor. It chooses among an image's platforms."""

from __future__ import annotations

import platform as uname
from functools import cache
from pathlib import Path

from swarmlet_agent.images.platforms import Platform, best_platform


@cache
def this_machine() -> Platform:
    return best_platform(uname.machine(), _cpu_flags())


def _cpu_flags() -> frozenset[str]:
    """As /proc/cpuinfo tells them (proc(5)); none where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())
