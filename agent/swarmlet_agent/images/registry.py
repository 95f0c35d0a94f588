"""A client of the Registry HTTP API v2 (OCI distribution-spec): manifests, tags and blobs of one repository.

Knows where to ask (mirrors, plain HTTP for insecure registries), how to prove who asks (Basic, Bearer tokens),
and puts a registry's refusals into the words Docker's users know.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from swarmlet.errors import InvalidArgument, NotFound, SwarmletError, Unauthorized, Unavailable
from swarmlet.log import get_logger
from swarmlet_agent.images.auth import Challenge, basic, parse_challenges
from swarmlet_agent.images.endpoints import Endpoint, endpoints_of
from swarmlet_agent.images.manifests import MANIFEST_TYPES, MAX_MANIFEST_BYTES, digest_of
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.types import RegistryAuth

log = get_logger(__name__)

CONNECT_TIMEOUT_S = 15.0
#: A registry that sends nothing for this long is given up (and, for blobs, asked again).
READ_TIMEOUT_S = 60.0
_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 1 << 20
_MAX_TAG_PAGES = 1000
_CLIENT_ID = "swarmlet"


class RegistryUnreachable(Unavailable):
    """No answer, or none that makes sense. Trying again later may help. Engine API: 500, as dockerd answers."""

    status = 500


class RegistryDenied(Unauthorized):
    """Credentials are missing or wrong. Engine API: 500 for a pull, as dockerd answers."""

    status = 500


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as sent. digest is computed from the bytes, never believed."""

    raw: bytes
    media_type: str
    digest: str


class Registries:
    """Opens repositories; one HTTP connection pool for all."""

    def __init__(self, insecure: Sequence[str], mirrors: Sequence[str]) -> None:
        self._insecure, self._mirrors = tuple(insecure), tuple(mirrors)
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
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=16),
                headers={"User-Agent": "swarmlet", "Accept-Encoding": "identity"},
            )
        return self._http

    async def open(self, ref: Reference, auth: RegistryAuth | None) -> list[Repository]:
        """Where this repository may be found, best first (mirrors, then the registry itself), not yet asked.

        InvalidArgument if the registry's name makes no address.
        """
        return [
            Repository(self.http, endpoint, ref, None if endpoint.is_mirror else auth)
            for endpoint in await endpoints_of(ref.domain, self._insecure, self._mirrors)
        ]


    async def fetch_url(self, url: str) -> AsyncIterator[bytes]:
        """The body behind a plain URL (docker import URL). InvalidArgument, RegistryUnreachable."""
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise InvalidArgument(f"invalid URL {url!r}: expected http://… or https://…")
        try:
            async with self.http.get(url) as answer:
                if answer.status >= 400:
                    raise RegistryUnreachable(f'Get "{url}": got HTTP status code >= 400: {answer.status}')
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            raise unreachable("Get", url, err) from err


class Repository:
    """One repository at one endpoint."""

    def __init__(
        self, http: aiohttp.ClientSession, endpoint: Endpoint, ref: Reference, auth: RegistryAuth | None
    ) -> None:
        self._http, self._endpoint, self._ref, self._auth = http, endpoint, ref, auth
        self._base = ""
        self._tls: ssl.SSLContext | bool = True
        self._challenge: Challenge | None = None
        self._authorization = ""
        self._token_lock = asyncio.Lock()

    async def connect(self) -> None:
        """Find out how the registry is spoken to. RegistryUnreachable with the reason."""
        error: SwarmletError | None = None
        for scheme in ("https", "http") if self._endpoint.insecure else (self._endpoint.scheme,):
            base = f"{scheme}://{self._endpoint.host}{self._endpoint.prefix}"
            self._tls = _unverified() if self._endpoint.insecure and scheme == "https" else True
            try:
                async with self._http.get(f"{base}/v2/", ssl=self._tls) as answer:
                    await _read_some(answer, _MAX_ERROR_BYTES)
                    if answer.status >= 500 and answer.status != 501:
                        raise RegistryUnreachable(
                            f"received unexpected HTTP status: {answer.status} {answer.reason or ''}".rstrip()
                        )
                    self._challenge = _pick(parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
                    self._base = base
                    return
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
                error = unreachable("Get", f"{base}/v2/", err)
        assert error is not None
        raise error

    async def manifest(self, version: str) -> Fetched:
        """By tag or digest (verified). NotFound, RegistryDenied, RegistryUnreachable."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        async with self._request("GET", f"manifests/{version}", headers=headers) as answer:
            raw = await _read_some(answer, MAX_MANIFEST_BYTES)
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
                raw = await _read_some(answer, MAX_MANIFEST_BYTES)
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

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, authorised as the registry asks; errors as ours."""
        # encoded=True: a digest's colon must stay as it is.
        url = URL(f"{self._base}/v2/{self._ref.path}/{path}", encoded=True)
        for attempt in range(2):
            stale = self._authorization
            if not stale and self._challenge is not None:
                await self._authorize(self._challenge, stale)
            sent = dict(headers or {})
            if self._authorization:
                sent["Authorization"] = self._authorization
            try:
                async with self._http.request(method, url, headers=sent, ssl=self._tls) as answer:
                    if answer.status == 401 and attempt == 0:
                        challenge = _pick(parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
                        if challenge is not None:
                            await answer.read()
                            await self._authorize(challenge, self._authorization)
                            continue
                    if answer.status >= 400:
                        raise refusal(self._ref, method, str(url), answer.status, await _errors(answer))
                    yield answer
                    return
            except (aiohttp.ClientError, TimeoutError, OSError) as err:
                raise unreachable(method.capitalize(), str(url), err) from err

    async def _authorize(self, challenge: Challenge, stale: str) -> None:
        """Get (anew, unless someone else just did) what to send as Authorization."""
        async with self._token_lock:
            if self._authorization != stale:
                return
            auth = self._auth
            if auth is not None and auth.registry_token:
                self._authorization = f"Bearer {auth.registry_token}"
            elif challenge.scheme == "basic":
                if auth is None or not auth.username:
                    raise RegistryDenied(
                        f'Head "{self._base}/v2/{self._ref.path}/manifests/{self._ref.version}": '
                        "no basic auth credentials"
                    )
                self._authorization = basic(auth)
            else:
                self._authorization = f"Bearer {await self._token(challenge, auth)}"

    async def _token(self, challenge: Challenge, auth: RegistryAuth | None) -> str:
        """Ask the token server (distribution's token and OAuth2 protocols)."""
        realm = urlsplit(challenge.realm)
        if realm.scheme not in ("http", "https") or not realm.netloc:
            raise RegistryUnreachable(f"the registry {self._endpoint.host} names no usable token server")
        scope = challenge.scope or f"repository:{self._ref.path}:pull"
        params = {"service": challenge.service, "scope": scope} if challenge.service else {"scope": scope}
        where = f"{realm.scheme}://{realm.netloc}{realm.path}"
        try:
            if auth is not None and auth.identity_token:
                form = {
                    **params, "grant_type": "refresh_token", "refresh_token": auth.identity_token,
                    "client_id": _CLIENT_ID,
                }
                request = self._http.post(challenge.realm, data=form, ssl=self._tls)
            else:
                headers = {}
                if auth is not None and auth.username:
                    params["account"] = auth.username
                    headers["Authorization"] = basic(auth)
                request = self._http.get(challenge.realm, params=params, headers=headers, ssl=self._tls)
            async with request as answer:
                raw = await _read_some(answer, _MAX_TOKEN_BYTES)
                if answer.status in (401, 403):
                    raise RegistryDenied(f'Get "{where}": unauthorized: incorrect username or password')
                if answer.status >= 400:
                    raise RegistryUnreachable(f'Get "{where}": unexpected HTTP status {answer.status}')
                token = msgspec.json.decode(raw, type=_Token)
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise unreachable("Get", where, err) from err
        except msgspec.DecodeError:
            raise RegistryUnreachable(f'Get "{where}": the token server\'s answer makes no sense') from None
        if not (token.token or token.access_token):
            raise RegistryUnreachable(f'Get "{where}": the token server sent no token')
        return token.token or token.access_token


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _ErrorEntry(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorEntry, ...] = ()


def refusal(ref: Reference, method: str, url: str, status: int, entries: Sequence[tuple[str, str]]) -> SwarmletError:
    """A registry's error answer in dockerd's words. entries: (code, message) from the body, if there was one."""
    code, message = entries[0] if entries else ("", "")
    detail = f"{code.lower().replace('_', ' ')}: {message}" if code else f"unexpected HTTP status {status}"
    if code == "MANIFEST_UNKNOWN" or (status == 404 and not code and "/manifests/" in url):
        detail = detail if code else "manifest unknown: manifest unknown"
        return NotFound("manifest", ref.familiar, f"manifest for {ref.familiar} not found: {detail}")
    if code == "NAME_UNKNOWN":
        return NotFound("repository", ref.familiar_name, f"repository {ref.familiar_name} not found: {detail}")
    if code == "DENIED" or status == 403 or (status == 401 and ref.domain == "docker.io"):
        return NotFound(
            "repository", ref.familiar_name,
            f"pull access denied for {ref.familiar_name}, repository does not exist or may require 'docker login': "
            f"denied: {message or 'requested access to the resource is denied'}",
        )
    if status == 401:
        return RegistryDenied(f'{method.capitalize()} "{url}": {detail if code else "unauthorized"}')
    if status == 429:
        return RegistryUnreachable(f"toomanyrequests: {message or 'the registry limits the rate of requests'}")
    if status == 404:
        return NotFound("blob", url, detail)
    return RegistryUnreachable(f'{method.capitalize()} "{url}": {detail}')


def unreachable(method: str, url: str, err: BaseException) -> RegistryUnreachable:
    """A connection's failure in the words of Go's net package."""
    return RegistryUnreachable(f'{method} "{url}": {_reason(url, err)}')


def _reason(url: str, err: BaseException) -> str:
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    host = address.hostname or ""
    match err:
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {host}: no such host"
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: x509: {err.certificate_error}"
        case aiohttp.ClientConnectorSSLError() if "WRONG_VERSION_NUMBER" in str(err) or "RECORD_LAYER" in str(err):
            return "http: server gave HTTP response to HTTPS client"
        case aiohttp.ClientConnectorSSLError():
            return f"tls: {err}"
        case aiohttp.ClientConnectorError():
            reason = (err.os_error.strerror or str(err.os_error)) if err.os_error else str(err)
            reason = reason.partition("[")[0].strip() if reason.startswith("Connect call failed") else reason
            return f"dial tcp {host}:{port}: connect: {_plain(err.os_error, reason)}"
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return f"dial tcp {host}:{port}: i/o timeout"
        case aiohttp.ServerDisconnectedError():
            return "EOF"
        case _:
            return str(err) or type(err).__name__


def _plain(err: OSError | None, otherwise: str) -> str:
    """asyncio words connection errors in its own way; the kernel's text is what people search for."""
    if err is not None and err.errno is not None and err.errno > 0:
        return os.strerror(err.errno).lower()
    return otherwise.lower()


def _pick(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer before Basic, as Docker has it."""
    return min(challenges, key=lambda challenge: challenge.scheme != "bearer", default=None)


def _unverified() -> ssl.SSLContext:
    """TLS to a registry that the operator listed as insecure."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _same_repository(url: str, prefix: str) -> str | None:
    """The part of a next-page link below the repository; None if it leads elsewhere."""
    parts = urlsplit(url)
    if prefix not in parts.path:
        return None
    path = parts.path.split(prefix, 1)[1]
    return f"{path}?{parts.query}" if parts.query else path


async def _read_some(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, but no more than a little over `limit` bytes of it."""
    data = b""
    async for piece in answer.content.iter_any():
        data += piece
        if len(data) > limit:
            break
    return data


async def _errors(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    raw = await _read_some(answer, _MAX_ERROR_BYTES)
    try:
        body: Any = msgspec.json.decode(raw, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [(entry.code, entry.message) for entry in body.errors]
