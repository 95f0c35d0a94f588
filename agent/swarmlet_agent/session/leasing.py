"""What the session says of leases, and hears: one line of messages, in the order in which things happened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from swarmlet.errors import Unavailable
from swarmlet.model.network import Lease
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld

#: How long an ask waits for a manager and its answer, over as many sessions as it takes.
ASK_S = 10.0


class LeaseLine:
    """One per session object. held: all that this node holds now; wake: there is something to send."""

    def __init__(
        self, held: Callable[[], Sequence[Lease]], wake: Callable[[], None], connected: asyncio.Event
    ) -> None:
        self._held = held
        self._wake = wake
        self._connected = connected
        #: Not longer than what happens between two sessions' sends: without a session nothing is put in.
        self._out: deque[LeaseAsk | LeasesHeld] = deque()
        self._asking: dict[str, tuple[LeaseAsk, asyncio.Future[LeaseAnswer]]] = {}

    async def ask(self, ask: LeaseAsk) -> LeaseAnswer:
        """The manager's answer. Unavailable if none comes in time; then, or if this is cancelled, `release` it."""
        answer: asyncio.Future[LeaseAnswer] = asyncio.get_running_loop().create_future()
        self._asking[ask.id] = (ask, answer)
        self._say(ask)
        try:
            async with asyncio.timeout(ASK_S):
                return await answer
        except TimeoutError:
            raise Unavailable("no manager of the cluster can be reached") from None
        finally:
            del self._asking[ask.id]

    def hold(self, lease: Lease) -> None:
        """Something about a lease has changed."""
        self._say(LeasesHeld(held=(lease,)))

    def release(self, *idents: str) -> None:
        self._say(LeasesHeld(released=idents))

    def begin(self) -> None:
        """A new session: everything is stated, what is still asked for is asked again."""
        self._out.clear()
        self.restate()
        self._out.extend(ask for ask, _ in self._asking.values())

    def restate(self) -> None:
        self._out.append(LeasesHeld(full=True, held=tuple(self._held()), asking=tuple(self._asking)))

    def take(self) -> LeaseAsk | LeasesHeld | None:
        """What to send next."""
        return self._out.popleft() if self._out else None

    def answered(self, answer: LeaseAnswer) -> None:
        """An answer that nobody waits for any more is to something that has been released."""
        if (asked := self._asking.get(answer.id)) is not None and not asked[1].done():
            asked[1].set_result(answer)

    def _say(self, message: LeaseAsk | LeasesHeld) -> None:
        if self._connected.is_set():  # else the next session begins with all of it
            self._out.append(message)
            self._wake()
