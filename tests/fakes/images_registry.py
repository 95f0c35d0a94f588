"""Registries for the image tests: Debian's docker-registry, and one in this process that can misbehave."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web
from fakes.images_made import MadeImage, digest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealRegistry:
    """A running docker-registry; `push` as a client would, without the code under test."""

    def __init__(self, host: str) -> None:
        self.host = host

    def push(self, repository: str, tag: str, image: MadeImage) -> None:
        for content in image.contents().values():
            self._upload(repository, content)
        self.put_manifest(repository, tag, image.manifest, image.media_type)

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> None:
        self._send("PUT", f"http://{self.host}/v2/{repository}/manifests/{tag}", raw, media_type)

    def _upload(self, repository: str, content: bytes) -> None:
        place = self._send("POST", f"http://{self.host}/v2/{repository}/blobs/uploads/", b"")
        mark = "&" if "?" in place else "?"
        self._send("PUT", f"{place}{mark}digest={digest(content)}", content)

    def _send(self, method: str, url: str, body: bytes, media_type: str = "application/octet-stream") -> str:
        request = urllib.request.Request(url, body, {"Content-Type": media_type}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.headers.get("Location", ""))


@contextmanager
def real_registry(folder: Path, password_file: Path | None = None) -> Iterator[RealRegistry]:
    host = f"127.0.0.1:{free_port()}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\nhttp: {{addr: '{host}'}}\n"
    )
    if password_file:
        with config.open("a") as more:
            more.write(f"auth: {{htpasswd: {{realm: tests, path: {password_file}}}}}\n")
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_until_it_answers(host)
        yield RealRegistry(host)
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(host: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://{host}/v2/", timeout=2):
                return
        except urllib.error.HTTPError as err:
            err.close()  # it asks who is there: it is up
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class FakeRegistry:
    """Speaks enough of the v2 API to pull from, and misbehaves on request.

    break_after: digest -> bytes after which the connection breaks, once. lies: digest -> what is sent instead.
    user: "name:password" that is asked for, by "basic" or "bearer". gate: blobs (those of `gated`, or all) wait for it,
    after their first bytes if `stall_after` says how many. busy: digest -> requests that are answered with 429, to be
    asked again after `retry_after` seconds. elsewhere: another host that blobs are redirected to.
    """

    def __init__(self) -> None:
        self.host = ""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.break_after: dict[str, int] = {}
        self.lies: dict[str, bytes] = {}
        self.user = ""
        self.scheme = "basic"
        self.gate: asyncio.Event | None = None
        self.gated: set[str] = set()
        self.stall_after: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.retry_after = ""
        self.elsewhere = ""
        self.authorizations: list[str] = []
        self.denied = False

    def push(self, repository: str, tag: str, image: MadeImage) -> None:
        self.blobs.update(image.contents())
        self.put_manifest(repository, tag, image.manifest, image.media_type)

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> None:
        self.manifests[repository, tag] = self.manifests[repository, digest(raw)] = (raw, media_type)

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
        app = web.Application()
        self.add_routes(app)
        app.router.add_get("/token", self._token)
        app.router.add_get("/v2/", self._ping)
        app.router.add_get(r"/v2/{name:.+}/manifests/{ref}", self._manifest)
        app.router.add_get(r"/v2/{name:.+}/blobs/{ref}", self._blob)
        app.router.add_get(r"/v2/{name:.+}/tags/list", self._tags)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """For those that can do more."""

    def _refuse(self, request: web.Request) -> web.Response | None:
        if not self.user:
            return None
        given = request.headers.get("Authorization", "")
        wanted = f"Basic {base64.b64encode(self.user.encode()).decode()}" if self.scheme == "basic" else "Bearer good"
        if given == wanted:
            return None
        challenge = (
            'Basic realm="tests"'
            if self.scheme == "basic"
            else (f'Bearer realm="http://{self.host}/token",service="tests",scope="repository:x:pull"')
        )
        body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        return web.json_response(body, status=401, headers={"WWW-Authenticate": challenge})

    async def _token(self, request: web.Request) -> web.Response:
        self.requests["token"] += 1
        wanted = f"Basic {base64.b64encode(self.user.encode()).decode()}"
        if request.headers.get("Authorization", "") != wanted:
            return web.json_response({"details": "no"}, status=401)
        return web.json_response({"token": "good", "expires_in": 300})

    async def _ping(self, request: web.Request) -> web.Response:
        self.requests["ping"] += 1
        return self._refuse(request) or web.json_response({})

    async def _manifest(self, request: web.Request) -> web.Response:
        self.requests[f"manifest {request.method}"] += 1
        if (refused := self._refuse(request)) is not None:
            return refused
        if self.denied:
            body = {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]}
            return web.json_response(body, status=403)
        found = self.manifests.get((request.match_info["name"], request.match_info["ref"]))
        if found is None:
            body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(body, status=404)
        raw, media_type = found
        return web.Response(body=raw, headers={"Content-Type": media_type, "Docker-Content-Digest": digest(raw)})

    async def _tags(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        tags = sorted(tag for repository, tag in self.manifests if repository == name and ":" not in tag)
        return web.json_response({"name": name, "tags": tags})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        ref = request.match_info["ref"]
        self.requests[f"blob {ref}"] += 1
        self.authorizations.append(request.headers.get("Authorization", ""))
        if (refused := self._refuse(request)) is not None:
            return refused
        content = self.lies.get(ref, self.blobs.get(ref))
        if content is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}, status=404)
        if self.busy.get(ref, 0):
            self.busy[ref] -= 1
            return web.Response(status=429, headers={"Retry-After": self.retry_after})
        if self.elsewhere:
            raise web.HTTPTemporaryRedirect(f"http://{self.elsewhere}{request.rel_url}")
        gated = self.gate is not None and (not self.gated or ref in self.gated)
        if gated and ref not in self.stall_after:
            assert self.gate is not None
            await self.gate.wait()
        start = 0
        if wanted := request.headers.get("Range"):
            self.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(content) - start
        await response.prepare(request)
        if gated and start < (stall := self.stall_after.get(ref, 0)):
            assert self.gate is not None
            await response.write(content[start:stall])
            start = stall
            await self.gate.wait()
        broken = self.break_after.pop(ref, None)
        await response.write(content[start:] if broken is None else content[start:broken])
        if broken is not None:
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
        return response
