"""One task's log, as its node tells it, told on where it was interrupted.

A node's answer may break off: its agent starts anew, the network fails, the node is lost for a while. It may also end
too early, when it was asked before the container ran. Lines are therefore asked for with their times: the next question
begins a little before the last line that came, and what came already is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import aiohttp

from swarmlet.engine_api.streams import HEAD_BYTES, STDOUT, read_head
from swarmlet.errors import SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import NS, parse_rfc3339
from swarmlet_manager.fleet.client import Fleet, NodeError, decoded
from swarmlet_manager.state import State

log = get_logger(__name__)

#: Between two questions for a log that is followed.
AGAIN_S = 0.5
#: A later question begins so long before the last line: another stream's line may have begun earlier and ended later.
OVERLAP_NS = 60 * NS
#: The longest piece of a terminal's line, as dockerd has it.
PIECE_BYTES = 16 << 10
#: No node tells more than this in one frame.
MOST_BYTES = 1 << 20


class Incomplete(SwarmletError):
    """Lines of a task cannot be had; the text says of which and why."""


@dataclass(frozen=True, slots=True)
class LogWish:
    """What of a log is wanted. since: ns, 0 = no bound. tail: the last so many lines of those there are, None = all.

    timestamps: pieces have them in any case when followed, else only with this: they cost the node time.
    """

    stdout: bool
    stderr: bool
    follow: bool = False
    timestamps: bool = False
    since: int = 0
    tail: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A line, or a part of a very long one. stamp: the line's time, RFC 3339 in UTC, or b""; begins: the line
    begins here."""

    stream: int
    stamp: bytes
    begins: bool
    text: bytes


class Place:
    """How far the lines of one task have come."""

    def __init__(self) -> None:
        #: Per stream: the time of the last line, and how many pieces of that time there were.
        self._last: dict[int, tuple[bytes, int]] = {}
        self._before: dict[int, tuple[bytes, int]] = {}
        self._again: Counter[int] = Counter()

    def begin(self) -> None:
        """The lines are asked for once more."""
        self._before = dict(self._last)
        self._again.clear()

    def takes(self, piece: Piece) -> bool:
        """False for one that came with an earlier answer."""
        stamp, count = self._before.get(piece.stream, (b"", 0))
        if piece.stamp < stamp:
            return False
        if piece.stamp == stamp:
            self._again[piece.stream] += 1
            if self._again[piece.stream] <= count:
                return False
        last, given = self._last.get(piece.stream, (b"", 0))
        self._last[piece.stream] = (piece.stamp, given + 1 if piece.stamp == last else 1)
        return True

    def since(self) -> int | None:
        """Where the next answer has to begin, in ns; None if nothing has come."""
        if not self._last:
            return None
        return max(parse_rfc3339(stamp.decode()) for stamp, _ in self._last.values()) - OVERLAP_NS


class TaskLog:
    """One reading of one task's log."""

    def __init__(
        self, state: State, fleet: Fleet, task: Task, wish: LogWish, *, now: Callable[[], int] = time.time_ns
    ) -> None:  # fmt: skip
        self._state = state
        self._fleet = fleet
        self._task = task
        self._wish = wish
        self._stamped = wish.follow or wish.timestamps
        self._now = now
        self._place = Place()
        #: When the node first took the question, ns; 0 if it has not.
        self._taken_at = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """In the order in which the node tells them. Followed, until the task has ended and all it said was told.

        Incomplete if something is missing that will not come any more.
        """
        interrupted, told = "", False
        while True:
            self._place.begin()
            # Looked at before the lines: those of a task that had ended are all there.
            ended = self._ended()
            try:
                async with aclosing(self._ask()) as found:
                    async for piece in found:
                        if self._place.takes(piece):
                            told = False
                            yield piece
            except NodeError as err:
                if err.status == 404 and not interrupted:  # went with its container
                    if not told:
                        log.info("no log of a task", task_id=self._task.id, reason=str(err))
                    return
                raise Incomplete(f"task {self._task.id}: {interrupted or err}") from err
            except (SwarmletError, aiohttp.ClientError, OSError, ValueError) as err:
                if told and self._ended():
                    return
                if not self._wish.follow or self._task.id not in self._state.tasks:
                    raise Incomplete(f"task {self._task.id}: {err}") from err
                if not interrupted:
                    log.info("log of a task interrupted", task_id=self._task.id, reason=str(err))
                interrupted = str(err)
            else:
                if not self._wish.follow or ended:
                    return
                interrupted, told = "", True
            await asyncio.sleep(AGAIN_S)

    def _ended(self) -> bool:
        task = self._state.tasks.get(self._task.id)
        return task is None or task.status.state >= TaskState.COMPLETE

    async def _ask(self) -> AsyncGenerator[Piece, None]:
        """One answer of the node. NodeError if it refuses; Unavailable, aiohttp.ClientError; ValueError if what it says
        is no log."""
        task = self._task
        container = task.spec.container_spec
        path = f"/containers/{quote(task.status.container_id)}/logs?{urlencode(self._query())}"
        async with self._fleet.request(self._fleet.node(task.node_id), "GET", path) as answer:
            if answer.status == 503:
                raise Unavailable((await answer.read()).decode(errors="replace"))
            if answer.status >= 400:
                decoded(answer.status, await answer.read())
            self._taken_at = self._taken_at or self._now()
            tty = container is not None and container.tty
            #: Of lines that have begun and not ended.
            stamps: dict[int, bytes] = {}
            async for stream, text in (_lines if tty else _frames)(answer.content):
                if begins := stream not in stamps:
                    stamps[stream], _, text = text.partition(b" ") if self._stamped else (b"", b"", text)
                yield Piece(stream, stamps[stream], begins, text)
                if text.endswith(b"\n"):
                    del stamps[stream]

    def _query(self) -> dict[str, str]:
        wish, since = self._wish, self._place.since()
        if since is None and wish.tail is not None:
            # Before the node took the question, none of the wanted lines has been passed over.
            since = self._taken_at or None
        asked = {
            "stdout": wish.stdout, "stderr": wish.stderr, "follow": wish.follow, "timestamps": self._stamped,
        }  # fmt: skip
        query = {name: "1" for name, wanted in asked.items() if wanted}
        if since is None and wish.tail is not None:
            query["tail"] = str(wish.tail)
        if begin := max(wish.since, since or 0):
            query["since"] = "{}.{:09d}".format(*divmod(begin, NS))
        return query


async def _frames(content: aiohttp.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """(stream, text) frame by frame. ValueError for what is none, and for one that is cut."""
    while True:
        try:
            head = await content.readexactly(HEAD_BYTES)
        except asyncio.IncompleteReadError as err:
            if not err.partial:
                return
            raise ValueError("the node's answer ends within a line") from err
        stream, size = read_head(head)
        if size > MOST_BYTES:
            raise ValueError(f"the node's answer has a line of {size} bytes")
        try:
            yield stream, await content.readexactly(size)
        except asyncio.IncompleteReadError as err:
            raise ValueError("the node's answer ends within a line") from err


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """A terminal's lines, long ones in pieces."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            for begin in range(0, len(line) + 1, PIECE_BYTES):
                yield STDOUT, (line + b"\n")[begin : begin + PIECE_BYTES]
        while len(rest) > PIECE_BYTES:
            yield STDOUT, rest[:PIECE_BYTES]
            rest = rest[PIECE_BYTES:]
    if rest:
        yield STDOUT, rest
