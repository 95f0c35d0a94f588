"""Keeping one log's files within their number and size. Blocking calls, for threads.

A full file is put aside by renaming, and is complete once conmon has made the next. Until somebody looked it may have
grown far beyond its limit: then it is cut into files of the right size, the newest of which are kept. A crash
between any two steps leaves all lines, and what the next call recognises.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from swarmlet_agent.logs.files import BLOCK_BYTES, PACKED, exclusive, first_time, log_files, numbered, pack

#: A file is cut if it is larger than its limit by more than this share: less is a line or two.
_TOLERANCE = 0.25
_PART = ".cut"


def put_aside(path: Path, files: int) -> None:
    """x.log.1 becomes x.log.2 …, x.log becomes x.log.1: `files` are left with the new one. Of one, the old goes.

    FileNotFoundError without x.log.
    """
    with exclusive(path.parent):
        path.stat()  # it may have been put aside already
        _shift(path, files, first=1, by=1)
        if files > 1:
            os.replace(path, numbered(path, 1))
        else:
            path.unlink()


def cut(path: Path, max_bytes: int, files: int, *, ended: bool) -> None:
    """Cut the newest file that nobody writes to any more, if it has grown too large: x.log once its container has
    ended, else x.log.1 (which must exist no longer as x.log: conmon has gone on with the next)."""
    for leftover in path.parent.glob(f"{path.name}*{_PART}*"):
        leftover.unlink()
    first = 0 if ended else 1
    source = numbered(path, first)
    try:
        size = source.stat().st_size
    except FileNotFoundError:
        return
    if size <= max_bytes * (1 + _TOLERANCE):
        return
    made = _copies(source, size, max_bytes, files - first)
    if not made:
        return
    with exclusive(path.parent):
        # What an earlier cut, which was cut itself, has made of the same file.
        begins = first_time(source)
        for number in range(first + 1, files):
            if (again := numbered(path, number)).exists() and first_time(again) >= begins:
                again.unlink()
        _shift(path, files, first=first + 1, by=len(made) - 1)
        for number in range(len(made) - 1, -1, -1):
            os.replace(made[number], numbered(path, first + number))


def pack_rotated(path: Path) -> bool:
    """Pack the files put aside. False if that has to wait: without the new file conmon still writes to the last one, or
    will when the container starts again."""
    if not path.exists():
        return False
    for each in log_files(path)[:-1]:
        plain = each.with_name(each.name.removesuffix(PACKED))
        if each.suffix == PACKED:
            plain.unlink(missing_ok=True)
        else:
            pack(plain)
    return True


def _shift(path: Path, files: int, *, first: int, by: int) -> None:
    """Every file from number `first` on moves `by` numbers up; those beyond the last go."""
    for number in range(files - 1, first - 1, -1) if by else ():
        for suffix in ("", PACKED):
            older = numbered(path, number, suffix)
            if not older.exists():
                continue
            if number + by >= files:
                older.unlink()
            else:
                os.replace(older, numbered(path, number + by, suffix))


def _copies(source: Path, size: int, max_bytes: int, most: int) -> list[Path]:
    """The end of a file as files of at most max_bytes, of whole lines, the newest first; none if it is one line."""
    made: list[Path] = []
    with source.open("rb") as file:
        end = size
        while end > 0 and len(made) < most:
            begin = _line_start(file.fileno(), end - max_bytes, end)
            if begin == 0 and end == size:
                return []
            part = source.with_name(f"{source.name}{_PART}{len(made)}")
            file.seek(begin)
            with part.open("wb") as target:
                _copy(file.fileno(), target.fileno(), begin, end)
            shutil.copymode(source, part)
            made.append(part)
            end = begin
    return made


def _copy(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        data = os.pread(source, min(BLOCK_BYTES, end - begin), begin)
        if not data:
            return
        begin += os.write(target, data)


def _line_start(descriptor: int, position: int, end: int) -> int:
    """The first beginning of a line at or behind `position`, before `end`; 0 if there is none but the first."""
    if position <= 0:
        return 0
    position -= 1
    while position < end:
        data = os.pread(descriptor, min(BLOCK_BYTES, end - position), position)
        found = data.find(b"\n")
        if found >= 0 and position + found + 1 < end:
            return position + found + 1
        if not data or found >= 0:
            return 0
        position += len(data)
    return 0
