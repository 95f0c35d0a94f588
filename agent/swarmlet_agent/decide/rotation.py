"""How large a container's log may grow, and in how many files (Docker's max-size and max-file)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarmlet.model.container import LogConfig
from swarmlet_agent.decide.log_options import SHIPPING, parse_bool, parse_size

#: The defaults of the local driver, and of the file beside a driver that sends lines away; json-file has none and
#: grows without limit.
LOCAL_BYTES = 20 << 20
LOCAL_FILES = 5
#: Between two looks at sizes: when nothing is to be looked at or grows, when something does, and at the least.
IDLE_S, GROWING_S, SHORTEST_S = 0.5, 0.25, 0.02


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Beyond max_bytes a file is put aside; `files` are kept in all, the one being written included.

    compress: files put aside are packed with gzip, but for the newest, to which conmon may still write.
    """

    max_bytes: int
    files: int
    compress: bool = False


def log_limits(config: LogConfig) -> LogLimits | None:
    """None: the log is never rotated."""
    if config.type == "none":
        return None
    shipped = config.type in SHIPPING
    local = shipped or config.type == "local"
    prefix = "cache-" if shipped else ""
    given = {key.removeprefix(prefix): value for key, value in config.config.items() if key.startswith(prefix)}
    size = parse_size(given["max-size"]) if given.get("max-size") else LOCAL_BYTES if local else 0
    files = int(given["max-file"]) if given.get("max-file") else LOCAL_FILES if local else 1
    compress = parse_bool("compress", given.get("compress") or ("true" if local else "false"))
    return LogLimits(size, files, compress and files > 1) if size > 0 else None


def next_look_s(logs: Iterable[tuple[int, int, int]], since_s: float) -> float:
    """Seconds until sizes should be looked at again. logs: (bytes now, of which since the last look, limit)."""
    pause_s = IDLE_S
    for size, grown, limit in logs:
        if grown > 0:
            left = limit - size if size < limit else limit
            pause_s = min(pause_s, GROWING_S, left * since_s / grown)
    return max(pause_s, SHORTEST_S)
