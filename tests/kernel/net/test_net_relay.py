"""The process that carries relayed connections: what it copies, when connections end, when it does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from net_lab import Lab, in_own_network

from swarmlet.model.container import PortBinding
from swarmlet.process import Held, identify
from swarmlet_agent.net import relay_process
from swarmlet_agent.net.relay_helper import RelayHelper
from swarmlet_agent.net.relay_process import Relay

pytestmark = pytest.mark.kernel
PATIENCE_S = 10.0


class Agent:
    """The agent's end, by hand, of a relay that runs in a thread of this process."""

    def __init__(self, address: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(address))
        self.listener.listen()
        self.target = socket.create_server(("127.0.0.1", 0))
        self.target.settimeout(PATIENCE_S)
        self.thread = threading.Thread(target=Relay(self.listener).run, name="relay")
        self.thread.start()
        self.address = address
        self.connection = self.connect()
        assert self.words() == []

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.address))
        return connection

    def words(self) -> list[str]:
        """What it says before it is ready."""
        said = []
        while (word := self.connection.recv(4096).decode()) != f"ready {relay_process.VERSION} {os.getpid()}":
            assert word
            said.append(word)
        return said

    def client(self, owner: str = "one", target: tuple[str, int] | None = None) -> socket.socket:
        """A connection handed over: the client's side of it."""
        with socket.create_server(("127.0.0.1", 0)) as front:
            client = socket.create_connection(front.getsockname())
            accepted, _ = front.accept()
        client.settimeout(PATIENCE_S)
        message = {"owner": owner, "port": "p", "to": target or self.target.getsockname()}
        with accepted:
            socket.send_fds(self.connection, [json.dumps(message).encode()], [accepted.fileno()])
        return client

    def pair(self, owner: str = "one") -> tuple[socket.socket, socket.socket]:
        client = self.client(owner)
        server, _ = self.target.accept()
        server.settimeout(PATIENCE_S)
        return client, server

    def end(self, owner: str) -> None:
        self.connection.send(json.dumps({"end": owner}).encode())


@contextmanager
def agent_of(folder: Path) -> Iterator[Agent]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_process, "NEXT_S", 0.05)
        agent = Agent(folder / "relay.sock")
        try:
            yield agent
        finally:
            agent.connection.close()
            agent.thread.join(PATIENCE_S)
            assert not agent.thread.is_alive()
            agent.target.close()
            agent.listener.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with agent_of(tmp_path) as agent:
        yield agent


def read_all(end: socket.socket) -> bytes:
    data = b""
    while piece := end.recv(1 << 16):
        data += piece
    return data


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(out=st.lists(st.integers(0, 300_000), max_size=4), back=st.lists(st.integers(0, 300_000), max_size=4))
def test_all_bytes_arrive_in_order_and_each_way_ends_by_itself(
    tmp_path_factory: pytest.TempPathFactory, out: list[int], back: list[int]
) -> None:
    with agent_of(tmp_path_factory.mktemp("relay")) as agent:
        client, server = agent.pair()
        there, here = (b"".join(bytes([n % 251]) * n for n in sizes) for sizes in (out, back))
        with client, server:
            # What is sent is more than the kernel keeps: both ways must be read while they are written.
            received: list[bytes] = []
            reader = threading.Thread(target=lambda: received.append(read_all(server)))
            reader.start()
            client.sendall(there)
            client.shutdown(socket.SHUT_WR)
            reader.join(PATIENCE_S)
            assert received == [there]
            writer = threading.Thread(target=server.sendall, args=(here,))
            writer.start()
            got = b""
            while len(got) < len(here):
                piece = client.recv(1 << 16)
                assert piece
                got += piece
            assert got == here
            writer.join(PATIENCE_S)
            server.close()
            assert read_all(client) == b""


def test_an_owners_connections_end_on_request_and_no_others(agent: Agent) -> None:
    (first, one), (other, kept) = agent.pair("one"), agent.pair("two")
    agent.end("one")
    assert first.recv(1) == b"" == one.recv(1)
    other.sendall(b"x")
    assert kept.recv(1) == b"x"
    agent.end("nobody")
    kept.sendall(b"y")
    assert other.recv(1) == b"y"
    for each in (first, one, other, kept):
        each.close()


def test_connections_outlive_the_agent_and_the_next_hears_of_them(agent: Agent) -> None:
    client, server = agent.pair("one")
    agent.connection.close()  # while there are connections it waits for the next one
    client.sendall(b"still")
    assert server.recv(5) == b"still"
    agent.connection = agent.connect()
    assert agent.words() == ["owner one"]
    agent.end("one")
    assert client.recv(1) == b""
    client.close()
    server.close()


def test_a_second_agent_takes_the_place_of_the_first(agent: Agent) -> None:
    first, agent.connection = agent.connection, agent.connect()
    assert agent.words() == [] and first.recv(1) == b""
    first.close()


def test_a_target_that_refuses_ends_the_connection(agent: Agent) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with agent.client(target=free.getsockname()) as client:
            assert client.recv(1) == b""


def test_more_connections_than_a_port_may_have_are_turned_away(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_process, "MAX_CONNECTIONS", 1)
    client, server = agent.pair()
    with agent.client() as more:
        assert more.recv(1) == b""
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    client.close()
    server.close()


def test_a_target_that_does_not_answer_is_given_up(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_process, "CONNECT_TIMEOUT_S", 0.05)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # A full backlog: the kernel drops what comes then, and the client's side waits.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.connect(full.getsockname())
        with agent.client(target=full.getsockname()) as client:
            assert client.recv(1) == b""
        for each in waiting:
            each.close()


def test_it_says_that_it_is_idle_and_goes_once_the_agent_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_process, "IDLE_S", 0.05)
    with agent_of(tmp_path) as agent:
        assert agent.connection.recv(100) == b"idle"
        client, server = agent.pair()
        client.close()
        assert server.recv(1) == b""
        server.close()
        while agent.connection.recv(100) != b"idle":
            pass
        agent.connection.close()
        agent.thread.join(PATIENCE_S)
        assert not agent.thread.is_alive()


# The agent's end


async def test_the_next_agent_ends_what_is_nobodys_any_more(tmp_path: Path) -> None:
    """The real process: started by one helper, found by the next, killed under a third."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.setblocking(False)
        loop = asyncio.get_running_loop()

        async def pair(helper: RelayHelper, owner: str) -> tuple[socket.socket, socket.socket]:
            with socket.create_server(("127.0.0.1", 0)) as front:
                client = socket.create_connection(front.getsockname())
                accepted, _ = front.accept()
            helper.hand_over(accepted, owner, "p", target.getsockname())
            async with asyncio.timeout(PATIENCE_S):
                server, _ = await loop.sock_accept(target)
            client.setblocking(False)
            return client, server

        first = RelayHelper(tmp_path / "data")
        await first.adopt(())  # there is none
        gone, left = await pair(first, "gone"), await pair(first, "left")
        process = identify(first.pid)
        assert process is not None and process.pid != os.getpid()
        assert (tmp_path / "data/relay.sock").stat().st_mode & 0o077 == 0
        await first.close()

        second = RelayHelper(tmp_path / "data")
        await second.adopt(["left"])
        async with asyncio.timeout(PATIENCE_S):
            assert await loop.sock_recv(gone[0], 1) == b""
            await loop.sock_sendall(left[0], b"x")
            assert await loop.sock_recv(left[1], 1) == b"x"
        more = await pair(second, "more")
        assert identify(second.pid) == process

        with contextlib.closing(Held(process)) as held:
            os.kill(process.pid, signal.SIGKILL)
            await held.wait()
        again = await pair(second, "again")
        new = identify(second.pid)
        assert new is not None and new != process
        second.end("again")
        async with asyncio.timeout(PATIENCE_S):
            assert await loop.sock_recv(again[0], 1) == b""
        with contextlib.closing(Held(new)) as held:
            await second.close()
            async with asyncio.timeout(PATIENCE_S):
                await held.wait()  # without agent and connections it ends
        for each in (*gone, *left, *more, *again):
            each.close()


@in_own_network
async def test_a_relayed_connection_outlives_the_agent_and_ends_with_its_container(lab: Lab) -> None:
    ident, web = await lab.attach("web", ports={"80/tcp": (PortBinding(host_port="8080"),)})
    async with lab.serve(web.netns_path, 80, "web"):
        with await lab.connect(None, "::1", 8080) as line:
            assert (await line.ask()).startswith("web ")
            await lab.restart()
            assert (await line.ask()).startswith("web ")
            assert (await lab.ask(None, "::1", 8080)).startswith("web ")
            await lab.networks.detach(ident)
            async with asyncio.timeout(PATIENCE_S):
                assert await asyncio.get_running_loop().sock_recv(line.channel, 1) == b""
