"""The archive, changes, export and commit calls over HTTP, on files of a fake."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from swarmlet.engine_api.server import Server
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.container import ContainerConfig
from swarmlet_agent.api.routes.archive import ArchiveRoutes
from swarmlet_agent.archive.changes import Change, Kind
from swarmlet_agent.archive.paths import STAT_HEADER, PathStat
from swarmlet_agent.images.reference import Reference

FOUND = PathStat("x", 3, 0o100644, 0)


class FakeFiles:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.pieces: list[bytes | Exception] = [b"a" * 70_000, b"b"]
        self.found: list[Change] = []

    async def stat(self, ref: str, path: str) -> PathStat:
        if path == "/missing":
            raise NotFound("file", path, f"Could not find the file {path} in container {ref}")
        return FOUND

    @asynccontextmanager
    async def read(self, ref: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncGenerator[bytes, None]]]:
        found = await self.stat(ref, path)
        yield found, self._stream()

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def write(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, no_change_of_kind: bool, own: bool
    ) -> None:
        if path == "/ro":
            raise InvalidArgument("container rootfs is marked read-only")
        self.asked.append((ref, path, b"".join([chunk async for chunk in chunks]), no_change_of_kind, own))

    async def changes(self, ref: str) -> list[Change]:
        return self.found

    @asynccontextmanager
    async def export(self, ref: str) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        yield self._stream()

    async def commit(
        self, ref: str, name: Reference | None, *, override: ContainerConfig | None, changes: Sequence[str],
        author: str, comment: str, pause: bool,
    ) -> str:
        self.asked.append((ref, name.familiar if name else None, override, list(changes), author, comment, pause))
        return "sha256:" + "1" * 64


class Api:
    def __init__(self, files: FakeFiles, session: aiohttp.ClientSession) -> None:
        self.files, self._session = files, session

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        return self._session.request(method, f"http://node/v1.47{path}", **options)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    files = FakeFiles()
    server = Server(ArchiveRoutes(files).routes())
    await server.listen_unix(tmp_path / "s")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as session:
        yield Api(files, session)
    await server.close()


async def test_a_path_is_described_in_a_header(api: Api) -> None:
    async with api("HEAD", "/containers/web/archive?path=/x") as answer:
        assert answer.status == 200 and await answer.read() == b""
        assert json.loads(base64.b64decode(answer.headers[STAT_HEADER]))["name"] == "x"
    async with api("HEAD", "/containers/web/archive?path=/missing") as answer:
        assert answer.status == 404


async def test_an_archive_comes_with_its_header(api: Api) -> None:
    async with api("GET", "/containers/web/archive?path=/x") as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-tar")
        assert answer.headers[STAT_HEADER] == FOUND.header() and await answer.read() == b"a" * 70_000 + b"b"
    async with api("GET", "/containers/web/archive?path=/missing") as answer:
        assert answer.status == 404
        assert (await answer.json())["message"] == "Could not find the file /missing in container web"


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT"])
async def test_a_path_is_needed(api: Api, method: str) -> None:
    async with api(method, "/containers/web/archive") as answer:
        assert answer.status == 400


async def test_an_archive_that_breaks_is_no_whole_answer(api: Api) -> None:
    api.files.pieces = [OSError(5, "broken")]
    async with api("GET", "/containers/web/export") as answer:
        assert answer.status == 500
    api.files.pieces = [b"x" * 100_000, OSError(5, "broken")]
    with pytest.raises(aiohttp.ClientError):
        async with api("GET", "/containers/web/export") as answer:
            await answer.read()


async def test_an_upload_is_passed_on_with_its_rules(api: Api) -> None:
    path = "/containers/web/archive?path=/t&noOverwriteDirNonDir=true&copyUIDGID=1"
    async with api("PUT", path, data=b"tar" * 50_000) as answer:
        assert answer.status == 200 and await answer.read() == b""
    assert api.files.asked == [("web", "/t", b"tar" * 50_000, True, True)]
    async with api("PUT", "/containers/web/archive?path=/ro", data=b"") as answer:
        assert answer.status == 400
        assert (await answer.json())["message"] == "container rootfs is marked read-only"


async def test_changes_are_listed_and_none_is_null(api: Api) -> None:
    async with api("GET", "/containers/web/changes") as answer:
        assert await answer.json() is None
    api.files.found = [Change("/etc", Kind.MODIFIED), Change("/etc/x", Kind.ADDED), Change("/gone", Kind.DELETED)]
    async with api("GET", "/containers/web/changes") as answer:
        assert await answer.json() == [
            {"Path": "/etc", "Kind": 0}, {"Path": "/etc/x", "Kind": 1}, {"Path": "/gone", "Kind": 2},
        ]


async def test_a_commit_takes_its_options(api: Api) -> None:
    changes = "changes=CMD%20x%0AENV%20a=b&changes=USER%20u"
    path = f"/commit?container=web&repo=img&tag=2&author=me&comment=why&pause=0&{changes}"
    async with api("POST", path, json={"Env": ["A=1"], "Cmd": None}) as answer:
        assert answer.status == 201 and await answer.json() == {"Id": "sha256:" + "1" * 64}
    async with api("POST", "/commit?container=web") as answer:
        assert answer.status == 201
    assert api.files.asked == [
        ("web", "img:2", ContainerConfig(env=("A=1",)), ["CMD x", "ENV a=b", "USER u"], "me", "why", False),
        ("web", None, None, [], "", "", True),
    ]


@pytest.mark.parametrize("repo", ["UPPER", "img@sha256:" + "0" * 64])
async def test_a_commit_to_a_bad_name_is_refused(api: Api, repo: str) -> None:
    async with api("POST", f"/commit?container=web&repo={repo}") as answer:
        assert answer.status == 400
