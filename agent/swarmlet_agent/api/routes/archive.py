"""Engine API: a container's files (archive, changes, export) and images made of them (commit)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web

from swarmlet.engine_api.answers import empty, json_answer
from swarmlet.engine_api.router import Call, Route, convert
from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.container import ContainerConfig
from swarmlet_agent.archive.changes import Change
from swarmlet_agent.archive.paths import STAT_HEADER, PathStat
from swarmlet_agent.images.reference import Reference, parse_reference

log = get_logger(__name__)
_ONE = "/containers/{id:path}"


class FilesBackend(Protocol):
    """What these routes use of the containers' files."""

    async def stat(self, ref: str, path: str) -> PathStat: ...

    def read(
        self, ref: str, path: str
    ) -> AbstractAsyncContextManager[tuple[PathStat, AsyncGenerator[bytes, None]]]: ...

    async def write(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, no_change_of_kind: bool, own: bool
    ) -> None: ...

    async def changes(self, ref: str) -> list[Change]: ...

    def export(self, ref: str) -> AbstractAsyncContextManager[AsyncGenerator[bytes, None]]: ...

    async def commit(
        self, ref: str, name: Reference | None, *, override: ContainerConfig | None, changes: Sequence[str],
        author: str, comment: str, pause: bool,
    ) -> str: ...


class ArchiveRoutes:
    def __init__(self, files: FilesBackend) -> None:
        self._files = files

    def routes(self) -> list[Route]:
        return [
            Route("HEAD", f"{_ONE}/archive", self.stat),
            Route("GET", f"{_ONE}/archive", self.read),
            Route("PUT", f"{_ONE}/archive", self.write),
            Route("GET", f"{_ONE}/changes", self.changes),
            Route("GET", f"{_ONE}/export", self.export),
            Route("POST", "/commit", self.commit),
        ]

    async def stat(self, call: Call) -> web.StreamResponse:
        """ContainerArchiveInfo: 200 and a header; 400 for a bad path, 404."""
        found = await self._files.stat(call.params["id"], _path(call))
        return web.Response(headers={STAT_HEADER: found.header()})

    async def read(self, call: Call) -> web.StreamResponse:
        """ContainerArchive: a tar stream; 400 for a bad path, 404."""
        async with self._files.read(call.params["id"], _path(call)) as (found, pieces):
            headers = {STAT_HEADER: found.header(), "Content-Type": "application/x-tar"}
            return await _send(call, pieces, headers)

    async def write(self, call: Call) -> web.StreamResponse:
        """PutContainerArchive: 200; 400 for a bad archive, no folder or a read-only one; 404."""
        await self._files.write(
            call.params["id"], _path(call), call.request.content.iter_any(),
            no_change_of_kind=call.flag("noOverwriteDirNonDir"), own=call.flag("copyUIDGID"),
        )
        return empty(200)

    async def changes(self, call: Call) -> web.StreamResponse:
        """ContainerChanges: 200; null if there are none, as dockerd has it."""
        found = await self._files.changes(call.params["id"])
        return json_answer([{"Path": change.path, "Kind": int(change.kind)} for change in found] or None)

    async def export(self, call: Call) -> web.StreamResponse:
        """ContainerExport: a tar stream; 404; 409 while it is removed."""
        async with self._files.export(call.params["id"]) as pieces:
            return await _send(call, pieces, {"Content-Type": "application/octet-stream"})

    async def commit(self, call: Call) -> web.StreamResponse:
        """ImageCommit: 201; 400 for a bad name, change or configuration; 404."""
        body = await call.raw_json()
        image_id = await self._files.commit(
            call.text("container"), _image_name(call.text("repo"), call.text("tag")),
            override=None if body is None else convert(body, ContainerConfig),
            changes=[line for text in call.texts("changes") for line in text.splitlines()],
            author=call.text("author"), comment=call.text("comment"),
            pause=call.flag("pause") if call.text("pause") else True,
        )
        return json_answer({"Id": image_id}, 201)


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise InvalidArgument("bad parameter: 'path' cannot be empty")
    return path


def _image_name(repo: str, tag: str) -> Reference | None:
    if not repo:
        return None
    name = parse_reference(repo)
    if name.digest:
        raise InvalidArgument("cannot commit to digest reference")
    return name.with_tag(tag) if tag else name.with_default_tag()


async def _send(call: Call, pieces: AsyncGenerator[bytes, None], headers: dict[str, str]) -> web.StreamResponse:
    """The pieces as they come. What fails before the first has a status, later the transfer is broken off."""
    response = web.StreamResponse(headers=headers)
    try:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(call.request)
            await response.write(piece)
    except (SwarmletError, OSError) as err:
        if isinstance(err, ConnectionError) or not response.prepared:
            raise
        # Half an archive must not look like a whole one: the only way left to say so is to hang up.
        log.error("an archive was broken off", reason=str(err))
        if call.request.transport is not None:
            call.request.transport.abort()
        return response
    await response.write_eof()
    return response
