"""Short commands of the host, asked for what they print."""

from __future__ import annotations

import asyncio
import contextlib


async def output_of(*command: str, timeout_s: float) -> bytes:
    """What it prints, whatever its exit status. OSError if it cannot run; TimeoutError: it has been ended."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except BaseException:  # cancelled, too: undo, and pass it on
        # One that has just ended cannot be killed: that error would take the place of the cancellation.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return output
