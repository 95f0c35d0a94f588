"""conmon's log lines (its k8s-file driver), and what a client of `docker logs` gets to see of them.

A line is `2026-01-31T10:00:00.123456789+00:00 stdout F text`: a time of fixed width in the host's zone, the
stream, F for text that ended with a newline or P for a piece of a line that goes on, and the text. Every
part before the text has a fixed width, so whole blocks are cut without looking at single bytes. conmon cuts a line
wherever one of its reads ends: clients, which take a frame for a line, get the pieces put together.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby

from swarmlet.engine_api.streams import STDERR, STDOUT, frame, frame_head
from swarmlet.model.times import parse_rfc3339, rfc3339

TIME_WIDTH = 35
_CLOCK_WIDTH = 29  # without the zone
_KIND = slice(36, 44)  # "stdout F"
_FLAG = slice(43, 44)
TEXT_AT = 45


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What of a log is wanted, and how.

    since, until: nanoseconds, 0 = no bound; since is inclusive. tail: the last n lines of both streams together,
    None = all. framed: multiplexed frames (False for a TTY's raw bytes). prefix: the attributes that
    `details` puts before each line, None without it.
    """

    stdout: bool = True
    stderr: bool = True
    timestamps: bool = False
    since: int = 0
    until: int = 0
    tail: int | None = None
    framed: bool = True
    prefix: str | None = None


#: Anything else in the file is not conmon's (a crash of the host may leave such) and is passed over.
_KINDS = {b"stdout F": STDOUT, b"stdout P": STDOUT, b"stderr F": STDERR, b"stderr P": STDERR}


def ends_line(line: bytes) -> bool:
    """True for the piece that ends a line (F)."""
    return line[_FLAG] == b"F"


class _FrameHeads(dict[int, bytes]):
    """Heads of frames by the length of the whole log line, made once for each length."""

    def __init__(self, stream: int) -> None:
        super().__init__()
        self._stream = stream

    def __missing__(self, length: int) -> bytes:
        head = frame_head(self._stream, max(0, length - TEXT_AT) + 1)
        if len(self) < _HEADS_KEPT:
            self[length] = head
        return head


#: A longer line comes in pieces of this length, as dockerd has it.
PIECE_BYTES = 16 << 10
_HEADS_KEPT = 10_000
_WHOLE = {b"stdout F": _FrameHeads(STDOUT), b"stderr F": _FrameHeads(STDERR)}
_PIECES = {b"stdout P": b"stdout F", b"stderr P": b"stderr F"}


class Renderer:
    """Turns blocks of the log into bytes for the client, block by block, remembering lines begun.

    Each line is a frame of its own, as dockerd has it: clients take a frame for a line. What has no end yet is kept
    back for it, and given by `finish`. A terminal's bytes, which are not framed, come as they are.

    `done` is set once a line beyond `until` has been seen: nothing further is wanted.
    """

    def __init__(self, query: LogQuery) -> None:
        self._query = query
        self._plain = not (query.timestamps or query.since or query.until or query.prefix is not None)
        self._wanted = {STDOUT: query.stdout, STDERR: query.stderr}
        #: Per kind of whole line: the line that its pieces so far would make, without its newline.
        self._held: dict[bytes, bytes] = {}
        self._overlong = False
        #: Per stream: None between lines; else whether the line that has begun is shown.
        self._begun: dict[int, bool | None] = {STDOUT: None, STDERR: None}
        self._bounds: dict[bytes, tuple[bytes, bytes]] = {}
        self.done = False

    def render(self, block: bytes) -> bytes:
        """`block` is whole lines, each with its newline, or one empty line where lines are missing."""
        if block == b"\n":
            return self._after_gap()
        lines = block.split(b"\n")
        lines.pop()
        kinds = [line[_KIND] for line in lines]
        found = set(kinds)
        if self._query.framed and (self._held or found & _PIECES.keys()):
            lines = self._joined(lines, kinds)
            found = {_PIECES.get(kind, kind) for kind in found}
            if self._overlong:
                found |= _PIECES.keys()
        return self._rendered(lines, found)

    def finish(self) -> bytes:
        """The beginnings of lines that have no end."""
        held, self._held = self._held, {}
        lines = [_as_piece(line) for line in held.values()]
        return b"" if self.done else self._rendered(lines, {line[_KIND] for line in lines})

    def _after_gap(self) -> bytes:
        """What had begun will not go on: it counts as whole."""
        held, self._held = self._held, {}
        shown = b"" if self.done else self._rendered(list(held.values()), held.keys())
        self._begun = dict.fromkeys(self._begun)
        return shown

    def _rendered(self, lines: list[bytes], kinds: Set[bytes]) -> bytes:
        if self._plain and kinds <= _WHOLE.keys() and self._begun[STDOUT] is None and self._begun[STDERR] is None:
            return self._whole(kinds, lines)
        return b"".join(
            self._run(kind, list(run)) for kind, run in groupby(lines, key=lambda line: line[_KIND]) if kind in _KINDS
        )

    def _joined(self, lines: list[bytes], kinds: list[bytes]) -> list[bytes]:
        """Whole lines instead of pieces, but for lines longer than PIECE_BYTES: those set `_overlong`."""
        held, position = self._held, 0
        joined: list[bytes] = []
        self._overlong = False
        pieces = [index for index, kind in enumerate(kinds) if kind in _PIECES]
        for index in (*pieces, len(lines)):
            for kind in tuple(held):  # one or two: the next line of each is its end
                try:
                    end = kinds.index(kind, position, index)
                except ValueError:
                    continue
                lines[end] = self._cut(held.pop(kind) + lines[end][TEXT_AT:], joined)
            joined += lines[position:index]
            position = index + 1
            if index < len(lines):
                line, whole = lines[index], _PIECES[kinds[index]]
                held[whole] = self._cut(held.get(whole, line[: _FLAG.start] + b"F ") + line[TEXT_AT:], joined)
        return joined

    def _cut(self, line: bytes, into: list[bytes]) -> bytes:
        """Full pieces of a line go `into` the list; what is left of it."""
        while len(line) - TEXT_AT > PIECE_BYTES:
            self._overlong = True
            into.append(_as_piece(line[: TEXT_AT + PIECE_BYTES]))
            line = line[:TEXT_AT] + line[TEXT_AT + PIECE_BYTES :]
        return line

    def _whole(self, kinds: Set[bytes], lines: Sequence[bytes]) -> bytes:
        """Whole lines of both streams, as they are: the common case, made fast."""
        if not all(self._wanted[_KINDS[kind]] for kind in kinds):
            lines = [line for line in lines if self._wanted[_KINDS[line[_KIND]]]]
        if not self._query.framed:
            parts = [line[TEXT_AT:] for line in lines]
        elif len(kinds) == 1:
            heads = _WHOLE[next(iter(kinds))]
            parts = [heads[len(line)] + line[TEXT_AT:] for line in lines]
        else:
            parts = [_WHOLE[line[_KIND]][len(line)] + line[TEXT_AT:] for line in lines]
        parts.append(b"")
        return b"\n".join(parts)

    def _run(self, kind: bytes, lines: list[bytes]) -> bytes:
        """Consecutive lines of one stream and flag."""
        stream = _KINDS[kind]
        ends = kind.endswith(b"F")
        if not self._wanted[stream]:
            return b""
        parts = []
        for line in lines:
            shown, head = self._begun[stream], b""
            if shown is None:
                shown = self._in_bounds(line)
                if self.done:
                    break
                head = self._head(line) if shown else b""
            if shown:
                text = head + line[TEXT_AT:] + (b"\n" if ends else b"")
                parts.append(frame(stream, text) if self._query.framed else text)
            self._begun[stream] = None if ends else shown
        return b"".join(parts)

    def _head(self, line: bytes) -> bytes:
        stamp = utc(line[:TIME_WIDTH]) + b" " if self._query.timestamps else b""
        return stamp if self._query.prefix is None else stamp + self._query.prefix.encode() + b" "

    def _in_bounds(self, line: bytes) -> bool:
        if not (self._query.since or self._query.until):
            return True
        # Times of one zone sort as text; the zone changes at most twice a year.
        zone = line[_CLOCK_WIDTH:TIME_WIDTH]
        if zone not in self._bounds:
            since, until = self._query.since, self._query.until
            self._bounds[zone] = (in_zone(since, zone) if since else b"", in_zone(until, zone) if until else b"~")
        since_text, until_text = self._bounds[zone]
        clock = line[:_CLOCK_WIDTH]
        if clock > until_text:
            self.done = True
        return since_text <= clock <= until_text


def _as_piece(line: bytes) -> bytes:
    return line[: _FLAG.start] + b"P" + line[_FLAG.stop :]


def utc(stamp: bytes) -> bytes:
    """conmon's time as Docker prints it: nine digits, Z."""
    if stamp.endswith(b"+00:00"):
        return stamp[:_CLOCK_WIDTH] + b"Z"
    try:
        return rfc3339(parse_rfc3339(stamp.decode())).encode()
    except (ValueError, UnicodeDecodeError):
        return stamp


def in_zone(at_ns: int, zone: bytes) -> bytes:
    """A time as the clock of that zone ("+02:00") shows it, without the zone."""
    try:
        sign = -1 if zone.startswith(b"-") else 1
        minutes = sign * (int(zone[1:3]) * 60 + int(zone[4:6]))
    except ValueError:
        minutes = 0
    return rfc3339(at_ns + minutes * 60 * 1_000_000_000).encode()[:_CLOCK_WIDTH]
