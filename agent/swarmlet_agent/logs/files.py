"""The files of one container's log: the current one and those rotated away. Blocking calls, for threads.

Rotation renames `x.log` to `x.log.1` (and .1 to .2 …); conmon then makes a new `x.log`. Open files keep
their content through renames, so a reader holds descriptors and follows inodes, never names.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from swarmlet_agent.logs.k8s_file import ends_line

#: Read at once: large enough to make calls cheap, small enough to be nothing in memory.
BLOCK_BYTES = 256 << 10


def log_files(path: Path) -> list[Path]:
    """The log's files that exist, oldest first."""
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    numbered = [(int(match[1]), name) for name in names if (match := pattern.fullmatch(name)) is not None]
    rotated = [path.with_name(name) for _, name in sorted(numbered, reverse=True)]
    return [*rotated, path] if path.name in names else rotated


class LogFiles:
    """Open files of a log, oldest first, read through from a start position to the end of the last.

    `open()` first; `read()` gives blocks of whole lines, b"" at the end of what is there now; `advance()` then
    looks for files that have appeared since. The lock is for a reader cancelled while a thread still reads for
    it: `close()` then waits for that read, and whatever comes later finds nothing open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[int] = []
        self._position = 0
        self._rest = b""
        self._closed = False
        self._lock = threading.Lock()

    def open(self, tail: int | None = None) -> None:
        """Start at the beginning, or at the last `tail` lines. No log yet is an empty one."""
        with self._lock:
            for each in log_files(self._path):
                self._add(each)
            if tail is not None:
                self._skip_to_tail(tail)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._open:
                os.close(self._open.pop())

    def _skip_to_tail(self, lines: int) -> None:
        """Start at the last n lines. A line in the making counts as one."""
        # The wanted lines begin behind the end of the line before them; 0 lines: behind the last end.
        ends_to_pass, newest = lines + 1, True
        for index in range(len(self._open) - 1, -1, -1):
            for end, ends in _pieces_backwards(self._open[index]):
                if newest and not ends and lines:
                    ends_to_pass -= 1
                newest = False
                ends_to_pass -= ends
                if not ends_to_pass:
                    self._start_at(index, end)
                    return

    def _start_at(self, index: int, position: int) -> None:
        for descriptor in self._open[:index]:
            os.close(descriptor)
        del self._open[:index]
        self._position = position

    def read(self) -> bytes:
        """The next block of whole lines; b"" when all that is there has been read."""
        with self._lock:
            return self._read()

    def _read(self) -> bytes:
        while self._open:
            data = os.pread(self._open[0], BLOCK_BYTES, self._position)
            if data:
                self._position += len(data)
                end = data.rfind(b"\n") + 1
                if not end:
                    self._rest += data
                    continue
                block = self._rest + data[:end] if self._rest else data[:end]
                self._rest = data[end:]
                return block
            if len(self._open) == 1:
                return b""
            os.close(self._open.pop(0))
            self._position, self._rest = 0, b""
        return b""

    def advance(self) -> bool:
        """Open what rotation has put behind the file being read; True if there is something new to read."""
        if not self._open:
            for each in log_files(self._path):
                self._add(each)
            return bool(self._open)
        current = os.fstat(self._open[-1])
        try:
            newest = os.stat(self._path)
        except FileNotFoundError:
            newest = None
        # conmon has opened the new file once it is there, and writes no more to the old one.
        if newest is None or (newest.st_ino, newest.st_dev) == (current.st_ino, current.st_dev):
            if current.st_size < self._position:  # someone has emptied it
                self._position, self._rest = 0, b""
            return current.st_size > self._position
        files = log_files(self._path)
        inodes = [_inode(each) for each in files]
        # Rotated more than once since: go on with the next newer one; with the oldest left, if ours is gone.
        behind = inodes.index(current.st_ino) + 1 if current.st_ino in inodes else 0
        for each in files[behind:]:
            self._add(each)
        return True

    def _add(self, path: Path) -> None:
        if self._closed:
            return
        try:
            self._open.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return  # rotated away between the listing and now: another name has it, or max-file removed it


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return -1


def _pieces_backwards(descriptor: int) -> Iterator[tuple[int, bool]]:
    """(offset behind the piece, whether it ends a line) of every whole piece, last first."""
    position, carry = os.fstat(descriptor).st_size, b""
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        data = os.pread(descriptor, position - start, start) + carry
        pieces = data.split(b"\n")
        end = start + len(data) - len(pieces.pop())
        # The first piece of a block has its beginning in the block before.
        incomplete = min(len(pieces), 1 if start else 0)
        for piece in reversed(pieces[incomplete:]):
            yield end, ends_line(piece)
            end -= len(piece) + 1
        carry = pieces[0] + b"\n" if pieces and incomplete else b"" if pieces else data
        position = start
