"""The files of one container's log: the current one and those rotated away. Blocking calls, for threads.

Rotation renames `x.log` to `x.log.1` (and .1 to .2 …); conmon then makes a new `x.log`. Open files keep
their content through renames, so a reader holds descriptors and follows inodes, never names. Files put aside may
have been packed since (`x.log.1.gz`): those are known by their first line's time, which no other file has.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarmlet_agent.logs.k8s_file import TIME_WIDTH, ends_line, utc

#: Read at once: large enough to make calls cheap, small enough to be nothing in memory.
BLOCK_BYTES = 256 << 10
#: More than conmon writes at once.
_LONGEST_LINE = 64 << 10

PACKED = ".gz"
#: A block that stands for lines that are missing.
GAP = b"\n"
#: A follower that is slower than its container holds no more files than this, and their space on the disk.
_MOST_OPEN = 8


def numbered(path: Path, number: int, suffix: str = "") -> Path:
    """The file put aside so many times; 0 is the current one."""
    return path.with_name(f"{path.name}.{number}{suffix}") if number else path


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def exclusive(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While names of log files in the folder change: nobody lists and opens them meanwhile. For renames only: keep it
    short. FileNotFoundError."""
    return _locked(folder, fcntl.LOCK_EX)


def first_time(path: Path) -> bytes:
    """The UTC time of a file's first line, which sorts as text; b"" if it has none."""
    try:
        with gzip.open(path) if path.suffix == PACKED else path.open("rb") as file:
            return utc(file.read(TIME_WIDTH))
    except FileNotFoundError:
        return b""


def _last_time(descriptor: int) -> bytes:
    """The UTC time of an open file's last line."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, _LONGEST_LINE, max(0, size - _LONGEST_LINE)).removesuffix(b"\n")
    return utc(data[data.rfind(b"\n") + 1 :][:TIME_WIDTH])


def log_files(path: Path) -> list[Path]:
    """The log's files that exist, oldest first."""
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)(\.gz)?")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    numbered: dict[int, str] = {}
    for name in names:
        match = pattern.fullmatch(name)
        # Packed and not: packing was cut before the plain one went. The packed one is whole once it has its name.
        if match is not None and (match[2] or int(match[1]) not in numbered):
            numbered[int(match[1])] = name
    rotated = [path.with_name(numbered[number]) for number in sorted(numbered, reverse=True)]
    return [*rotated, path] if path.name in names else rotated


def pack(path: Path) -> None:
    """Make a file that was put aside `path`.gz; whole or not at all."""
    packed, partial = path.with_name(path.name + PACKED), path.with_name(path.name + ".packing")
    with path.open("rb") as source, gzip.open(partial, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, BLOCK_BYTES)
    os.chmod(partial, path.stat().st_mode & 0o777)
    os.replace(partial, packed)
    path.unlink()


@dataclass(frozen=True, slots=True)
class LogMark:
    """A place in a log that outlives rotation: the time its file begins with, and an offset. b"": the beginning."""

    head: bytes = b""
    offset: int = 0


class LogFiles:
    """Open files of a log, oldest first, read through from a start position to the end of the last.

    `open()` first; `read()` gives blocks of whole lines, b"" at the end of what is there now; `advance()` then
    looks for files that have appeared since. The lock is for a reader cancelled while a thread still reads for
    it: `close()` then waits for that read, and whatever comes later finds nothing open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[int] = []
        self._following = False
        #: Descriptors before whose content something is missing.
        self._gaps: set[int] = set()
        self._position = 0
        self._rest = b""
        self._closed = False
        self._lock = threading.Lock()

    def open(self, tail: int | None = None, *, after: LogMark | None = None) -> None:
        """Start at the beginning, at the last `tail` lines, or behind a mark. No log yet is an empty one.

        A mark whose file is gone stands before all that is left.
        """
        with self._lock:
            self._add_all()
            if tail is not None:
                self._skip_to_tail(tail)
            if after is not None and after.head:
                for index in range(len(self._open) - 1, -1, -1):
                    if os.pread(self._open[index], TIME_WIDTH, 0) == after.head:
                        self._start_at(index, after.offset)
                        return

    def mark(self) -> LogMark | None:
        """Behind the last block that `read` gave; None if nothing is open, or nothing has been written yet."""
        with self._lock:
            head = os.pread(self._open[0], TIME_WIDTH, 0) if self._open else b""
            return LogMark(head, self._position - len(self._rest)) if len(head) == TIME_WIDTH else None

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
        """The next block of whole lines; b"" when all that is there has been read; GAP where lines are missing, which
        were rotated out of existence before they could be read."""
        with self._lock:
            if self._following and 0 < len(self._open) < _MOST_OPEN:
                self._open_newer()
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
            if self._open[0] in self._gaps:
                self._gaps.discard(self._open[0])
                return GAP
        return b""

    def advance(self) -> bool:
        """Open what rotation has put behind the file being read; True if there is something new to read."""
        with self._lock:
            self._following = True
            if not self._open:
                self._add_all()
                return bool(self._open)
            if not self._open_newer() and os.fstat(self._open[-1]).st_size < self._position:
                self._position, self._rest = 0, b""  # someone has emptied it
            return len(self._open) > 1 or os.fstat(self._open[0]).st_size > self._position

    def _open_newer(self) -> bool:
        """Open what has appeared behind the newest open file."""
        current = os.fstat(self._open[-1])
        try:
            newest = os.stat(self._path)
        except FileNotFoundError:
            return False
        # conmon has opened the new file once it is there, and writes no more to the old one.
        if (newest.st_ino, newest.st_dev) == (current.st_ino, current.st_dev):
            return False
        opened = len(self._open)
        self._add_all(behind=self._open[-1])
        return len(self._open) > opened

    def _add_all(self, behind: int = -1) -> None:
        """Open all files, or those that are newer than an open one."""
        with contextlib.suppress(FileNotFoundError), _locked(self._path.parent, fcntl.LOCK_SH):
            files, missing = log_files(self._path), False
            if behind >= 0:
                inode, head = os.fstat(behind).st_ino, os.pread(behind, TIME_WIDTH, 0)
                ours = [index for index, each in enumerate(files) if _is(each, inode, head)]
                if ours:
                    files = files[ours[-1] + 1 :]
                else:  # rotated out of existence, or cut into smaller ones
                    last = _last_time(behind)
                    newer = [each for each in files if first_time(each) > last]
                    files, missing = newer, len(newer) == len(files)
            opened = len(self._open)
            for each in files:
                self._add(each)
            if missing:
                self._gaps.update(self._open[opened : opened + 1])

    def _add(self, path: Path) -> None:
        if self._closed:
            return
        for name in (path, path.with_name(path.name + PACKED)):
            try:
                packed = name.suffix == PACKED
                self._open.append(_unpacked(name) if packed else os.open(name, os.O_RDONLY | os.O_CLOEXEC))
                return
            except FileNotFoundError:
                continue  # rotated away between the listing and now: another name has it, or max-file removed it


def _unpacked(path: Path) -> int:
    """A descriptor of the plain content, which has no name."""
    with gzip.open(path) as source, tempfile.TemporaryFile(dir=path.parent) as target:
        shutil.copyfileobj(source, target, BLOCK_BYTES)
        target.flush()
        return os.dup(target.fileno())


def _is(path: Path, inode: int, head: bytes) -> bool:
    """True for the file of that number; packed, for one that begins like it."""
    try:
        if path.suffix != PACKED:
            return os.stat(path).st_ino == inode
        with gzip.open(path) as file:
            return file.read(TIME_WIDTH) == head
    except FileNotFoundError:
        return False


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
