"""Signals by the names and numbers clients use."""

from __future__ import annotations

import signal

from swarmlet.errors import InvalidArgument

_REALTIME_FIRST, _REALTIME_LAST = 34, 64


def _known() -> dict[str, int]:
    names = {item.name.removeprefix("SIG"): item.value for item in signal.Signals}
    names |= {"CLD": names["CHLD"], "IOT": names["ABRT"], "POLL": names["IO"], "STKFLT": 16}
    for number in range(_REALTIME_FIRST, _REALTIME_LAST + 1):
        up, down = number - _REALTIME_FIRST, _REALTIME_LAST - number
        names[f"RTMIN+{up}" if up else "RTMIN"] = number
        names[f"RTMAX-{down}" if down else "RTMAX"] = number
    return names


_NUMBERS = _known()


def parse_signal(text: str) -> int:
    """The number of "KILL", "SIGKILL", "sigkill", "9", "RTMIN+3" …; InvalidArgument as dockerd has it."""
    text = text.strip()
    if text.isdigit():
        number = int(text)
        if 0 < number <= _REALTIME_LAST:
            return number
    elif (name := text.upper().removeprefix("SIG")) in _NUMBERS:
        return _NUMBERS[name]
    raise InvalidArgument(f"invalid signal: {text}")


def catches(status: str, number: int) -> bool:
    """Does the process of this /proc/<pid>/status have a handler for the signal? (proc(5), SigCgt)"""
    for line in status.splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
