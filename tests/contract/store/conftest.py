"""A real etcd for each module that asks for one, and the in-memory one, behind the same fixture."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_tls import free_port, make_tls

from swarmlet_manager.store.etcd.binary import EtcdSettings
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.etcd.server import EtcdServer
from swarmlet_manager.store.kv import KV
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd

_numbers = itertools.count(1)


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """In a loop and a thread of its own: the test's loop may already be running."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


@pytest.fixture
def etcd_dir() -> Iterator[Path]:
    """Short, because a unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="store-etcd-") as folder:
        yield Path(folder) / "etcd"


@pytest.fixture(scope="module")
def etcd_settings() -> Iterator[EtcdSettings]:
    """An etcd that runs for the whole module, outliving each test's event loop."""
    with tempfile.TemporaryDirectory(prefix="store-etcd-") as folder:
        settings = EtcdSettings(data_dir=Path(folder) / "etcd", name="m1")

        async def begin() -> None:
            server = EtcdServer(settings)
            await server.start()
            await server.detach()

        async def end() -> None:
            server = EtcdServer(settings)
            await server.start()
            await server.stop()

        _run_apart(begin())
        yield settings
        _run_apart(end())


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def kv(request: pytest.FixtureRequest) -> AsyncIterator[KV]:
    if request.param == "memory":
        memory = MemoryEtcd()
        yield MemoryClient(memory)
        memory.close()
        return
    settings: EtcdSettings = request.getfixturevalue("etcd_settings")
    client = EtcdClient([f"unix:{settings.socket}"])
    yield client
    await client.close()


@pytest.fixture
def prefix() -> bytes:
    """A part of the key space that no other test uses."""
    return b"/test/%d/" % next(_numbers)


@pytest.fixture
def three_members(etcd_dir: Path) -> list[EtcdSettings]:
    """Members of one new cluster, to be started together."""
    etcd_dir.mkdir()
    tls = make_tls(etcd_dir / "tls")
    ports = [(free_port(), free_port()) for _ in range(3)]
    urls = [(f"m{number}", f"https://127.0.0.1:{peer}") for number, (_, peer) in enumerate(ports)]
    return [
        EtcdSettings(
            data_dir=etcd_dir / f"m{number}",
            name=f"m{number}",
            host="127.0.0.1",
            client_port=client,
            peer_port=peer,
            tls=tls,
            peers=tuple(url for url in urls if url[0] != f"m{number}"),
            bootstrap_token="three-members",
        )
        for number, (client, peer) in enumerate(ports)
    ]
