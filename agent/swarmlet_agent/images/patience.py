"""How long a registry is given before it is asked again, and how often that is done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from swarmlet_agent.images.refusals import RegistryUnreachable

T = TypeVar("T")

#: Attempts in a row that fail before a transfer is given up (dockerd: 5, down and up).
MAX_ATTEMPTS = 5
#: A registry that wants to be left alone for longer (Docker Hub's limits last hours) is not waited for.
MAX_WAIT_S = 60.0
_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 10.0


def retry_after(header: str, now: datetime) -> float:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3); 0 for none, or one that makes no sense."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())


def pause(failures: int, err: RegistryUnreachable) -> float:
    """Seconds until the next attempt after so many failures: longer each time, never less than the registry wants.

    Raises the error itself if that is too long.
    """
    if err.retry_after_s > MAX_WAIT_S:
        raise err
    backoff = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
    return max(backoff, err.retry_after_s)


def retrying(seconds: float) -> str:
    """In dockerd's words."""
    whole = max(1, round(seconds))
    return f"Retrying in {whole} second{'s' if whole != 1 else ''}"


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """Again, a little later each time, while the registry cannot be reached."""
    return await _again(ask, lambda _err: True)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Again if the registry has said when; any other trouble comes through at once."""
    return await _again(ask, lambda err: err.retry_after_s > 0)


async def _again(ask: Callable[[], Awaitable[T]], worth: Callable[[RegistryUnreachable], bool]) -> T:
    failures = 0
    while True:
        try:
            return await ask()
        except RegistryUnreachable as err:
            failures += 1
            if failures >= MAX_ATTEMPTS or not worth(err):
                raise
            await asyncio.sleep(pause(failures, err))
