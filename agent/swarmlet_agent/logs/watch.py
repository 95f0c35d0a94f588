"""Telling followers of logs that something was written: one inotify descriptor for all of them.

A folder is watched rather than a file, so a rotation is seen as well. A notice says only *look again*;
followers also look by themselves now and then, so a lost one (queue overflow, odd filesystem) delays and
never loses a line.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from swarmlet.log import get_logger

log = get_logger(__name__)

_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_IGNORED = 0x2, 0x40, 0x80, 0x100, 0x8000
_INTEREST = _IN_MODIFY | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE
_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Who waits for changes in which folder. Belongs to one event loop; the descriptor opens with the first watch."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._waiting: dict[int, set[asyncio.Event]] = {}

    @asynccontextmanager
    async def changes(self, folder: Path) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever a file in the folder changes; the waiter clears it before it looks."""
        event = asyncio.Event()
        watch = self._add(folder)
        if watch >= 0:
            self._waiting.setdefault(watch, set()).add(event)
        try:
            yield event
        finally:
            if watch >= 0:
                self._remove(watch, event)

    def close(self) -> None:
        """Stop watching; waiters fall back to looking by themselves."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        self._waiting.clear()

    def _add(self, folder: Path) -> int:
        """The watch's number, -1 if the kernel refuses another one."""
        if self._descriptor < 0:
            self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._descriptor < 0:
                log.warning("no inotify: logs are followed by looking", error=os.strerror(ctypes.get_errno()))
                return -1
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        watch: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _INTEREST)
        if watch < 0:
            log.warning("folder cannot be watched", folder=folder, error=os.strerror(ctypes.get_errno()))
        return watch

    def _remove(self, watch: int, event: asyncio.Event) -> None:
        waiting = self._waiting.get(watch)
        if waiting is None:
            return
        waiting.discard(event)
        if not waiting:
            del self._waiting[watch]
            _libc.inotify_rm_watch(self._descriptor, watch)
        if not self._waiting:
            self.close()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 64 << 10)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            if watch < 0:  # the queue overflowed: everyone looks
                for events in self._waiting.values():
                    _set(events)
                continue
            _set(self._waiting.get(watch, ()))
            if mask & _IN_IGNORED:  # the folder is gone
                self._waiting.pop(watch, None)


def _set(events: set[asyncio.Event] | tuple[()]) -> None:
    for event in events:
        event.set()
