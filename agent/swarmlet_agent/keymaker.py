"""Keys are made in a process of a moment: the library for it would stay with the agent, which needs it twice a year.

What is said goes over pipes: no key is ever in an argument, in the environment or on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from swarmlet.errors import Internal
from swarmlet_agent.net.wireguard.plan import WayKeys

T = TypeVar("T")
_TIMEOUT_S = 60.0


async def new_request() -> tuple[str, str]:
    """(CSR, key), PEM: see `swarmlet.issuing.new_request`. Internal if the process fails."""
    return await _ask("request", b"", tuple[str, str])


async def way_keys(private: Sequence[bytes], *, new: int = 0) -> list[WayKeys]:
    """X25519 keys with their public halves: of these private ones, and `new` fresh ones behind them. Internal."""
    if not private and not new:
        return []
    return await _ask("ways", msgspec.msgpack.encode([*private, *[None] * new]), list[WayKeys])


async def _ask(what: str, told: bytes, answer: type[T]) -> T:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "swarmlet_agent.keymaker_process", what,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            said, complaint = await process.communicate(told)
    except TimeoutError as err:
        raise Internal(f"no key was made in {_TIMEOUT_S:.0f} s: is this host overloaded?") from err
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        reason = complaint.decode(errors="replace").strip().rpartition("\n")[2] or f"code {process.returncode}"
        raise Internal(f"no key could be made: {reason}")
    return msgspec.msgpack.decode(said, type=answer)
