"""Work that blocks for as long as somebody else likes: in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def own_thread(work: Callable[[], T], name: str, *, daemon: bool = False) -> T:
    """In a new thread, which ends with the work: for what waits for somebody else, or changes what its thread is.

    The loop's shared threads are few; clients or servers that stall must not occupy them. Being cancelled does not end
    it. daemon: nor does the process wait for it at its own end.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as err:  # raised again where it is awaited
            error = err
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=name, daemon=daemon).start()
    return await done
