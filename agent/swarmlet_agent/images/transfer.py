"""Fetching one blob: streamed to a file, hashed on the way, resumed after a broken connection or an agent's death."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.images.layers import stoppable
from swarmlet_agent.images.manifests import Descriptor
from swarmlet_agent.images.patience import MAX_ATTEMPTS, pause
from swarmlet_agent.images.registry import RegistryUnreachable

#: Connections that may break though each brings something: a server that drips must not keep a pull for ever.
_MAX_BREAKS = 100
#: Bytes gathered before a thread hashes and writes them.
_GATHER = 1 << 20


class Body(Protocol):
    """The part of an HTTP response that is used."""

    @property
    def content(self) -> Content: ...


class Content(Protocol):
    def iter_any(self) -> AsyncIterator[bytes]: ...


class BlobSource(Protocol):
    def blob(self, digest: str, offset: int) -> AbstractAsyncContextManager[tuple[Body, int]]: ...


async def fetch_blob(
    source: BlobSource, blob: Descriptor, target: Path, *,
    progress: Callable[[int], Awaitable[None]], retrying: Callable[[float], Awaitable[None]],
) -> None:
    """The blob's bytes into the file `target`, exactly those its digest names; what is there already is not fetched.

    progress is told the bytes so far, retrying the seconds until the next attempt. RegistryUnreachable once attempts
    are used up; InvalidArgument if the content is not what the manifest promised; Internal for the disk's errors.
    """
    # Not in a thread: what one had opened while this was cancelled, nobody would close.
    download = _Download(blob, _open(target))
    try:
        await stoppable(download.take_up)
        failures = breaks = 0
        while True:
            before = download.size
            try:
                await download.attempt(source, progress)
            except RegistryUnreachable as err:
                failures = 1 if download.size > before else failures + 1
                breaks += 1
                if failures >= MAX_ATTEMPTS or breaks >= _MAX_BREAKS:
                    raise
                delay = pause(failures, err)
            else:
                if await download.verify():
                    return
                continue
            await retrying(delay)
            await asyncio.sleep(delay)
    finally:
        # Nor closed by one: a thread that has not begun when this is cancelled never does. All is written by now.
        download.file.close()


def _open(target: Path) -> BinaryIO:
    return open(os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b")


class _Download:
    def __init__(self, blob: Descriptor, file: BinaryIO) -> None:
        self._blob = blob
        self.file = file
        self.size = 0
        self._hash = hashlib.sha256()
        self._resumed = False

    def take_up(self, stopped: Callable[[], bool]) -> None:
        """What an earlier pull has left, hashed. Blocking."""
        while not stopped() and (piece := self.file.read(_GATHER)):
            self._hash.update(piece)
            self.size += len(piece)
        self._resumed = self.size > 0
        if self.size > self._blob.size:
            self._forget()

    async def attempt(self, source: BlobSource, progress: Callable[[int], Awaitable[None]]) -> None:
        """From where the last attempt ended. Returns once all bytes are there."""
        if self.size == self._blob.size:
            return
        async with source.blob(self._blob.digest, self.size) as (answer, start):
            if start != self.size:
                await self._start_over()
            elif start:
                self._resumed = True
            waiting: list[bytes] = []
            gathered = 0
            try:
                async for piece in answer.content.iter_any():
                    waiting.append(piece)
                    gathered += len(piece)
                    if self.size + gathered > self._blob.size:
                        raise InvalidArgument(
                            f"blob {self._blob.digest} is larger than the {self._blob.size} bytes of its manifest"
                        )
                    if gathered >= _GATHER:
                        await self._write(waiting)
                        waiting, gathered = [], 0
                        await progress(self.size)
            finally:
                if waiting and self.size + gathered <= self._blob.size:
                    await self._write(waiting)  # what arrived before a break need not come again
        await progress(self.size)
        if self.size < self._blob.size:
            raise RegistryUnreachable(f"blob {self._blob.digest}: unexpected EOF")

    async def verify(self) -> bool:
        """False if it must be fetched anew: a wrong digest after a resumed transfer may be a mixture's."""
        if f"sha256:{self._hash.hexdigest()}" == self._blob.digest:
            return True
        if self._resumed:
            await self._start_over()
            return False
        raise InvalidArgument(f"filesystem layer verification failed for digest {self._blob.digest}")

    async def _start_over(self) -> None:
        await asyncio.to_thread(self._forget)

    def _forget(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self._hash, self._resumed = 0, hashlib.sha256(), False

    async def _write(self, pieces: list[bytes]) -> None:
        try:
            await asyncio.to_thread(self._hash_and_write, pieces)
        except OSError as err:
            raise Internal(f"blob {self._blob.digest} cannot be stored: {err.strerror}") from err
        self.size += sum(map(len, pieces))

    def _hash_and_write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._hash.update(piece)
            self.file.write(piece)
        self.file.flush()
