"""Tells when files appear in a few folders: containers' exits and execs' pid files. One inotify descriptor for all."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

from swarmlet_agent.runtime import linux

_EVENT = struct.Struct("iIII")
_IN_Q_OVERFLOW = 0x4000


class FolderWatch:
    """Futures by (folder, file name). Whoever waits looks for the file after asking and before waiting."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._folders: dict[int, Path] = {}
        self._waiting: dict[tuple[Path, str], set[asyncio.Future[None]]] = {}

    def open(self, *folders: Path) -> None:
        """Begin to watch. OSError."""
        self._descriptor = linux.inotify_open()
        for folder in folders:
            mask = linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO
            self._folders[linux.inotify_watch(self._descriptor, str(folder), mask)] = folder
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def expect(self, path: Path) -> asyncio.Future[None]:
        """Done once a file of that name has been written or moved there. Cancel it when it is not needed."""
        key = (path.parent, path.name)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def _forget(self, key: tuple[Path, str], future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[key]

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 16384)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            start = offset + _EVENT.size
            name = os.fsdecode(data[start : start + length].rstrip(b"\0"))
            offset = start + length
            if mask & _IN_Q_OVERFLOW:  # events were lost: everyone looks again
                self._wake_all()
            elif (folder := self._folders.get(number)) is not None:
                self._wake((folder, name))

    def _wake_all(self) -> None:
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: tuple[Path, str]) -> None:
        for future in list(self._waiting.get(key, ())):
            if not future.done():
                future.set_result(None)
