"""In front of the routes of the cluster view: what this manager may not serve itself is passed on to the leader.

Followers read from their own state once it has caught up with what was acknowledged anywhere, and pass writes on
(ADR 22). What to do with one request is `decide/passing.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Protocol

from aiohttp import web

from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.errors import answer
from swarmlet.engine_api.router import Call, Handler, Route
from swarmlet.errors import Unavailable
from swarmlet.log import get_logger
from swarmlet.wire.passing import NOT_TAKEN, PASSED_ON_FOR
from swarmlet_manager.api.needs import Need, need_of
from swarmlet_manager.decide.passing import PassOn, Refuse, Serve, Standing, Wait, next_step
from swarmlet_manager.fleet.leader import NotTaken
from swarmlet_manager.store.election import Leader, NotLeader

log = get_logger(__name__)

#: Between two looks for a leader that takes the request, if none is elected meanwhile.
AGAIN_S = 0.2


class Seat(Protocol):
    """What the store knows of the leadership."""

    @property
    def leader(self) -> bool: ...

    @property
    def other_leader(self) -> Leader | None: ...

    def healthy(self) -> bool: ...

    async def catch_up(self) -> None: ...

    def leadership_moved(self) -> Awaitable[object]: ...


class Line(Protocol):
    """The way to the leader (`fleet.leader`)."""

    async def pass_on(self, call: Call, leader: str, body: bytes) -> web.StreamResponse:
        """NotTaken; Unavailable if the request may have been carried out."""
        ...


class Passing:
    def __init__(self, seat: Seat, line: Line) -> None:
        self._seat = seat
        self._line = line

    def routes(self, routes: Iterable[Route]) -> list[Route]:
        """The same routes, each served where it can be."""
        return [replace(route, handler=self._placed(route, need_of(route.method, route.template))) for route in routes]

    def _placed(self, route: Route, need: Need) -> Handler:
        handler = route.handler
        match need:
            case Need.HERE:
                return handler
            case Need.CURRENT:
                return lambda call: self._current(call, handler)
            case Need.LEADER:
                return lambda call: self._led(call, handler)

    async def _current(self, call: Call, handler: Handler) -> web.StreamResponse:
        await self._seat.catch_up()
        return await handler(call)

    async def _led(self, call: Call, handler: Handler) -> web.StreamResponse:
        """What the leader answers, this manager or another. It may take several attempts: the body is kept."""
        body = await call.body()
        call = replace(call, kept_body=body)
        if PASSED_ON_FOR in call.request.headers:
            return await self._taken(call, handler)
        began, failure = asyncio.get_running_loop().time(), ""
        while True:
            waited_s = asyncio.get_running_loop().time() - began
            match next_step(self._standing(), passed_on=False, failure=failure, waited_s=waited_s):
                case Serve():
                    try:
                        return await handler(call)
                    except NotLeader as err:
                        failure = str(err)
                case PassOn(leader):
                    try:
                        async with WhileConnected(call.request):
                            return await self._line.pass_on(call, leader, body)
                    except NotTaken as err:
                        failure = str(err)
                case Wait():
                    pass
                case Refuse(reason):
                    raise Unavailable(reason)
            await self._pause(call)

    async def _taken(self, call: Call, handler: Handler) -> web.StreamResponse:
        """What another manager has passed on: served, or said to be not taken."""
        match next_step(self._standing(), passed_on=True, failure="", waited_s=0):
            case Refuse(reason):
                return _not_taken(reason)
            case _:
                try:
                    return await handler(call)
                except NotLeader as err:
                    return _not_taken(str(err))

    async def _pause(self, call: Call) -> None:
        with contextlib.suppress(TimeoutError):
            async with WhileConnected(call.request), asyncio.timeout(AGAIN_S):
                await self._seat.leadership_moved()

    def _standing(self) -> Standing:
        seat, other = self._seat, self._seat.other_leader
        return Standing(seat.leader, other.addr if other is not None else "", seat.healthy())


def _not_taken(reason: str) -> web.StreamResponse:
    refusal = answer(Unavailable(reason))
    refusal.headers[NOT_TAKEN] = "1"
    return refusal
