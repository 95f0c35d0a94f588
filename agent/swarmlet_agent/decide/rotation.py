"""How large a container's log may grow, and in how many files (Docker's max-size and max-file)."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet.model.container import LogConfig
from swarmlet_agent.decide.validate import parse_size

#: The local driver's defaults; json-file has none and grows without limit.
LOCAL_BYTES = 20 << 20
LOCAL_FILES = 5


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Beyond max_bytes a file is put aside; `files` are kept in all, the one being written included."""

    max_bytes: int
    files: int


def log_limits(config: LogConfig) -> LogLimits | None:
    """None: the log is never rotated."""
    if config.type == "none":
        return None
    local = config.type == "local"
    given = config.config
    size = parse_size(given["max-size"]) if given.get("max-size") else LOCAL_BYTES if local else 0
    files = int(given["max-file"]) if given.get("max-file") else LOCAL_FILES if local else 1
    return LogLimits(size, files) if size > 0 else None
