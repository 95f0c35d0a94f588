"""The embedded etcd on a real binary: started, adopted, restarted, refused; and TLS."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from store_tls import free_port, make_tls

from swarmlet.errors import Conflict, Internal, InvalidArgument, Unavailable
from swarmlet.process import identify, write_pid_file
from swarmlet_manager.store.etcd.binary import EtcdSettings
from swarmlet_manager.store.etcd.channels import Tls
from swarmlet_manager.store.etcd.client import EtcdClient, Member
from swarmlet_manager.store.etcd.server import EtcdServer
from swarmlet_manager.store.kv import PutKey

pytestmark = pytest.mark.etcd


@asynccontextmanager
async def serving(settings: EtcdSettings) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(endpoints: tuple[str, ...], tls: Tls | None = None) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(endpoints, tls)
    try:
        yield client
    finally:
        await client.close()


async def test_it_serves_once_started_and_is_gone_once_stopped(etcd_dir: Path) -> None:
    async with serving(EtcdSettings(data_dir=etcd_dir, name="m1")) as server:
        pid = server.pid
        assert pid is not None
        assert os.getsid(pid) == pid
        assert etcd_dir.stat().st_mode & 0o777 == 0o700
        async with connected(server.endpoints) as client:
            assert (await client.txn([], [PutKey(b"k", b"v")])).succeeded
    assert identify(pid) is None
    async with serving(EtcdSettings(data_dir=etcd_dir, name="m1")) as server, connected(server.endpoints) as client:
        assert (await client.read(b"k")).kvs[0].value == b"v"


async def test_one_left_running_is_adopted_by_the_next_manager(etcd_dir: Path) -> None:
    settings = EtcdSettings(data_dir=etcd_dir, name="m1")
    first = EtcdServer(settings)
    await first.start()
    pid = first.pid
    await first.detach()
    assert pid is not None
    assert identify(pid)
    async with serving(settings) as second:
        assert second.pid == pid


async def test_it_survives_kill_9_of_the_manager_that_started_it_and_is_adopted(etcd_dir: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from pathlib import Path
        from swarmlet_manager.store.etcd.binary import EtcdSettings
        from swarmlet_manager.store.etcd.server import EtcdServer

        async def main():
            server = EtcdServer(EtcdSettings(data_dir=Path(sys.argv[1]), name="m1"))
            await server.start()
            print(server.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(etcd_dir)], stdout=subprocess.PIPE, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    async with serving(EtcdSettings(data_dir=etcd_dir, name="m1")) as server:
        assert server.pid == int(done.stdout)


async def test_it_is_found_even_if_the_pid_file_was_never_written(etcd_dir: Path) -> None:
    settings = EtcdSettings(data_dir=etcd_dir, name="m1")
    first = EtcdServer(settings)
    await first.start()
    pid = first.pid
    await first.detach()
    (etcd_dir / "etcd.pid").unlink()
    async with serving(settings) as second:
        assert second.pid == pid


async def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(etcd_dir: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        found = identify(other.pid)
        assert found is not None
        etcd_dir.mkdir()
        write_pid_file(etcd_dir / "etcd.pid", type(found)(found.pid, found.started - 1))
        async with serving(EtcdSettings(data_dir=etcd_dir, name="m1")) as server:
            assert server.pid != other.pid
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_a_killed_one_is_started_again_and_keeps_what_it_acknowledged(etcd_dir: Path) -> None:
    async with (
        serving(EtcdSettings(data_dir=etcd_dir, name="m1")) as server,
        connected(server.endpoints) as client,
    ):
        for number in range(3):
            await client.txn([], [PutKey(b"k%d" % number, b"v")])
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                assert len((await client.read(b"k", b"l", timeout_s=20)).kvs) == number + 1
            assert server.pid != pid


async def test_other_settings_restart_it(etcd_dir: Path) -> None:
    first = EtcdServer(EtcdSettings(data_dir=etcd_dir, name="m1"))
    await first.start()
    pid = first.pid
    await first.detach()
    async with serving(EtcdSettings(data_dir=etcd_dir, name="m1", heartbeat_ms=60)) as second:
        assert second.pid != pid
    assert pid is not None
    assert identify(pid) is None


async def test_two_managers_never_run_the_same_directory(etcd_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmlet_manager.store.etcd.server.LOCK_S", 0.3)
    settings = EtcdSettings(data_dir=etcd_dir, name="m1")
    async with serving(settings) as server:
        with pytest.raises(Conflict):
            await EtcdServer(settings).start()
        assert server.pid


async def test_one_that_cannot_start_says_why(etcd_dir: Path) -> None:
    (etcd_dir / "data").mkdir(parents=True)
    (etcd_dir / "data" / "member").write_text("not a directory")
    with pytest.raises(Internal, match=r"ended instead of starting: .*not a directory"):
        await EtcdServer(EtcdSettings(data_dir=etcd_dir, name="m1")).start()


async def test_a_missing_or_unsound_binary_is_refused_with_what_to_install(etcd_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Internal, match="apt install etcd-server"):
        await EtcdServer(EtcdSettings(data_dir=etcd_dir, name="m1", binary="no-such-etcd")).start()
    unsound = tmp_path / "etcd"
    unsound.write_text("#!/bin/sh\necho etcd Version: 3.5.1\n")
    unsound.chmod(0o755)
    with pytest.raises(Internal, match=r"3\.5\.1 is known to corrupt.*apt install"):
        await EtcdServer(EtcdSettings(data_dir=etcd_dir, name="m1", binary=str(unsound))).start()


async def test_a_socket_path_that_the_kernel_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        EtcdClient([f"unix:{tmp_path}/{'x' * 120}/etcd:0"])


async def test_with_certificates_it_also_listens_on_an_address_and_refuses_strangers(
    etcd_dir: Path, tmp_path: Path
) -> None:
    ours, theirs = make_tls(tmp_path / "ours"), make_tls(tmp_path / "theirs")
    ports = free_port(), free_port()
    settings = EtcdSettings(
        data_dir=etcd_dir, name="m1", host="127.0.0.1", client_port=ports[0], peer_port=ports[1], tls=ours
    )
    async with serving(settings) as server:
        endpoint = (f"https://127.0.0.1:{ports[0]}",)
        async with connected(server.endpoints) as local, connected(endpoint, ours) as remote:
            await local.txn([], [PutKey(b"k", b"v")])
            assert (await remote.read(b"k")).kvs[0].value == b"v"
            (member,) = await remote.members()
            assert member.client_urls == endpoint
        async with connected(endpoint, Tls(ca=ours.ca, cert=theirs.cert, key=theirs.key)) as stranger:
            with pytest.raises(Unavailable):
                await stranger.read(b"k", timeout_s=1.5)
        async with connected(endpoint, theirs) as stranger:
            with pytest.raises(Unavailable):
                await stranger.read(b"k", timeout_s=1.5)


async def test_a_single_member_on_sockets_grows_into_a_cluster_of_three(etcd_dir: Path, tmp_path: Path) -> None:
    tls = make_tls(tmp_path / "tls")

    def settings(number: int, peers: tuple[tuple[str, str], ...] = ()) -> EtcdSettings:
        return EtcdSettings(
            data_dir=etcd_dir / f"m{number}",
            name=f"m{number}",
            host="127.0.0.1",
            client_port=free_port(),
            peer_port=free_port(),
            tls=tls,
            peers=peers,
        )

    alone = EtcdServer(EtcdSettings(data_dir=etcd_dir / "m1", name="m1"))
    await alone.start()
    first = settings(1)
    async with connected(alone.endpoints) as client:
        await client.txn([], [PutKey(b"k", b"v")])
        (member,) = await client.members()
        await client.member_update(member.id, first.peer_url)
    await alone.detach()
    members = [first]
    async with serving(first) as server, connected(server.endpoints) as client:
        servers = []
        try:
            for number in (2, 3):
                peers = tuple((each.name, each.peer_url) for each in members)
                members.append(joining := settings(number, peers))
                added = await soon(lambda url=joining.peer_url: admitted(client, url))
                servers.append(EtcdServer(joining))
                await servers[-1].start()
                await soon(lambda ident=added.id: promoted(client, ident))
            assert [member.is_learner for member in await client.members()] == [False] * 3
            async with connected(servers[1].endpoints) as third:
                assert (await third.read(b"k")).kvs[0].value == b"v"
        finally:
            await asyncio.gather(*(each.stop() for each in servers))


async def admitted(client: EtcdClient, peer_url: str) -> Member:
    """Added by this attempt, or by one whose answer came too late."""
    known = [member for member in await client.members() if peer_url in member.peer_urls]
    return known[0] if known else await client.member_add(peer_url)


async def promoted(client: EtcdClient, member_id: int) -> None:
    """As above."""
    if any(member.id == member_id and member.is_learner for member in await client.members()):
        await client.member_promote(member_id)


async def soon(action, timeout_s: float = 60.0):  # type: ignore[no-untyped-def]
    """Until it is not refused any more: links between members must be some seconds old, learners in sync."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await action()
            except (Internal, InvalidArgument, Unavailable):
                await asyncio.sleep(0.2)
