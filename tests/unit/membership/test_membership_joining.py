"""When the request to join is forgotten: once the host knows without it what it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from swarmlet.errors import Unavailable
from swarmlet.issuing import issue, new_ca
from swarmlet.model.states import Role
from swarmlet.pki import Identity, write_private
from swarmlet.tls import TlsIdentity
from swarmlet_agent import membership
from swarmlet_agent.membership import Member
from swarmlet_agent.session.identity import NodeIdentity

CA = new_ca("cluster-1")


class Line:
    error = ""

    def __init__(self) -> None:
        self.started = 0

    async def start(self, identity: NodeIdentity, managers: Sequence[str], *, is_manager: bool) -> None:
        self.started += 1

    async def ready(self) -> None: ...

    async def stop(self, *, forget: bool, back_soon: bool = False) -> None: ...


class NoManager:
    async def ensure(self) -> None: ...

    async def remove(self) -> None: ...


async def never() -> bool:
    return False


def member(folder: Path, line: Line) -> Member:
    return Member(
        folder, folder / "m.sock", NoManager(), line, hostname="a", default_address=lambda: "127.0.0.1",
        ping_manager=never, manager_port=1, node_port=2,
    )


@pytest.fixture
def request_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manager that lets the host in, and what the request leaves."""
    file = tmp_path / "tls/joining.pem"

    async def let_in(*args: Any, **more: Any) -> NodeIdentity:
        write_private(file, "request and key")
        pair = issue(CA, Identity("node-1", Role.WORKER, "cluster-1"), [], timedelta(days=1))
        return NodeIdentity("node-1", Role.WORKER, "cluster-1", TlsIdentity(pair, CA.cert_pem))

    monkeypatch.setattr(membership.identities, "join", let_in)
    return file


ASKED = {"RemoteAddrs": ["127.0.0.1"], "JoinToken": "any", "AdvertiseAddr": "127.0.0.1"}


async def test_a_host_that_has_joined_keeps_no_request(tmp_path: Path, request_file: Path) -> None:
    line = Line()
    await member(tmp_path, line).join(ASKED)
    assert line.started == 1 and not request_file.exists()


async def test_a_host_that_could_not_note_that_it_has_joined_keeps_it(
    tmp_path: Path, request_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_membership: object) -> None:
        raise Unavailable("no space left on device")

    host = member(tmp_path, Line())
    monkeypatch.setattr(host, "_save", full)
    with pytest.raises(Unavailable):
        await host.join(ASKED)
    assert request_file.exists()
