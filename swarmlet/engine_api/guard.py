"""Who may ask: routes that answer to certificates of managers only."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from swarmlet.engine_api.router import Call, Handler, Route
from swarmlet.model.states import Role
from swarmlet.tls import require_role


def for_managers(routes: Iterable[Route]) -> list[Route]:
    """The same routes; 401 without a certificate, 403 for one that is not a manager's."""

    def guarded(handler: Handler) -> Handler:
        async def check(call: Call) -> web.StreamResponse:
            require_role(call.request.transport, (Role.MANAGER,))
            return await handler(call)

        return check

    # Without their quick answers, which are given before anybody is asked who he is.
    return [Route(route.method, route.template, guarded(route.handler)) for route in routes]
