"""Joining over HTTP (see swarmlet/wire/joining.py for the exchange)."""

from __future__ import annotations

import ipaddress

import msgspec
from aiohttp import web

from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.states import Role
from swarmlet.tls import require_role
from swarmlet.wire import joining
from swarmlet.wire.joining import Certificate, JoinRequest, RenewRequest
from swarmlet.wire.passing import PASSED_ON_FOR
from swarmlet_manager.ca.authority import Authority

MAX_HOSTNAME = 253


class JoinRoutes:
    """For the TLS port, where a client may come without a certificate; `local_routes` for the unix socket.

    more_managers: whether a host may join as a manager (not while etcd is this manager's own single member).
    own_addr: "host:port" of this manager; its host's node has it from the start, as `docker swarm init` looks there.
    """

    def __init__(self, authority: Authority, *, more_managers: bool, own_addr: str = "") -> None:
        self._authority = authority
        self._own_addr = own_addr
        self._more_managers = more_managers

    def routes(self) -> list[Route]:
        return [
            Route("GET", joining.CA_PATH, self.ca),
            Route("POST", joining.JOIN_PATH, self.join),
            Route("POST", joining.RENEW_PATH, self.renew),
        ]

    def local_routes(self) -> list[Route]:
        """Whoever may open the manager's unix socket is root on its host."""
        return [Route("GET", joining.CA_PATH, self.ca), *self.passed_on_routes()]

    def passed_on_routes(self) -> list[Route]:
        """What a manager passes on for its own host: for certificates of managers only."""
        return [Route("POST", joining.LOCAL_JOIN_PATH, self.join_locally)]

    async def ca(self, _call: Call) -> web.StreamResponse:
        return web.Response(text=self._authority.ca_pem(), content_type="application/x-pem-file")

    async def join(self, call: Call) -> web.StreamResponse:
        """200; 400 no token or no CSR, 403 a token that is not valid, 503 no leader."""
        asked = await call.json(JoinRequest)
        if not self._more_managers and self._authority.is_manager_token(asked.token):
            raise NotSupported(
                "this cluster's etcd has one member and cannot take another manager: start the managers with --etcd "
                "and an etcd cluster of yours, or join with the worker token"
            )
        return _answer(
            await self._authority.join(
                asked.token, asked.csr, _hostname(asked.hostname), _addresses(call, asked.addr), asked.availability
            )
        )

    async def join_locally(self, call: Call) -> web.StreamResponse:
        asked = await call.json(JoinRequest)
        return _answer(
            await self._authority.admit(
                Role.MANAGER, asked.csr, _hostname(asked.hostname), _addresses(call, asked.addr),
                manager_addr=asked.manager_addr or self._own_addr, founding=asked.founding,
                availability=asked.availability,
            )
        )

    async def renew(self, call: Call) -> web.StreamResponse:
        """200; 401 without a certificate, 403 for a node that is no longer a member."""
        identity = require_role(call.request.transport, (Role.WORKER, Role.MANAGER))
        asked = await call.json(RenewRequest)
        return _answer(self._authority.renew(identity, asked.csr, _addresses(call, asked.addr)))


def _answer(certificate: Certificate) -> web.Response:
    return web.Response(body=msgspec.json.encode(certificate), content_type="application/json")


def _hostname(text: str) -> str:
    if len(text) > MAX_HOSTNAME or not text.isprintable():
        raise InvalidArgument(f"invalid hostname: expected at most {MAX_HOSTNAME} printable characters")
    return text


def _addresses(call: Call, asked: str) -> list[str]:
    """What the host says, else where it comes from. InvalidArgument for what is not an IP address."""
    passed_on_for = call.request.headers.get(PASSED_ON_FOR, "").removeprefix("-")
    address = asked or passed_on_for or call.request.remote or ""
    if not address:
        return []
    try:
        return [str(ipaddress.ip_address(address))]
    except ValueError as err:
        raise InvalidArgument(f"invalid address {address!r}: expected an IP address") from err
