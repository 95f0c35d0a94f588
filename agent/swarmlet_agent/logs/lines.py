"""Single lines of a container's log, for drivers that send them on."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet.model.times import parse_rfc3339
from swarmlet_agent.logs.k8s_file import TEXT_AT, TIME_WIDTH

_STREAM = slice(36, 42)
_FLAG = slice(43, 44)


@dataclass(frozen=True, slots=True)
class LogLine:
    """at: ns since the epoch. whole False: a piece of a line that goes on. text is without a newline."""

    at: int
    stderr: bool
    whole: bool
    text: bytes


def parse_block(block: bytes) -> list[LogLine]:
    """The lines of a block as `LogFiles.read` gives it; what is not conmon's is passed over."""
    found = []
    for line in block.split(b"\n"):
        stream, flag = line[_STREAM], line[_FLAG]
        if stream not in (b"stdout", b"stderr") or flag not in (b"F", b"P"):
            continue
        try:
            at = parse_rfc3339(line[:TIME_WIDTH].decode())
        except (ValueError, UnicodeDecodeError):
            continue
        found.append(LogLine(at, stream == b"stderr", flag == b"F", line[TEXT_AT:]))
    return found
