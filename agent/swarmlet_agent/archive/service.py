"""Containers' files for the API: copy in and out, differences, export, commit. One object, on the loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound
from swarmlet.model.container import ContainerConfig
from swarmlet_agent.archive import extract, looking, pack, paths
from swarmlet_agent.archive.bridge import Upload, finished, from_thread
from swarmlet_agent.archive.changes import Change, find_changes, places_made
from swarmlet_agent.archive.commit import committed_config
from swarmlet_agent.archive.pack import TarStream
from swarmlet_agent.archive.paths import PathStat
from swarmlet_agent.archive.view import Bind, View, open_stacked, open_view
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.decide.users import resolve_user
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.inside import read_accounts
from swarmlet_agent.engine.roots import LentRoot
from swarmlet_agent.images.committing import Commit, Spooled
from swarmlet_agent.images.compression import decompressed
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.types import Image
from swarmlet_agent.runtime.linux import act_as
from swarmlet_agent.threads import own_thread

#: Mounts of a running container that are never seen from outside.
_UNSEEN = ("/proc", "/sys", "/dev")


class Containers(Protocol):
    """What is used of the engine."""

    def get(self, ref: str) -> Container: ...

    def lend_root(self, ref: str, verb: str) -> AbstractAsyncContextManager[LentRoot]: ...

    def note(self, ref: str, action: str, **attributes: str) -> None:
        """An event of a container."""
        ...

    async def pause(self, ref: str) -> None: ...

    async def unpause(self, ref: str) -> None: ...


class Images(Protocol):
    """What is used of the image store."""

    def root_folders(self, container_id: str) -> tuple[Path, tuple[Path, ...]]: ...

    def spool_layer(self, pieces: Iterator[bytes]) -> AbstractAsyncContextManager[Spooled]: ...

    async def commit(self, image_id: str, layer: Spooled, commit: Commit, name: Reference | None) -> Image: ...


class ContainerFiles:
    def __init__(self, containers: Containers, images: Images) -> None:
        self._containers, self._images = containers, images

    async def stat(self, ref: str, path: str) -> PathStat:
        """What lies at a path. NotFound, InvalidArgument ("not a directory")."""
        async with self._view(ref) as (_, view):
            return await asyncio.to_thread(looking.stat_path, view.root, paths.absolute(path), ref, path)

    @asynccontextmanager
    async def read(self, ref: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncGenerator[bytes, None]]]:
        """What lies at a path, and a tar of it in pieces, to be taken inside the block. NotFound, InvalidArgument."""
        async with self._view(ref) as (record, view):
            where = paths.absolute(path)
            found = await asyncio.to_thread(looking.stat_path, view.root, where, ref, path)
            packing = asyncio.to_thread(_packed, view.root, where, found, record.remap)
            pieces = await finished(packing, undo=TarStream.close)
            self._containers.note(record.id, "archive-path")
            async with _streamed(pieces) as stream:
                yield found, stream

    async def write(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, no_change_of_kind: bool, own: bool
    ) -> None:
        """Unpack a tar, compressed or not, into a folder. own: everything shall belong to the container's user.

        NotFound, InvalidArgument; Internal for the disk's errors.
        """
        async with self._view(ref) as (record, view):
            where = paths.clean(path)
            await asyncio.to_thread(_check_target, view.root, where, ref, path)
            owner = await asyncio.to_thread(_owner, view.root, record) if own and record.request.user else None
            upload = Upload(chunks)
            rules = extract.Rules(no_change_of_kind=no_change_of_kind, owner=owner, remap=record.remap)

            work = asyncio.ensure_future(
                own_thread(lambda: _extract(view, where, upload, rules), f"copy into {record.id[:12]}")
            )
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                upload.stop()
                await asyncio.wait([work])
                if not work.cancelled():
                    work.exception()  # that it was broken off
                raise
            except OSError as err:
                if isinstance(err, ConnectionError):
                    raise
                raise Internal(err.strerror or str(err)) from err
            self._containers.note(record.id, "extract-to-dir")

    async def changes(self, ref: str) -> list[Change]:
        """How the container's files differ from its image's."""
        async with self._containers.lend_root(ref, "diff") as root, self._folders(root.record) as (upper, lower):
            return await finished(asyncio.to_thread(find_changes, upper, lower))

    @asynccontextmanager
    async def export(self, ref: str) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """A tar of the whole root, without volumes, to be taken inside the block."""
        async with self._containers.lend_root(ref, "export") as root:
            pieces = await finished(asyncio.to_thread(_exported, root.path, root.record.remap), undo=TarStream.close)
            async with _streamed(pieces) as stream:
                yield stream
            self._containers.note(root.record.id, "export")

    async def commit(
        self, ref: str, name: Reference | None, *, override: ContainerConfig | None, changes: Sequence[str],
        author: str, comment: str, pause: bool,
    ) -> str:
        """The id of a new image of the container as it is now. override: replaces its configuration."""
        record = self._containers.get(ref)
        config = committed_config(record.request, override, changes)
        async with AsyncExitStack() as stack:
            root = await stack.enter_async_context(self._containers.lend_root(record.id, "commit"))
            upper, lower = await stack.enter_async_context(self._folders(root.record))
            async with self._paused(record.id, wanted=pause and root.record.state.status == "running"):
                places = await finished(asyncio.to_thread(places_made, upper, lower))
                pieces = pack.layer(upper, places.__contains__)
                stack.callback(pieces.close)
                layer = await stack.enter_async_context(self._images.spool_layer(pieces))
            self._still_there(record.id)
            what = Commit(config, record.id, time.time_ns(), " ".join(record.request.cmd or ()), author, comment)
            image = await self._images.commit(record.image_id, layer, what, name)
            self._containers.note(
                record.id, "commit", comment=comment, imageID=image.id, imageRef=name.familiar if name else ""
            )
        return image.id

    def _still_there(self, ident: str) -> None:
        """Its files may have been going away while they were read."""
        try:
            status = self._containers.get(ident).state.status
        except NotFound as err:
            raise Conflict(f"container {ident} was removed while it was committed") from err
        if status in ("removing", "dead"):
            raise Conflict(f"You cannot commit container {ident} which is being removed")

    @asynccontextmanager
    async def _paused(self, ident: str, *, wanted: bool) -> AsyncIterator[None]:
        paused = False
        if wanted:
            with suppress(Conflict):  # it has just ended, or someone else has paused it
                await self._containers.pause(ident)
                paused = True
        try:
            yield
        finally:
            if paused:
                with suppress(Conflict, NotFound):
                    await self._containers.unpause(ident)

    @asynccontextmanager
    async def _view(self, ref: str) -> AsyncIterator[tuple[Container, View]]:
        async with self._containers.lend_root(ref, "copy from or to") as root:
            record = root.record
            opening = asyncio.to_thread(
                open_view, root.path, binds(record), read_only=record.host.readonly_rootfs,
                owner=record.remap.root if record.remap is not None else (0, 0),
                guarded=[
                    *_UNSEEN, *(point.destination for point in record.mounts if point.type == "tmpfs"),
                    *(file.target for file in record.supplied),
                ],
            )
            view = await finished(opening, undo=View.close)
            try:
                yield record, view
            finally:
                await asyncio.to_thread(view.close)

    @asynccontextmanager
    async def _folders(self, record: Container) -> AsyncIterator[tuple[Path, int | None]]:
        """The container's upper folder, and a descriptor of the image's files."""
        upper, below = self._images.root_folders(record.id)
        if not below:
            yield upper, None
            return
        view = await finished(asyncio.to_thread(open_stacked, below), undo=View.close)
        try:
            yield upper, view.root
        finally:
            await asyncio.to_thread(view.close)


def binds(record: Container) -> list[Bind]:
    """What of a container's mounts is seen from outside: no tmpfs. The engine's own files come last."""
    found = [
        Bind(point.source, point.destination, read_only=not point.rw, recursive=not point.non_recursive)
        for point in record.mounts
        if point.type in ("bind", "volume", "image") and point.source
    ]
    wished = {point.destination for point in record.mounts}
    found += [
        Bind(source, target, recursive=False) for target, source in record.files.items() if target not in wished
    ]
    return found


def _packed(root: int, where: str, found: PathStat, remap: Remap | None) -> TarStream:
    name = paths.archive_name(where)
    if found.is_folder:
        return pack.tree(root, where, name, remap)
    folder, _, base = where.rpartition("/")
    return pack.single(root, folder or "/", base, name, remap)


def _exported(root: Path, remap: Remap | None) -> TarStream:
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return pack.tree(handle, "/", "", remap)
    finally:
        os.close(handle)


def _check_target(root: int, where: str, container: str, given: str) -> None:
    """NotFound; InvalidArgument if it is no folder, or cannot be written to."""
    handle = looking.open_folder(root, where, container, given)
    try:
        if os.fstatvfs(handle).f_flag & os.ST_RDONLY:
            in_root = os.fstat(handle).st_dev == os.fstat(root).st_dev
            raise InvalidArgument(f"{'container rootfs' if in_root else 'mounted volume'} is marked read-only")
    finally:
        os.close(handle)


def _extract(view: View, where: str, upload: Upload, rules: extract.Rules) -> None:
    view.enter()
    if rules.remap is not None:
        act_as(*rules.remap.root)  # this thread ends with the work
    extract.extract(view.root, where, decompressed(upload.read), rules)


def _owner(root: int, record: Container) -> tuple[int, int]:
    passwd, group = read_accounts(Path(f"/proc/self/fd/{root}"))
    identity = resolve_user(record.request.user, (), passwd, group)
    return identity.uid, identity.gid


@asynccontextmanager
async def _streamed(pieces: TarStream) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    stream = from_thread(pieces)
    try:
        yield stream
    finally:
        await stream.aclose()
        await asyncio.to_thread(pieces.close)
