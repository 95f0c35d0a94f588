"""Engine API: /images/* of the node view."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.times import parse_rfc3339
from swarmlet.wire.imports import CREATED_AT
from swarmlet_agent.api.routes.credentials import credentials
from swarmlet_agent.images.auth import decode_body
from swarmlet_agent.images.platforms import Platform, parse_platform
from swarmlet_agent.images.progress import Listener
from swarmlet_agent.images.reference import parse_reference
from swarmlet_agent.images.types import Image, RegistryAuth

log = get_logger(__name__)

#: Credentials are small; a body that is not is none.
_MAX_CREDENTIALS = 64 << 10
_WITH_CONTAINER_CONFIG = (1, 44)


class ImageBackend(Protocol):
    """What these routes use of the image store."""

    def list_images(
        self, filters: Filters, version: tuple[int, int], *, everything: bool = False, shared_size: bool = False,
        manifests: bool = False,
    ) -> list[dict[str, Any]]: ...
    def inspect(
        self, ref: str, version: tuple[int, int], wanted: str = "", *, manifests: bool = False
    ) -> dict[str, Any]: ...
    def history(self, ref: str, wanted: str = "") -> list[dict[str, Any]]: ...
    async def pull(
        self, ref: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> Image: ...
    async def pull_all_tags(
        self, name: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> list[Image]: ...
    async def push(
        self, ref: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> None: ...
    async def load(
        self, chunks: AsyncIterator[bytes], *, platform: str = "", quiet: bool = False,
        progress: Listener | None = None,
    ) -> list[Image]: ...
    async def import_tar(
        self, chunks: AsyncIterator[bytes], *, repo: str = "", tag: str = "", message: str = "",
        changes: Sequence[str] = (), platform: str = "", source: str = "-", created: int | None = None,
    ) -> Image: ...
    def fetch_url(self, url: str) -> AsyncIterator[bytes]: ...
    def save(self, refs: Sequence[str], platform: str) -> AsyncGenerator[bytes, None]: ...
    async def tag(self, ref: str, repo: str, tag: str = "") -> None: ...
    async def remove(
        self, ref: str, *, force: bool = False, prune_parents: bool = True, platform: str = ""
    ) -> list[dict[str, str]]: ...
    async def prune(self, filters: Filters) -> tuple[list[dict[str, str]], int]: ...


class ImageRoutes:
    def __init__(self, images: ImageBackend) -> None:
        self._images = images

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/images/json", self._list),
            Route("POST", "/images/create", self._create),
            Route("POST", "/images/load", self._load),
            Route("GET", "/images/get", self._save_many),
            Route("POST", "/images/prune", self._prune),
            Route("GET", "/images/{name:path}/json", self._inspect),
            Route("GET", "/images/{name:path}/history", self._history),
            Route("GET", "/images/{name:path}/get", self._save_one),
            Route("POST", "/images/{name:path}/tag", self._tag),
            Route("POST", "/images/{name:path}/push", self._push),
            Route("DELETE", "/images/{name:path}", self._remove),
        ]

    async def _list(self, call: Call) -> web.StreamResponse:
        """ImageList: 200; 400 for a bad filter. Clients before 1.25 had `filter=` for a name."""
        filters = call.filters()
        if call.version < (1, 41) and call.text("filter"):
            filters = filters.having("reference", *filters.get("reference"), call.text("filter"))
        shown = self._images.list_images(
            filters, call.version, everything=call.flag("all"),
            shared_size=call.flag("shared-size") and call.version >= (1, 42),
            manifests=call.flag("manifests") and call.version >= (1, 47),
        )
        return json_answer(shown)

    async def _create(self, call: Call) -> web.StreamResponse:
        """ImageCreate: pull with fromImage, import with fromSrc. 200 and progress; errors before it have a status."""
        image, source = call.text("fromImage"), call.text("fromSrc")
        if image:
            auth = credentials(call)
            ref, all_tags = pull_reference(image, call.text("tag"))
            platform = _platform(call)
            if all_tags:
                return await _with_progress(call, lambda listener: self._images.pull_all_tags(
                    ref, auth=auth, platform=platform, progress=listener
                ))
            return await _with_progress(call, lambda listener: self._images.pull(
                ref, auth=auth, platform=platform, progress=listener
            ))
        if not source:
            raise InvalidArgument("either fromImage or fromSrc is required")
        return await self._import(call, source)

    async def _import(self, call: Call, source: str) -> web.StreamResponse:
        stream = JsonStream(call)
        if source == "-":
            chunks: AsyncIterator[bytes] = call.request.content.iter_any()
        else:
            url = source if "://" in source else f"http://{source}"
            chunks = self._images.fetch_url(url)
        async with WhileConnected(call.request):
            image = await self._images.import_tar(
                chunks, repo=call.text("repo"), tag=call.text("tag"), message=call.text("message"),
                changes=call.texts("changes"), platform=call.text("platform"), source=source,
                created=_created(call),
            )
        await stream.send({"status": image.id})
        return await stream.end()

    async def _load(self, call: Call) -> web.StreamResponse:
        """ImageLoad: 200 and progress. What is wrong with the archive is a line of it, as clients expect of dockerd."""
        quiet, platform = call.flag("quiet", default=True), _platform(call)
        return await _with_progress(call, lambda listener: self._images.load(
            call.request.content.iter_any(), platform=platform, quiet=quiet, progress=listener
        ), always_a_stream=True)

    async def _save_one(self, call: Call) -> web.StreamResponse:
        return await self._save(call, [call.params["name"]])

    async def _save_many(self, call: Call) -> web.StreamResponse:
        names = call.texts("names")
        if not names:
            raise InvalidArgument("no image names given")
        return await self._save(call, names)

    async def _save(self, call: Call, names: Sequence[str]) -> web.StreamResponse:
        """ImageGet: a tar stream; 404 before it begins. A layer found damaged in the middle breaks the transfer."""
        response: web.StreamResponse | None = None
        async with aclosing(self._images.save(names, _platform(call))) as chunks:
            try:
                async for chunk in chunks:
                    if response is None:
                        response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
                        await response.prepare(call.request)
                    await response.write(chunk)
            except SwarmletError as err:
                if response is None:
                    raise
                # Half an archive must not look like a whole one: the only way left to say so is to hang up.
                log.error("a saved image was broken off", reason=str(err))
                if call.request.transport is not None:
                    call.request.transport.abort()
                return response
        assert response is not None
        await response.write_eof()
        return response

    async def _inspect(self, call: Call) -> web.StreamResponse:
        """ImageInspect: 200; 400 for manifests of one platform, as dockerd has it; 404."""
        manifests = call.flag("manifests") and call.version >= (1, 48)
        platform = _platform(call)
        if manifests and platform:
            raise InvalidArgument("conflicting options: manifests and platform options cannot both be set")
        shown = self._images.inspect(call.params["name"], _known_version(call), platform, manifests=manifests)
        return json_answer(shown)

    async def _history(self, call: Call) -> web.StreamResponse:
        """ImageHistory: 200; 404."""
        return json_answer(self._images.history(call.params["name"], _platform(call)))

    async def _tag(self, call: Call) -> web.StreamResponse:
        """ImageTag: 201; 400 for a bad name; 404."""
        await self._images.tag(call.params["name"], call.text("repo"), call.text("tag"))
        return web.Response(status=201)

    async def _push(self, call: Call) -> web.StreamResponse:
        """ImagePush: 200 and progress, trouble with the registry too; 400 for a bad name. No tag: all of them."""
        ref, platform, auth = push_reference(call.params["name"], call.text("tag")), _platform(call), await _asker(call)
        return await _with_progress(call, lambda listener: self._images.push(
            ref, auth=auth, platform=platform, progress=listener
        ))

    async def _remove(self, call: Call) -> web.StreamResponse:
        """ImageDelete: 200 with what was untagged and deleted; 404, so for another platform; 409 while it is in use."""
        texts = call.texts("platforms")
        if len(texts) > 1:
            raise InvalidArgument("multiple platforms are not supported")
        platform = _platform_text(texts[0]) if texts else ""
        done = await self._images.remove(
            call.params["name"], force=call.flag("force"), prune_parents=not call.flag("noprune"), platform=platform
        )
        return json_answer(done)

    async def _prune(self, call: Call) -> web.StreamResponse:
        """ImagePrune: 200."""
        deleted, freed = await self._images.prune(call.filters())
        return json_answer({"ImagesDeleted": deleted or None, "SpaceReclaimed": freed})


def pull_reference(image: str, tag: str) -> tuple[str, bool]:
    """(reference, whether all tags are meant) from fromImage and tag. A tag may be a digest, and then wins."""
    parsed = parse_reference(image)
    if tag:
        # dockerd: what `tag` says replaces what the name says.
        changed = parsed.with_digest(tag) if tag.startswith("sha256:") else parsed.with_tag(tag)
        return changed.full, False
    return parsed.full, not parsed.version


def push_reference(image: str, tag: str) -> str:
    """What is pushed: `tag` replaces what the name says. InvalidArgument for a digest: nothing is pushed as one."""
    parsed = parse_reference(image)
    if tag:
        return parsed.with_tag(tag).full
    if parsed.digest:
        raise InvalidArgument("cannot push a digest reference")
    return parsed.full


def _created(call: Call) -> int | None:
    """What a manager says about the time of an import that goes to several nodes, in ns."""
    text = call.request.headers.get(CREATED_AT, "")
    try:
        return parse_rfc3339(text) if text else None
    except (ValueError, OverflowError) as err:
        raise InvalidArgument(f"invalid {CREATED_AT} header: expected a time as in RFC 3339") from err


async def _asker(call: Call) -> RegistryAuth | None:
    """The header; clients of old sent the same JSON as the body."""
    if "X-Registry-Auth" in call.request.headers:
        return credentials(call)
    auth = decode_body(await call.request.content.read(_MAX_CREDENTIALS))
    return auth if auth.username or auth.identity_token or auth.registry_token else None


def _known_version(call: Call) -> tuple[int, int]:
    """What the client reads. docker-compose 1 asks for the newest version whatever it is, and cannot make a container
    anew without the ContainerConfig that API 1.45 took away."""
    if call.request.headers.get("User-Agent", "").startswith("docker-compose/1."):
        return min(call.version, _WITH_CONTAINER_CONFIG)
    return call.version


def _platform(call: Call) -> str:
    """The `platform` parameter of image calls. "" if it is not given.

    An image is of one platform here, as in Docker's store without containerd: several at once are refused in its words.
    """
    if len(call.texts("platform")) > 1:
        raise InvalidArgument("multiple platform parameters not supported")
    return _platform_text(call.text("platform"))


def _platform_text(text: str) -> str:
    """A platform as text; it is a JSON object since API 1.48."""
    if not text.startswith("{"):
        parse_platform(text)  # what is wrong with it is told before a registry is asked
        return text
    try:
        return str(msgspec.json.decode(text, type=Platform))
    except msgspec.DecodeError as err:
        raise InvalidArgument(f"invalid platform: {err}") from err


async def _with_progress(
    call: Call, work: Callable[[Listener], Awaitable[object]], *, always_a_stream: bool = False
) -> web.StreamResponse:
    """Run it with progress sent as it comes. Before the first line an error is a status, later (or always) a line.

    A client that goes away ends it, also while there is nothing to tell.
    """
    stream = JsonStream(call)
    try:
        async with WhileConnected(call.request):
            await work(stream.send)
    except SwarmletError as err:
        if not stream.started and not always_a_stream:
            raise
        await stream.fail(str(err))
    return await stream.end()
