"""A registry in this process that can be pushed to, and misbehaves on request."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from aiohttp import web
from fakes.images_made import digest
from fakes.images_registry import FakeRegistry


class PushRegistry(FakeRegistry):
    """Blobs belong to repositories here, so that mounting means something.

    break_upload_after: bytes of an upload after which the connection breaks, once. resumable: whether what came before
    is kept then. stall: so many uploads are not read from. busy: so many requests are answered with 503. denied:
    pushing is refused. mounts: whether blobs are mounted. hub: what a search finds. scopes: what tokens were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, set[str]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.break_upload_after = 0
        self.resumable = True
        self.busy = 0
        self.scopes: list[str] = []
        self.mounts = True
        self.stall = 0
        self.hub: list[dict[str, object]] = []

    def put(self, repository: str, content: bytes) -> None:
        self.blobs[digest(content)] = content
        self.of.setdefault(repository, set()).add(digest(content))

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("HEAD", r"/v2/{name:.+}/blobs/{ref:sha256.+}", self._head)
        app.router.add_post(r"/v2/{name:.+}/blobs/uploads/", self._begin)
        app.router.add_patch(r"/v2/{name:.+}/blobs/uploads/{upload}", self._patch)
        app.router.add_get(r"/v2/{name:.+}/blobs/uploads/{upload}", self._status)
        app.router.add_put(r"/v2/{name:.+}/blobs/uploads/{upload}", self._finish)
        app.router.add_delete(r"/v2/{name:.+}/blobs/uploads/{upload}", self._cancel)
        app.router.add_put(r"/v2/{name:.+}/manifests/{ref}", self._put_manifest)
        app.router.add_get("/v1/search", self._search)

    def _stop(self, request: web.Request) -> web.Response | None:
        self.requests[f"push {request.method}"] += 1
        if (refused := self._refuse(request)) is not None:
            return refused
        if self.busy:
            self.busy -= 1
            return web.Response(status=503)
        if self.denied and request.method != "HEAD":
            body = {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]}
            return web.json_response(body, status=403)
        return None

    async def _token(self, request: web.Request) -> web.Response:
        self.scopes += request.query.getall("scope", [])
        return await super()._token(request)

    async def _head(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        ref = request.match_info["ref"]
        if ref not in self.of.get(request.match_info["name"], ()):
            return web.Response(status=404)
        return web.Response(body=self.blobs[ref])

    async def _search(self, request: web.Request) -> web.Response:
        self.requests[f"search {request.query['q']} {request.query['n']}"] += 1
        return web.json_response({"num_results": len(self.hub), "results": self.hub})

    async def _begin(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        name, wanted, source = request.match_info["name"], request.query.get("mount"), request.query.get("from", "")
        if self.mounts and wanted and wanted in self.of.get(source, ()):
            self.requests["mount"] += 1
            self.of.setdefault(name, set()).add(wanted)
            return web.Response(status=201)
        upload = secrets.token_hex(8)
        self.uploads[upload] = bytearray()
        return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{upload}?state=a%2Bb"})

    async def _patch(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        assert request.query_string == "state=a%2Bb"
        have = self.uploads[request.match_info["upload"]]
        if self.stall:
            self.stall -= 1
            self.requests["stalled"] += 1
            await asyncio.sleep(60)  # ends with the connection
        with suppress(ConnectionResetError):
            async for piece in request.content.iter_any():
                have += piece
                if self.break_upload_after and len(have) >= self.break_upload_after:
                    self.break_upload_after = 0
                    if not self.resumable:
                        del self.uploads[request.match_info["upload"]]
                    assert request.transport is not None
                    request.transport.abort()
                    await asyncio.sleep(0)
                    break
        return web.Response(status=202, headers={"Location": str(request.rel_url)})

    async def _status(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        have = self.uploads.get(request.match_info["upload"])
        if have is None:
            return web.json_response({"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "unknown"}]}, status=404)
        headers = {"Location": str(request.rel_url), "Range": f"0-{max(0, len(have) - 1)}"}
        return web.Response(status=204, headers=headers)

    async def _finish(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        content = bytes(self.uploads.pop(request.match_info["upload"])) + await request.read()
        if digest(content) != request.query["digest"]:
            return web.json_response({"errors": [{"code": "DIGEST_INVALID", "message": "no match"}]}, status=400)
        self.put(request.match_info["name"], content)
        return web.Response(status=201)

    async def _cancel(self, request: web.Request) -> web.Response:
        self.requests["cancel"] += 1
        self.uploads.pop(request.match_info["upload"], None)
        return web.Response(status=204)

    async def _put_manifest(self, request: web.Request) -> web.Response:
        if (stop := self._stop(request)) is not None:
            return stop
        raw = await request.read()
        self.put_manifest(request.match_info["name"], request.match_info["ref"], raw, request.content_type)
        return web.Response(status=201)
