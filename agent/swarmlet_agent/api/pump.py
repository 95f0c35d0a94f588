"""Carrying bytes between one client and a process: attach and exec, over a hijacked connection or a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Protocol

from swarmlet.engine_api.streams import STDERR, STDOUT, frame
from swarmlet_agent.api.detach import DetachKeys
from swarmlet_agent.engine.ports import Streams

#: How long the end of stdin is waited for when its client has gone.
STDIN_CLOSE_S = 1.0


class Client(Protocol):
    """The client's end; `closed` is set once it has gone."""

    closed: asyncio.Event

    async def read(self) -> bytes:
        """b"" once it has ended its input or gone."""
        ...

    async def write(self, data: bytes) -> None:
        """ConnectionResetError once it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class PumpPlan:
    """What goes which way.

    framed: output in multiplexed frames (False: raw, for a terminal or a WebSocket). ends_stdin: the end of the
    client's input ends the process's; otherwise it ends the attachment. detach_keys: b"" where there are none.
    """

    stdout: bool
    stderr: bool
    stdin: bool
    framed: bool
    ends_stdin: bool
    detach_keys: bytes = b""


async def pump(client: Client, streams: Streams, plan: PumpPlan) -> bool:
    """Until the process's output ends, the client goes, or it detaches (True). Closes `streams`, not the client.

    Neither side is read faster than the other takes it; nothing is buffered here.
    """
    output = asyncio.ensure_future(_output(client, streams, plan))
    gone = asyncio.ensure_future(client.closed.wait())
    inputs = asyncio.ensure_future(_input(client, streams, plan)) if plan.stdin else None
    tasks: set[asyncio.Future[bool]] = {task for task in (output, gone, inputs) if task is not None}
    detached = False
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if output in done:
                _raise_unless_gone(output)
                break
            if inputs in done and inputs is not None:
                detached = inputs.result()
                if detached or not plan.ends_stdin:
                    break
            if gone in done:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if inputs is not None and plan.ends_stdin and inputs.cancelled():
            # A client that went away has ended its input too. A process that has not started has none to end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STDIN_CLOSE_S):
                    await streams.close_stdin()
        await streams.close()
    return detached


def _raise_unless_gone(task: asyncio.Future[bool]) -> None:
    error = task.exception()
    if error is not None and not isinstance(error, ConnectionResetError):
        raise error


async def _output(client: Client, streams: Streams, plan: PumpPlan) -> bool:
    wanted = {STDOUT: plan.stdout, STDERR: plan.stderr}
    async for stream, data in streams:
        # What nobody wants is still read: the process must not stop because of it.
        if wanted.get(stream, False):
            await client.write(frame(stream, data) if plan.framed else data)
    return False


async def _input(client: Client, streams: Streams, plan: PumpPlan) -> bool:
    """True once the client typed the detach keys."""
    keys = DetachKeys(plan.detach_keys) if plan.detach_keys else None
    while data := await client.read():
        detach = False
        if keys is not None:
            data, detach = keys.feed(data)
        if data:
            await streams.write(data)
        if detach:
            return True
    if plan.ends_stdin:
        await streams.close_stdin()
    return False
