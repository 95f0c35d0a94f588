"""The writing half of the Registry HTTP API v2 (OCI distribution-spec, "Push"): a repository's blobs and manifests."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from swarmlet.errors import NotFound
from swarmlet_agent.images.door import Door, read_some
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.refusals import RegistryRefused

_OCTETS = "application/octet-stream"
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_MAX_ANSWER = 64 << 10


class Target:
    """One repository that is pushed to. Errors: RegistryDenied, RegistryRefused (final), RegistryUnreachable."""

    def __init__(self, ref: Reference, door: Door) -> None:
        self._ref, self._door = ref, door

    async def connect(self) -> None:
        """Find out how the registry is spoken to. RegistryUnreachable with the reason."""
        await self._door.connect()

    async def has(self, digest: str) -> int | None:
        """The size of a blob that is there already; None if it is not."""
        try:
            async with self._request("HEAD", self._url(f"blobs/{digest}")) as answer:
                return answer.content_length or 0
        except NotFound:
            return None

    async def begin(self, digest: str = "", source: str = "") -> URL | None:
        """Where to upload a blob to; None if the registry could mount the one called `digest` from `source` instead."""
        mount = f"?mount={quote(digest, safe=':')}&from={quote(source, safe='/')}" if digest else ""
        url = self._url(f"blobs/uploads/{mount}")
        async with self._request("POST", url) as answer:
            await read_some(answer, _MAX_ANSWER)
            if answer.status == 201 and digest:
                return None
            return self._location(answer, url)

    async def send(self, place: URL, body: Callable[[], Any], length: int | None = None) -> URL:
        """The next bytes of an upload; length: how many, if that is known. Returns where to go on."""
        headers = {"Content-Type": _OCTETS} | ({} if length is None else {"Content-Length": str(length)})
        async with self._request("PATCH", place, headers=headers, body=body) as answer:
            await read_some(answer, _MAX_ANSWER)
            return self._location(answer, place)

    async def progress(self, place: URL) -> tuple[URL, int]:
        """Where to go on with an upload that broke off, and how many bytes of it the registry has."""
        async with self._request("GET", place) as answer:
            await read_some(answer, _MAX_ANSWER)
            found = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
            # "0-0" is what registries say for nothing at all.
            size = int(found[1]) + 1 if found is not None and found[1] != "0" else 0
            return self._location(answer, place), size

    async def finish(self, place: URL, digest: str, data: bytes = b"") -> None:
        """End an upload, with its last (or only) bytes; the registry checks the digest."""
        url = URL(f"{place}{'&' if place.raw_query_string else '?'}digest={quote(digest, safe=':')}", encoded=True)
        async with self._request("PUT", url, headers={"Content-Type": _OCTETS}, body=lambda: data) as answer:
            await read_some(answer, _MAX_ANSWER)

    async def cancel(self, place: URL) -> None:
        """Give an upload up."""
        async with self._request("DELETE", place) as answer:
            await read_some(answer, _MAX_ANSWER)

    async def put_manifest(self, version: str, raw: bytes, media_type: str) -> None:
        """Under a tag, once all it names is there."""
        headers = {"Content-Type": media_type}
        async with self._request("PUT", self._url(f"manifests/{version}"), headers=headers, body=lambda: raw) as answer:
            await read_some(answer, _MAX_ANSWER)

    def _url(self, path: str) -> URL:
        return self._door.url(f"/v2/{self._ref.path}/{path}")

    def _location(self, answer: aiohttp.ClientResponse, url: URL) -> URL:
        location = answer.headers.get("Location", "")
        if not location:
            raise RegistryRefused(f"the registry did not say where to upload to: {url.path}")
        return self._door.follow(location, url)

    def _request(
        self, method: str, url: URL, *, headers: dict[str, str] | None = None, body: Callable[[], Any] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._door.request(method, url, headers=headers, body=body)
