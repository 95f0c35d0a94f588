"""Which images a list or prune call means: the filters of GET /images/json and POST /images/prune. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from swarmlet.engine_api.filters import Filters, moments_of
from swarmlet.errors import InvalidArgument
from swarmlet.model.times import parse_timestamp
from swarmlet_agent.images.durations import parse_duration
from swarmlet_agent.images.globs import compile_pattern
from swarmlet_agent.images.reference import parse_reference
from swarmlet_agent.images.types import Image

LIST_FILTERS = ("dangling", "label", "before", "since", "reference", "until")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")


def select(images: Sequence[Image], filters: Filters, find: Callable[[str], Image], now: int) -> list[Image]:
    """Those that fit, newest first. find looks an image up by reference (NotFound comes through); now in ns."""
    filters.check(*LIST_FILTERS)
    dangling = filters.flag("dangling")
    before = moments_of(filters, "before", lambda ref: find(ref).created)
    since = moments_of(filters, "since", lambda ref: find(ref).created)
    until = min((until_ns(text, now) for text in filters.get("until")), default=None)
    found = [
        image for image in images
        if (dangling is None or _fits_dangling(image, dangling))
        and filters.matches_labels(image.config.labels)
        and all(image.created < at for at in before)
        and all(image.created > at for at in since)
        and (until is None or image.created < until)
        and ("reference" not in filters or matching_names(image, filters.get("reference")))
    ]
    return sorted(found, key=lambda image: (-image.created, image.id))


def is_dangling(image: Image) -> bool:
    """Without a tag. A digest does not count: it stays behind when a tag moves on."""
    return not image.repo_tags


def _fits_dangling(image: Image, wanted: bool) -> bool:
    """dockerd's list: "false" still shows what was pulled by digest alone."""
    return is_dangling(image) if wanted else bool(image.repo_tags or image.repo_digests)


def matching_names(image: Image, patterns: Sequence[str]) -> tuple[str, ...]:
    """The image's tags and digests that one of the patterns fits."""
    return tuple(
        name for name in (*image.repo_tags, *image.repo_digests)
        if any(matches_reference(pattern, name) for pattern in patterns)
    )


def matches_reference(pattern: str, name: str) -> bool:
    """A pattern (Go's path.Match) against "name:tag" or the repository's name alone."""
    ref = parse_reference(name)
    matcher = _glob(pattern)
    return matcher.fullmatch(ref.familiar) is not None or matcher.fullmatch(ref.familiar_name) is not None


def until_ns(text: str, now: int) -> int:
    """A time, or a duration before now. InvalidArgument if it is neither."""
    try:
        return now - parse_duration(text)
    except ValueError:
        try:
            return parse_timestamp(text)
        except (ValueError, OverflowError) as err:
            raise InvalidArgument(f'failed to parse value as time or duration: "{text}"') from err


@lru_cache(maxsize=64)
def _glob(pattern: str) -> re.Pattern[str]:
    try:
        return compile_pattern(pattern)
    except InvalidArgument as err:
        raise InvalidArgument(f"invalid filter 'reference={pattern}': syntax error in pattern") from err
