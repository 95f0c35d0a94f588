"""A client of the Registry HTTP API v2 (OCI distribution-spec): manifests, tags and blobs of one repository.

Knows where to ask (mirrors, plain HTTP for insecure registries) and puts a registry's refusals into the words
Docker's users know. The other direction is in target.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet_agent.images.auth import Challenge
from swarmlet_agent.images.certificates import system_context
from swarmlet_agent.images.door import Door, read_some
from swarmlet_agent.images.endpoints import endpoints_of
from swarmlet_agent.images.manifests import MANIFEST_TYPES, MAX_MANIFEST_BYTES, digest_of
from swarmlet_agent.images.proxies import proxy_for
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.refusals import Entries, RegistryDenied, RegistryUnreachable, refusal, unreachable
from swarmlet_agent.images.target import Target
from swarmlet_agent.images.types import RegistryAuth

__all__ = ["Fetched", "Registries", "RegistryDenied", "RegistryUnreachable", "Repository"]

CONNECT_TIMEOUT_S = 15.0
#: A registry that sends nothing for this long is given up (and, for blobs, asked again).
READ_TIMEOUT_S = 60.0
_MAX_TAG_PAGES = 1000


@dataclass(frozen=True, slots=True)
class Download:
    """What a URL leads to. file_name: Content-Disposition's, "" = not given; modified_at: in s, 0 = not given."""

    file_name: str
    modified_at: int
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as sent. digest is computed from the bytes, never believed."""

    raw: bytes
    media_type: str
    digest: str


class Registries:
    """Opens repositories; one HTTP connection pool for all."""

    def __init__(self, insecure: Sequence[str], mirrors: Sequence[str], certificates: Path) -> None:
        self._insecure, self._mirrors, self._certificates = tuple(insecure), tuple(mirrors), certificates
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    @property
    def http(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            )
            self._http = aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, read_bufsize=1 << 20,
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=16, ssl=system_context()),
                headers={"User-Agent": "swarmlet", "Accept-Encoding": "identity"},
            )
        return self._http

    async def open(self, ref: Reference, auth: RegistryAuth | None) -> list[Repository]:
        """Where this repository may be found, best first (mirrors, then the registry itself), not yet asked.

        InvalidArgument if the registry's name makes no address.
        """

        def refuse(method: str, url: str, status: int, entries: Entries, _: Sequence[Challenge]) -> SwarmletError:
            return refusal(ref, method, url, status, entries)

        asking_for = f"/v2/{ref.path}/manifests/{ref.version}"
        return [
            Repository(ref, Door(
                self.http, endpoint, None if endpoint.is_mirror else auth, [f"repository:{ref.path}:pull"],
                certificates=self._certificates, refuse=refuse, asking_for=asking_for,
            ))
            for endpoint in await endpoints_of(ref.domain, self._insecure, self._mirrors)
        ]

    async def target(self, ref: Reference, auth: RegistryAuth | None, sources: Sequence[str]) -> Target:
        """The repository to push to, not yet asked. sources: paths of others whose blobs may be mounted."""
        scopes = [f"repository:{ref.path}:pull,push", *(f"repository:{path}:pull" for path in sources)]
        return Target(ref, await self.door(ref.domain, auth, scopes))

    async def door(self, domain: str, auth: RegistryAuth | None, scopes: Sequence[str] = ()) -> Door:
        """The way into a registry itself, past mirrors; not yet asked."""
        endpoint = (await endpoints_of(domain, self._insecure, ()))[-1]
        return Door(self.http, endpoint, auth, scopes, certificates=self._certificates)

    @asynccontextmanager
    async def open_url(self, url: str) -> AsyncIterator[Download]:
        """What is behind a plain URL. InvalidArgument, RegistryUnreachable."""
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise InvalidArgument(f"invalid URL {url!r}: expected http://… or https://…")
        try:
            async with self.http.get(url, proxy=proxy_for(url)) as answer:
                if answer.status >= 400:
                    raise RegistryUnreachable(f'Get "{url}": got HTTP status code >= 400: {answer.status}')
                disposition = answer.content_disposition
                yield Download(
                    (disposition.filename or "") if disposition is not None else "",
                    _seconds(answer.headers.get("Last-Modified", "")), answer.content.iter_any(),
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            raise unreachable("Get", url, err) from err


def _seconds(http_date: str) -> int:
    """Since the epoch; 0 for what is no date."""
    try:
        return max(0, int(parsedate_to_datetime(http_date).timestamp()))
    except ValueError:
        return 0


class Repository:
    """One repository at one endpoint."""

    def __init__(self, ref: Reference, door: Door) -> None:
        self._ref, self._door = ref, door

    @property
    def is_mirror(self) -> bool:
        return self._door.is_mirror

    async def connect(self) -> None:
        """Find out how the registry is spoken to. RegistryUnreachable with the reason."""
        await self._door.connect()

    async def manifest(self, version: str) -> Fetched:
        """By tag or digest (verified). NotFound, RegistryDenied, RegistryUnreachable."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        async with self._request("GET", f"manifests/{version}", headers=headers) as answer:
            raw = await read_some(answer, MAX_MANIFEST_BYTES)
            if len(raw) > MAX_MANIFEST_BYTES:
                raise InvalidArgument(f"the manifest of {self._ref.familiar} is too large")
            digest = digest_of(raw)
            if version.startswith("sha256:") and digest != version:
                raise InvalidArgument(f"manifest verification failed for digest {version}")
            return Fetched(raw, answer.headers.get("Content-Type", ""), digest)

    async def manifest_digest(self, tag: str) -> str:
        """What the registry says a tag's digest is now, without fetching it; "" if it does not say."""
        try:
            headers = {"Accept": ", ".join(MANIFEST_TYPES)}
            async with self._request("HEAD", f"manifests/{tag}", headers=headers) as answer:
                return answer.headers.get("Docker-Content-Digest", "")
        except SwarmletError:
            return ""  # a HEAD has no body to explain itself: let GET find the same trouble and say why

    async def tags(self) -> list[str]:
        """All tags, following pages."""
        found: list[str] = []
        path: str | None = "tags/list?n=1000"
        for _ in range(_MAX_TAG_PAGES):
            if path is None:
                break
            async with self._request("GET", path) as answer:
                raw = await read_some(answer, MAX_MANIFEST_BYTES)
                try:
                    page = msgspec.json.decode(raw, type=_Tags)
                except msgspec.DecodeError as err:
                    raise RegistryUnreachable(f"the registry's list of tags makes no sense: {err}") from err
                found += page.tags or []
                link = answer.links.get("next")
                path = _same_repository(str(link["url"]), f"/v2/{self._ref.path}/") if link else None
        return found

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[tuple[aiohttp.ClientResponse, int]]:
        """The response, and where in the blob its body starts (0 if the registry ignored the offset)."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._request("GET", f"blobs/{digest}", headers=headers) as answer:
            yield answer, offset if answer.status == 206 else 0

    def _request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._door.request(method, self._door.url(f"/v2/{self._ref.path}/{path}"), headers=headers)


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


def _same_repository(url: str, prefix: str) -> str | None:
    """The part of a next-page link below the repository; None if it leads elsewhere."""
    parts = urlsplit(url)
    if prefix not in parts.path:
        return None
    path = parts.path.split(prefix, 1)[1]
    return f"{path}?{parts.query}" if parts.query else path
