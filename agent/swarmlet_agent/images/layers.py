"""Unpacked layers on disk: `layers/<chain id hex>/{diff,recipe,kept}`, each made once and shared by images.

A folder under `layers/` is whole: it is unpacked under `tmp/` and renamed into place after the layers below it. Which
ones are needed is derived (images and containers name them), never counted; the rest is removed at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import secrets
import stat
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet.model.base import Record
from swarmlet_agent.images.manifests import chain_ids
from swarmlet_agent.images.unpack import Unpacked, remove_tree
from swarmlet_agent.images.workers import UnpackPool

log = get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
#: Fills a work folder; the second argument says whether to stop.
Fill = Callable[[Path, Callable[[], bool]], Unpacked | None]

#: For an unpacking process of an agent that was killed to be gone, too.
REMOVAL_ATTEMPTS, REMOVAL_PAUSE_S = 100, 0.02

_libc = ctypes.CDLL(None, use_errno=True)


class Layer(Record, frozen=True, kw_only=True):
    """One unpacked layer. parent: chain id below, "" for the lowest; size_bytes of its files; tar_bytes of its tar."""

    chain_id: str
    diff_id: str
    parent: str = ""
    size_bytes: int = 0
    tar_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer's tar, compressed or not: `length` bytes at `offset` of a file."""

    path: Path
    offset: int
    length: int


#: Told of a new layer before anyone else can come by, so that it can be pinned in time.
Keep = Callable[[Layer], None]


class Installation(Protocol):
    """Where the layers of an image being installed come from, and who hears how it goes (by layer number)."""

    def blob(self, number: int) -> AbstractAsyncContextManager[Blob]:
        """Fetch the layer; what it occupies may be removed when the context ends."""
        ...

    async def exists(self, number: int) -> None: ...

    async def extracting(self, number: int, consumed: int, total: int) -> None: ...

    async def complete(self, number: int) -> None: ...


class LayerStore:
    """All calls on the loop; files are touched in threads and worker processes."""

    def __init__(self, folder: Path, pool: UnpackPool) -> None:
        self._folder = folder / "layers"
        self._tmp = folder / "tmp"
        self._pool = pool
        self._layers: dict[str, Layer] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._pins: Counter[str] = Counter()
        self._unsynced: set[str] = set()
        self._writing_out: asyncio.Task[None] | None = None
        #: On disk, and a container's root is over it, but no record says what it is: a build was killed.
        self._strays: set[str] = set()

    @property
    def tmp(self) -> Path:
        """For files that need not outlive this process; emptied at start."""
        return self._tmp

    def recover(self, known: Iterable[Layer], needed: frozenset[str]) -> None:
        """At start, blocking: forget half-made things, keep what is `needed` and whole on disk."""
        _remove_for_good(self._tmp)
        self._tmp.mkdir(parents=True, mode=0o700)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        on_disk = {f"sha256:{entry.name}" for entry in self._folder.iterdir()}
        usable = on_disk & needed
        self._layers = {layer.chain_id: layer for layer in known if layer.chain_id in usable}
        self._strays = usable - self._layers.keys()
        for chain_id in on_disk - usable:
            self._trash(chain_id)

    def get(self, chain_id: str) -> Layer | None:
        return self._layers.get(chain_id)

    def all(self) -> list[Layer]:
        return list(self._layers.values())

    def path(self, chain_id: str) -> Path:
        """The layer's folder."""
        return self._folder / chain_id.removeprefix("sha256:")

    def diff(self, chain_id: str) -> Path:
        """The layer's files, as overlayfs takes them."""
        return self.path(chain_id) / "diff"

    @contextlib.contextmanager
    def pinned(self, chains: Sequence[str]) -> Iterator[None]:
        """These layers are not swept while the block runs, though no image names them yet."""
        self._pins.update(chains)
        try:
            yield
        finally:
            self._pins.subtract(chains)
            self._pins += Counter()

    async def install(self, diff_ids: Sequence[str], parts: Installation) -> list[Layer]:
        """All layers of an image, lowest first: those missing are fetched and unpacked side by side.

        Call with the chain pinned. The first error ends the others and is raised; layers already whole stay
        until `sweep`.
        """
        chains = chain_ids(diff_ids)
        done = [asyncio.Event() for _ in chains]

        async def one(number: int) -> None:
            chain_id, parent = chains[number], chains[number - 1] if number else ""
            async with self._lock(chain_id):
                if chain_id in self._layers:
                    await parts.exists(number)
                else:
                    below = done[number - 1].wait if number else None
                    await self._add(number, chain_id, diff_ids[number], parent, parts, below)
            done[number].set()

        async with self._pool.in_use(sum(chain_id not in self._layers for chain_id in chains)):
            await together(one(number) for number in range(len(chains)))
        return [self._layers[chain_id] for chain_id in chains]

    async def add_single(self, blob: Blob, label: str, keep: Keep) -> Layer:
        """A lowest layer whose digest is not known before (docker import). It stays until `sweep`."""
        async with self._pool.in_use():
            with self._work_folder() as work:
                unpacked = await self._pool.unpack(
                    blob.path, blob.offset, blob.length, work, label=label, expected=None, progress=_nothing
                )
                async with self._lock(unpacked.diff_id):
                    if unpacked.diff_id not in self._layers:
                        await self._commit(work, unpacked.diff_id, "", unpacked)
                    keep(self._layers[unpacked.diff_id])
                    return self._layers[unpacked.diff_id]

    async def add_folder(self, parent: str, fill: Fill, keep: Keep) -> Layer | None:
        """A layer over `parent` ("" = none) from files that are here already; None if there are none.

        fill, in a thread, puts `diff` and `recipe` into the folder it is given, and heeds its second argument, which
        says whether to stop. The layer stays until `sweep`. Call with the parent pinned.
        """
        with self._work_folder() as work:
            unpacked = await stoppable(lambda stopped: fill(work, stopped))
            if unpacked is None:
                return None
            chain_id = chain_ids([parent, unpacked.diff_id])[-1] if parent else unpacked.diff_id
            async with self._lock(chain_id):
                if chain_id not in self._layers:
                    await self._commit(work, chain_id, parent, unpacked)
                keep(self._layers[chain_id])
                return self._layers[chain_id]

    async def sync(self, chains: Iterable[str]) -> None:
        """The files of these layers are on disk when this returns: call before promising an image."""
        fresh = self._unsynced.intersection(chains)
        if fresh:
            await asyncio.to_thread(_sync_file_system, self._folder)
            self._unsynced -= fresh

    def _write_out(self) -> None:
        """Begin to bring what is unpacked to disk while other layers are still on their way: less is left for `sync`.

        Nobody waits for it. Should it fail, `sync` will, too, and say so.
        """
        if self._writing_out is None or self._writing_out.done():
            self._writing_out = asyncio.create_task(_written_out(self._folder), name="write layers out")

    async def sweep(self, needed: Callable[[], frozenset[str]], candidates: Iterable[str]) -> list[Layer]:
        """Remove those of the candidates nobody needs, the highest first. Returns what went."""
        gone: list[Layer] = []
        for chain_id in reversed(list(dict.fromkeys(candidates))):
            async with self._lock(chain_id):
                layer = self._layers.get(chain_id)
                if chain_id in needed() or self._pins[chain_id] or (layer is None and chain_id not in self._strays):
                    continue
                if layer is not None:
                    del self._layers[chain_id]
                    gone.append(layer)
                self._unsynced.discard(chain_id)
                self._strays.discard(chain_id)
                await _to_its_end(self._trash, chain_id)
        return gone

    async def _add(
        self, number: int, chain_id: str, diff_id: str, parent: str, parts: Installation,
        below: Callable[[], Awaitable[object]] | None,
    ) -> None:
        async with parts.blob(number) as blob:
            with self._work_folder() as work:

                async def progress(consumed: int) -> None:
                    await parts.extracting(number, consumed, blob.length)

                await progress(0)
                unpacked = await self._pool.unpack(
                    blob.path, blob.offset, blob.length, work, label=diff_id, expected=diff_id, progress=progress
                )
                self._write_out()
                if below is not None:
                    await below()
                await progress(blob.length)
                await self._commit(work, chain_id, parent, unpacked)
        await parts.complete(number)

    async def _commit(self, work: Path, chain_id: str, parent: str, unpacked: Unpacked) -> None:
        lower = self._lower(parent)
        if chain_id in self._strays:
            # Nobody has waited for its files to be on disk: what was made now takes its place.
            self._strays.discard(chain_id)
            await _to_its_end(self._trash, chain_id)
        try:
            await _to_its_end(_settle, work, self.path(chain_id), unpacked.implied, lower)
        finally:
            if not work.exists():  # it is in its place, even if this was cancelled: sweep finds it
                self._layers[chain_id] = Layer(
                    chain_id=chain_id, diff_id=unpacked.diff_id, parent=parent,
                    size_bytes=unpacked.size_bytes, tar_bytes=unpacked.tar_bytes,
                )
                self._unsynced.add(chain_id)

    def _lower(self, chain_id: str) -> list[Path]:
        """diff folders from this layer down."""
        folders = []
        while chain_id:
            folders.append(self.diff(chain_id))
            chain_id = self._layers[chain_id].parent
        return folders

    @contextlib.contextmanager
    def _work_folder(self) -> Iterator[Path]:
        work = self._tmp / f"layer-{secrets.token_hex(8)}"
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            if work.exists():  # not committed: failed or cancelled
                remove_tree(work)

    def _trash(self, chain_id: str) -> None:
        """Out of the way first: a removal that is interrupted leaves nothing that looks whole."""
        doomed = self._tmp / f"gone-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(chain_id), doomed)
            remove_tree(doomed)

    def _lock(self, chain_id: str) -> asyncio.Lock:
        return self._locks.setdefault(chain_id, asyncio.Lock())


async def stoppable(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run it in a thread; being cancelled tells it to stop, and waits until it has."""
    stopping = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stopping.is_set))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopping.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # it was told to stop; what it says then is of no interest
        raise


async def _to_its_end(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """In a thread; being cancelled waits for it, so that nobody else meets its files half-way."""
    return await stoppable(lambda _stopped: work(*args, **options))


async def together(work: Iterable[Awaitable[None]]) -> None:
    """Run side by side; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(_await(one))
    except BaseExceptionGroup as errors:  # what was cancelled is in it, too
        raise _first(errors) from None


async def _await(work: Awaitable[None]) -> None:
    await work


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _nothing(_consumed: int) -> None:
    return None


def _settle(work: Path, final: Path, implied: Sequence[bytes], lower: Sequence[Path]) -> None:
    """Give folders without an entry of their own the attributes they have below, then move into place.

    Without this a layer holding only `tmp/x` would turn a 1777 /tmp of the layers below into 0755.
    """
    for path in implied:
        for folder in lower:
            found = _folder_below(os.fsencode(folder), path)
            if found is not None:
                place = os.fsencode(work / "diff") + b"/" + path
                os.chown(place, found.st_uid, found.st_gid)
                os.chmod(place, stat.S_IMODE(found.st_mode))
                break
    os.rename(work, final)


def _folder_below(root: bytes, path: bytes) -> os.stat_result | None:
    """lstat of a folder reached through folders only; None if it is not there."""
    found = None
    for part in path.split(b"/"):
        root = root + b"/" + part
        try:
            found = os.lstat(root)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode):
            return None
    return found


async def _written_out(folder: Path) -> None:
    with contextlib.suppress(Internal, OSError):
        await asyncio.to_thread(_sync_file_system, folder)


def _sync_file_system(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise Internal(f"the image's layers cannot be written to disk: {os.strerror(code)}")
    finally:
        os.close(handle)


def _remove_for_good(folder: Path) -> None:
    """Whoever unpacked for an agent that was killed is killed with it, but ends its last system call first."""
    for _ in range(REMOVAL_ATTEMPTS - 1):
        try:
            remove_tree(folder)
        except OSError as err:
            if err.errno != errno.ENOTEMPTY:
                raise
            time.sleep(REMOVAL_PAUSE_S)
        else:
            return
    remove_tree(folder)
