"""Who is let in: by the group of a socket, by a manager's certificate, and one daemon per folder."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from swarmlet.engine_api.guard import for_managers
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import Conflict, Forbidden, InvalidArgument, Unauthorized
from swarmlet.model.states import Role
from swarmlet.pki import OU
from swarmlet.process import only_one


async def hello(call: Call) -> web.StreamResponse:
    return web.Response(text="hello")


def of_peer(role: Role | None) -> Call:
    """A request over a connection with this certificate, or none."""
    subject = {"commonName": "n1", "organizationalUnitName": OU[role] if role else "", "organizationName": "c1"}
    certificate = None if role is None else {"subject": tuple(((name, value),) for name, value in subject.items())}
    transport = SimpleNamespace(get_extra_info=lambda name: certificate)
    request: Any = SimpleNamespace(transport=transport)
    return Call(request, (1, 50), "/hello")


async def test_a_route_for_managers_asks_for_their_certificate() -> None:
    (route,) = for_managers([Route("GET", "/hello", hello)])
    with pytest.raises(Unauthorized):
        await route.handler(of_peer(None))
    with pytest.raises(Forbidden, match="n1 is a worker"):
        await route.handler(of_peer(Role.WORKER))
    assert (await route.handler(of_peer(Role.MANAGER))).status == 200


def test_a_guarded_route_has_no_answer_before_who_asks_is_known() -> None:
    (route,) = for_managers([Route("GET", "/hello", hello, lambda query: None)])
    assert route.quick is None


async def test_a_socket_is_for_root_and_the_group(tmp_path: Path) -> None:
    server = Server([Route("GET", "/hello", hello)])
    group = grp.getgrgid(os.getgroups()[-1] if os.getgroups() else os.getgid())
    try:
        await server.listen_unix(tmp_path / "s", group.gr_name)
        found = (tmp_path / "s").stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (group.gr_gid, 0o660)
    finally:
        await server.close()


async def test_a_socket_for_a_group_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    server = Server([Route("GET", "/hello", hello)])
    with pytest.raises(InvalidArgument, match="socket_group: there is no group 'nobody here'"):
        await server.listen_unix(tmp_path / "s", "nobody here")
    assert not (tmp_path / "s").exists()
    await server.close()


def test_a_folder_has_one_daemon_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with only_one(lock, "first"), pytest.raises(Conflict, match="second"), only_one(lock, "second"):
        raise AssertionError("both are in")
    with only_one(lock, "third"):
        pass
