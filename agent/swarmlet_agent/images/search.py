"""docker search: Docker Hub's search, or the catalogue of any other registry (`registry:port/term`)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.auth import basic
from swarmlet_agent.images.door import Door, read_some
from swarmlet_agent.images.proxies import proxy_for
from swarmlet_agent.images.reference import DOCKER_HUB
from swarmlet_agent.images.refusals import RegistryUnreachable, unreachable
from swarmlet_agent.images.registry import Registries
from swarmlet_agent.images.types import RegistryAuth

_HUB_SEARCH = "https://index.docker.io/v1/search"
_FILTERS = ("is-automated", "is-official", "stars")
_DEFAULT_LIMIT = 25
_MAX_LIMIT = 100
_MAX_BYTES = 8 << 20
#: Names of a registry that are looked through: its catalogue cannot be searched, only read.
_PAGE = 1000
_MAX_PAGES = 100


class Found(msgspec.Struct, frozen=True, omit_defaults=False):
    """Engine API: one item of ImageSearch's answer."""

    description: str = ""
    is_official: bool = False
    is_automated: bool = False
    name: str = ""
    star_count: int = 0


class _Results(msgspec.Struct, frozen=True):
    results: tuple[Found, ...] = ()


class _Catalogue(msgspec.Struct, frozen=True):
    repositories: tuple[str, ...] | None = None


async def search(
    registries: Registries, term: str, *, limit: int, filters: Filters, auth: RegistryAuth | None
) -> list[dict[str, Any]]:
    """ImageSearch. limit 0: the default. InvalidArgument for bad arguments; RegistryDenied, RegistryUnreachable."""
    if not 0 <= limit <= _MAX_LIMIT:
        raise InvalidArgument(f"limit {limit} is outside the range of [1, {_MAX_LIMIT}]")
    if "://" in term:
        raise InvalidArgument(f"invalid repository name: repository name ({term}) should not have a scheme")
    if not term.strip():
        raise InvalidArgument("invalid search: the term is empty")
    limit = limit or _DEFAULT_LIMIT
    chosen = _Chosen(filters)
    domain, rest = split_term(term)
    if domain == DOCKER_HUB:
        found = [one for one in await _hub(registries.http, rest, limit, auth) if chosen.fits(one)]
    else:
        door = await registries.door(domain, auth, ["registry:catalog:*"])
        found = await _catalogue(door, domain, rest, limit, chosen)
    return [msgspec.to_builtins(one) for one in found[:limit]]


def split_term(term: str) -> tuple[str, str]:
    """(registry, what to look for): the first segment is a registry if it looks like a host, as in image names."""
    first, slash, rest = term.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return DOCKER_HUB, term.removeprefix("library/")
    if first in (DOCKER_HUB, "index.docker.io"):
        return DOCKER_HUB, rest.removeprefix("library/")
    return first, rest


class _Chosen:
    """The filters of a search. InvalidArgument in dockerd's words."""

    def __init__(self, filters: Filters) -> None:
        filters.check(*_FILTERS)
        self._official, self._automated = filters.flag("is-official"), filters.flag("is-automated")
        try:
            self._stars = max((int(value) for value in filters.get("stars")), default=0)
        except ValueError:
            raise InvalidArgument(f"invalid filter 'stars=[{' '.join(filters.get('stars'))}]'") from None

    def fits(self, one: Found) -> bool:
        return (
            self._official in (None, one.is_official) and self._automated in (None, one.is_automated)
            and one.star_count >= self._stars
        )


async def _hub(http: aiohttp.ClientSession, term: str, limit: int, auth: RegistryAuth | None) -> list[Found]:
    url = f"{_HUB_SEARCH}?{urlencode({'q': term, 'n': limit})}"
    headers = {"Authorization": basic(auth)} if auth is not None and auth.username else {}
    try:
        async with http.get(url, headers=headers, proxy=proxy_for(url)) as answer:
            raw = await read_some(answer, _MAX_BYTES)
            if answer.status != 200:
                raise RegistryUnreachable(f"Unexpected status code {answer.status}")
            return list(msgspec.json.decode(raw, type=_Results).results)
    except (aiohttp.ClientError, TimeoutError, OSError) as err:
        raise unreachable("Get", url, err) from err
    except msgspec.DecodeError as err:
        raise RegistryUnreachable(f"Docker Hub's answer makes no sense: {err}") from err


async def _catalogue(door: Door, domain: str, term: str, limit: int, chosen: _Chosen) -> list[Found]:
    """Repositories whose name has the term in it; exact matches and short names first among those looked at."""
    await door.connect()
    names: list[str] = []
    path: str | None = f"/v2/_catalog?n={_PAGE}"
    for _ in range(_MAX_PAGES):
        if path is None or len(names) >= limit:
            break
        async with door.request("GET", door.url(path)) as answer:
            raw = await read_some(answer, _MAX_BYTES)
            try:
                page = msgspec.json.decode(raw, type=_Catalogue)
            except msgspec.DecodeError as err:
                raise RegistryUnreachable(f"the registry's catalogue makes no sense: {err}") from err
            names += [name for name in page.repositories or () if term.lower() in name.lower()]
            link = answer.links.get("next")
            path = _next_page(str(link["url"])) if link else None
    names.sort(key=lambda name: (name != term, len(name), name))
    return [one for name in names if chosen.fits(one := Found(name=f"{domain}/{name}"))]


def _next_page(url: str) -> str | None:
    """Only ever the catalogue of the same registry, wherever a link may point."""
    parts = urlsplit(url)
    return f"/v2/_catalog?{quote(parts.query, safe='=&%/+:@')}" if parts.path.endswith("/v2/_catalog") else None
