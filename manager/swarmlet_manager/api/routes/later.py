"""What clients ask for as a matter of course and this version has none of: secrets and configs.

Lists are empty, which is true; creating is refused with a clear message.
"""

from __future__ import annotations

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import NotFound, NotSupported


class LaterRoutes:
    def routes(self) -> list[Route]:
        return [
            route
            for kind in ("secrets", "configs")
            for route in (
                Route("GET", f"/{kind}", self.nothing),
                Route("POST", f"/{kind}/create", self.refuse),
                Route("GET", f"/{kind}/{{id}}", self.unknown),
                Route("DELETE", f"/{kind}/{{id}}", self.unknown),
                Route("POST", f"/{kind}/{{id}}/update", self.unknown),
            )
        ]

    async def nothing(self, call: Call) -> web.Response:
        return json_answer([])

    async def refuse(self, call: Call) -> web.Response:
        kind = call.path.split("/")[1]
        raise NotSupported(f"{kind} are not supported yet")

    async def unknown(self, call: Call) -> web.Response:
        kind = call.path.split("/")[1].removesuffix("s")
        raise NotFound(kind, call.params["id"], f"{kind} {call.params['id']} not found")
