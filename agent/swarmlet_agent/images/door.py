"""The way into one registry: plain or encrypted, and proving who asks (Basic, Bearer tokens).

What is asked for behind it is others' business: repositories (registry.py, target.py), login and search.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from swarmlet.errors import SwarmletError
from swarmlet_agent.images.auth import Challenge, basic, parse_challenges
from swarmlet_agent.images.certificates import tls_of
from swarmlet_agent.images.endpoints import Endpoint
from swarmlet_agent.images.patience import retry_after
from swarmlet_agent.images.proxies import proxy_for
from swarmlet_agent.images.refusals import (
    Entries,
    RegistryDenied,
    RegistryUnreachable,
    push_refusal,
    unreachable,
)
from swarmlet_agent.images.types import RegistryAuth

_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 1 << 20
_CLIENT_ID = "swarmlet"

#: (method, url, status, the body's entries, challenges) -> the error to raise.
Refuse = Callable[[str, str, int, Entries, Sequence[Challenge]], SwarmletError]


class Door:
    """One registry at one endpoint, and one asker."""

    def __init__(
        self, http: aiohttp.ClientSession, endpoint: Endpoint, auth: RegistryAuth | None,
        scopes: Sequence[str] = (), *, certificates: Path, refuse: Refuse = push_refusal, asking_for: str = "",
    ) -> None:
        """scopes: what tokens are asked for. asking_for: a path to name when credentials are missing.

        certificates: the folder of registries' certificates (see certificates.py).
        """
        self._http, self._endpoint, self._auth, self._certificates = http, endpoint, auth, certificates
        self._scopes, self._refuse, self._asking_for = tuple(scopes), refuse, asking_for
        self.base = ""
        #: The OAuth2 refresh token that came along with a token, if `offline` was asked for.
        self.refresh_token = ""
        self._offline = False
        self._tls: ssl.SSLContext | bool = True
        self._challenge: Challenge | None = None
        self._authorization = ""
        self._token_lock = asyncio.Lock()

    @property
    def is_mirror(self) -> bool:
        return self._endpoint.is_mirror

    async def connect(self) -> None:
        """Find out how the registry is spoken to. RegistryUnreachable with the reason."""
        error: SwarmletError | None = None
        for scheme in ("https", "http") if self._endpoint.insecure else (self._endpoint.scheme,):
            base = f"{scheme}://{self._endpoint.host}{self._endpoint.prefix}"
            self._tls = scheme == "http" or await tls_of(
                self._certificates, self._endpoint.host, insecure=self._endpoint.insecure
            )
            try:
                async with self._http.get(f"{base}/v2/", ssl=self._tls, proxy=proxy_for(base)) as answer:
                    await read_some(answer, _MAX_ERROR_BYTES)
                    if answer.status >= 500 and answer.status != 501:
                        raise RegistryUnreachable(
                            f"received unexpected HTTP status: {answer.status} {answer.reason or ''}".rstrip()
                        )
                    self._challenge = _pick(_challenges(answer))
                    self.base = base
                    return
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
                error = unreachable("Get", f"{base}/v2/", err)
        assert error is not None
        raise error

    async def login(self) -> str:
        """Prove who asks, if the registry wants to know. Returns a refresh token if it gives one, else "".

        Unauthorized in its words; RegistryUnreachable.
        """
        self._offline = True
        async with self.request("GET", self.url("/v2/"), refuse=_login_refusal) as answer:
            await read_some(answer, _MAX_ERROR_BYTES)
        return self.refresh_token

    def url(self, path_qs: str) -> URL:
        # encoded=True: a digest's colon must stay as it is.
        return URL(self.base + path_qs, encoded=True)

    def follow(self, location: str, base: URL) -> URL:
        """A Location header's URL, relative or not. Plain HTTP to the host itself is taken for a proxy's slip."""
        url = base.join(URL(location, encoded=True))
        home = URL(self.base)
        if home.scheme == "https" and url.scheme == "http" and url.host == home.host:
            return URL(str(url).replace("http:", "https:", 1), encoded=True)
        return url

    @asynccontextmanager
    async def request(
        self, method: str, url: URL, *, headers: dict[str, str] | None = None,
        body: Callable[[], Any] | None = None, refuse: Refuse | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, authorised as the registry asks; errors as ours. body() is called for each attempt."""
        for attempt in range(2):
            sent = dict(headers or {})
            # A registry may send uploads elsewhere; what proves who we are is for the registry alone.
            at_home = url.origin() == URL(self.base).origin()
            if at_home:
                if not self._authorization and self._challenge is not None:
                    await self._authorize(self._challenge, "")
                if self._authorization:
                    sent["Authorization"] = self._authorization
            stale = self._authorization
            try:
                async with self._http.request(
                    method, url, headers=sent, data=body() if body else None, ssl=self._tls,
                    allow_redirects=method in ("GET", "HEAD"), proxy=proxy_for(str(url)),
                ) as answer:
                    challenges = _challenges(answer)
                    if answer.status == 401 and attempt == 0 and at_home and (wanted := _pick(challenges)) is not None:
                        await read_some(answer, _MAX_ERROR_BYTES)
                        await self._authorize(wanted, stale)
                        continue
                    if answer.status >= 300:
                        entries = await _errors(answer)
                        refused = (refuse or self._refuse)(method, str(url), answer.status, entries, challenges)
                        if isinstance(refused, RegistryUnreachable):
                            wait = answer.headers.get("Retry-After", "")
                            refused.retry_after_s = retry_after(wait, datetime.now(UTC))
                        raise refused
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
                    where = f'Head "{self.base}{self._asking_for}": ' if self._asking_for else ""
                    raise RegistryDenied(f"{where}no basic auth credentials")
                self._authorization = basic(auth)
            else:
                self._authorization = f"Bearer {await self._token(challenge, auth)}"

    async def _token(self, challenge: Challenge, auth: RegistryAuth | None) -> str:
        """Ask the token server (distribution's token and OAuth2 protocols)."""
        realm = urlsplit(challenge.realm)
        if realm.scheme not in ("http", "https") or not realm.netloc:
            raise RegistryUnreachable(f"the registry {self._endpoint.host} names no usable token server")
        where = f"{realm.scheme}://{realm.netloc}{realm.path}"
        try:
            async with self._ask_token(challenge, auth) as answer:
                raw = await read_some(answer, _MAX_TOKEN_BYTES)
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
        self.refresh_token = token.refresh_token
        return token.token or token.access_token

    def _ask_token(self, challenge: Challenge, auth: RegistryAuth | None) -> Any:
        scopes, proxy = list(dict.fromkeys([*self._scopes, *challenge.scope.split()])), proxy_for(challenge.realm)
        service = [("service", challenge.service)] if challenge.service else []
        if auth is not None and auth.identity_token:
            form = dict(
                [*service, ("grant_type", "refresh_token"), ("refresh_token", auth.identity_token),
                 ("client_id", _CLIENT_ID), *([("scope", " ".join(scopes))] if scopes else [])]
            )
            return self._http.post(challenge.realm, data=form, ssl=self._tls, proxy=proxy)
        params = [*service, *(("scope", scope) for scope in scopes)]
        headers = {}
        if auth is not None and auth.username:
            params.append(("account", auth.username))
            headers["Authorization"] = basic(auth)
        if self._offline:
            params += [("offline_token", "true"), ("client_id", _CLIENT_ID)]
        return self._http.get(challenge.realm, params=params, headers=headers, ssl=self._tls, proxy=proxy)


def _login_refusal(
    method: str, url: str, status: int, entries: Entries, challenges: Sequence[Challenge]
) -> SwarmletError:
    names = {401: " Unauthorized", 403: " Forbidden", 404: " Not Found"}
    words = f"login attempt to {url} failed with status: {status}{names.get(status, '')}"
    return RegistryDenied(words) if status in (401, 403) else RegistryUnreachable(words)


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""


class _ErrorEntry(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorEntry, ...] = ()


def _challenges(answer: aiohttp.ClientResponse) -> list[Challenge]:
    return parse_challenges(answer.headers.getall("WWW-Authenticate", []))


def _pick(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer before Basic, as Docker has it."""
    return min(challenges, key=lambda challenge: challenge.scheme != "bearer", default=None)


async def read_some(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, but no more than a little over `limit` bytes of it."""
    data = b""
    async for piece in answer.content.iter_any():
        data += piece
        if len(data) > limit:
            break
    return data


async def _errors(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    raw = await read_some(answer, _MAX_ERROR_BYTES)
    try:
        body: Any = msgspec.json.decode(raw, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [(entry.code, entry.message) for entry in body.errors]
