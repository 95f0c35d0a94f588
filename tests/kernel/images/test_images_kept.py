"""Compressed layers that are kept: what was pulled or compressed once is pushed as it is, for as long as it is here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.images_made import OCI, SCHEMA2, MadeImage, digest, files
from fakes.images_node import Node
from fakes.images_push import PushRegistry
from fakes.images_registry import FakeRegistry

from swarmlet.engine_api.filters import Filters
from swarmlet_agent.images import kept as kept_module
from swarmlet_agent.images import packing
from swarmlet_agent.images.unpack import Limits

pytestmark = pytest.mark.kernel

_LAYERS = [files({"a": b"one", "b": b"below"}), files({"b": b"above", "big": os.urandom(3 << 20)})]


@pytest.fixture
async def source() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


@pytest.fixture
async def registry() -> AsyncIterator[PushRegistry]:
    async with PushRegistry().running() as running:
        assert isinstance(running, PushRegistry)
        yield running


@pytest.fixture
async def other() -> AsyncIterator[PushRegistry]:
    async with PushRegistry().running() as running:
        assert isinstance(running, PushRegistry)
        yield running


@pytest.fixture
def no_compressing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Iterator[bytes]:
        raise AssertionError("a layer was compressed")

    monkeypatch.setattr(packing.Packer, "gzipped", refuse)


async def load(node: Node, *names: str) -> None:
    async def archive() -> AsyncIterator[bytes]:
        yield MadeImage(_LAYERS).docker_archive(*names)

    await node.store.load(archive())


def blobs(node: Node) -> dict[str, int]:
    """What lies there: digests and sizes."""
    return {f"sha256:{file.name}": file.stat().st_size for file in (node.data / "images" / "blobs").iterdir()}


async def pulled(node: Node, registry: FakeRegistry, made: MadeImage, name: str = "x") -> str:
    registry.push(name, "1", made)
    await node.store.pull(f"{registry.host}/{name}:1")
    return f"{registry.host}/{name}:1"


async def push(node: Node, ref: str, host: str, name: str = "copy") -> dict[str, Any]:
    """Under another name, to another registry; the last word on it."""
    await node.store.tag(ref, f"{host}/{name}", "1")
    said: list[dict[str, Any]] = []

    async def listen(message: dict[str, Any]) -> None:
        said.append(message)

    await node.store.push(f"{host}/{name}:1", progress=listen)
    aux: dict[str, Any] = said[-1]["aux"]
    return aux


@pytest.mark.usefixtures("no_compressing")
@pytest.mark.parametrize(("compression", "kind"), [("gzip", SCHEMA2), ("zstd", OCI), ("gzip", OCI), ("none", OCI)])
async def test_what_was_pulled_is_pushed_elsewhere_byte_for_byte_also_by_the_next_agent(
    node: Node, source: FakeRegistry, other: PushRegistry, compression: str, kind: str
) -> None:
    made = MadeImage(_LAYERS, compression=compression, media_type=kind)
    ref = await pulled(node, source, made)
    assert blobs(node) == {digest(blob): len(blob) for blob in made.blobs}
    await node.restart()

    assert (await push(node, ref, other.host))["Digest"] == made.digest

    assert other.manifests["copy", "1"] == (made.manifest, kind)
    assert all(other.blobs[digest(blob)] == blob for blob in made.blobs)


async def test_what_was_compressed_once_is_sent_again_without_compressing(
    node: Node, registry: PushRegistry, other: PushRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(node, "made:1")
    first = await push(node, "made:1", registry.host)
    assert len(blobs(node)) == 2
    await node.restart()
    monkeypatch.delattr(packing.Packer, "gzipped")

    assert await push(node, "made:1", other.host) == first
    assert json.loads(other.manifests["copy", "1"][0]) == json.loads(registry.manifests["copy", "1"][0])


@pytest.mark.usefixtures("no_compressing")
async def test_an_upload_of_a_kept_blob_that_breaks_off_goes_on(
    node: Node, source: FakeRegistry, other: PushRegistry
) -> None:
    made = MadeImage(_LAYERS)
    ref = await pulled(node, source, made)
    other.break_upload_after = 1 << 20
    assert (await push(node, ref, other.host))["Digest"] == made.digest
    assert other.uploads == {}


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
async def test_a_damaged_blob_is_dropped_and_the_layer_compressed_anew(
    node: Node, source: FakeRegistry, other: PushRegistry, damage: str
) -> None:
    made = MadeImage(_LAYERS)
    ref = await pulled(node, source, made)
    file = node.data / "images" / "blobs" / digest(made.blobs[1])[7:]
    match damage:
        case "gone":
            file.unlink()
        case "shorter":
            os.truncate(file, 1000)
        case _:
            file.write_bytes(os.urandom(len(made.blobs[1])))

    await push(node, ref, other.host)

    sent = json.loads(other.manifests["copy", "1"][0])["layers"]
    assert sent[0]["digest"] == digest(made.blobs[0]) and sent[1]["digest"] != digest(made.blobs[1])
    assert blobs(node) == {layer["digest"]: layer["size"] for layer in sent}


async def test_blobs_go_with_the_last_layer_they_are_of_and_are_counted_till_then(
    node: Node, source: FakeRegistry
) -> None:
    one = MadeImage(_LAYERS)
    two = MadeImage([files({"other": b"base"}), _LAYERS[1]])  # the same layer over another one
    first, second = await pulled(node, source, one), await pulled(node, source, two, "y")
    sizes = {digest(blob): len(blob) for blob in (*one.blobs, *two.blobs)}
    assert blobs(node) == sizes
    total, listed = node.store.disk_usage((1, 50))
    unpacked = sum(image.size_bytes for image in node.store.all())
    assert total == unpacked + sum(sizes.values())
    shown = {entry["Id"]: entry["Size"] for entry in listed}
    assert shown[one.id] == node.store.get(first).size_bytes + sum(map(len, one.blobs))
    assert node.store.get(first).size_bytes == sum(
        entry["Size"] for entry in node.store.list_images(Filters(), (1, 50)) if entry["Id"] == one.id
    )

    await node.store.remove(first)
    assert blobs(node) == {digest(blob): len(blob) for blob in two.blobs}
    own = node.store.get(second).size_bytes
    _, freed = await node.store.prune(Filters({"dangling": ("false",)}))
    assert freed == own + sum(map(len, two.blobs)) and blobs(node) == {}
    await node.restart()
    assert node.store.disk_usage((1, 50)) == (0, [])


async def test_half_a_blob_and_one_that_nobody_promised_are_gone_at_the_start(
    node: Node, source: FakeRegistry
) -> None:
    made = MadeImage(_LAYERS)
    await pulled(node, source, made)
    folder = node.data / "images" / "blobs"
    os.truncate(folder / digest(made.blobs[1])[7:], 1000)
    (folder / ("0" * 64)).write_bytes(b"stray")

    await node.restart()

    assert blobs(node) == {digest(made.blobs[0]): len(made.blobs[0])}


async def test_what_was_kept_goes_at_the_start_that_wants_none(tmp_path: Path, source: FakeRegistry) -> None:
    node = Node(tmp_path / "node")
    await node.start()
    await pulled(node, source, MadeImage(_LAYERS))
    await node.stop()

    node = Node(tmp_path / "node", keep_compressed_layers=False)
    await node.start()

    assert blobs(node) == {} and len(node.store.all()) == 1
    await pulled(node, source, MadeImage([files({"more": b""})]), "more")
    assert blobs(node) == {} and node.leftovers() == []
    await node.stop()


async def test_a_disk_that_has_little_room_left_gets_it_from_what_is_kept(
    node: Node, source: FakeRegistry, other: PushRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await pulled(node, source, MadeImage(_LAYERS))
    monkeypatch.setattr(kept_module, "SPARE_SHARE", 1.0)
    monkeypatch.setattr(kept_module, "SPARE_MOST_BYTES", 1 << 60)

    second = await pulled(node, source, MadeImage([files({"more": os.urandom(1000)})]), "more")

    assert blobs(node) == {}
    await push(node, ref, other.host)
    await push(node, second, other.host, "more")
    assert blobs(node) == {} and node.leftovers() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB for a node's images."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_is_full_keeps_nothing_and_the_push_goes_through(
    small_disk: Path, registry: PushRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room there seemed to be is gone when the blob is written."""
    node = Node(small_disk / "node", limits=Limits(reserve_bytes=0))
    await node.start()
    await load(node, "made:1")
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - (1 << 20)))
    monkeypatch.setattr(kept_module, "SPARE_SHARE", -10.0)

    await push(node, "made:1", registry.host)

    assert ("copy", "1") in registry.manifests
    big = max(blobs(node).values(), default=0)
    assert big < 1 << 20 and node.leftovers() == []
    await node.stop()


#: Pulls and pushes; says what is done.
_PROGRAM = """
import asyncio, sys
from pathlib import Path
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal

async def main():
    folder, origin, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    store = ImageStore(folder, Journal(folder / "journal.db"))
    await store.start()
    await store.pull(f"{origin}/x:1")
    print("pulled", flush=True)
    async def archive():
        yield Path(sys.argv[4]).read_bytes()
    await store.load(archive())
    await store.push("%s/made:1" % target)
    print("pushed", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_was_told_as_done_needs_no_compression_after_a_kill(
    tmp_path: Path, source: FakeRegistry, registry: PushRegistry, other: PushRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, own = MadeImage(_LAYERS), MadeImage([files({"own": os.urandom(100_000)})])
    source.push("x", "1", made)
    archive, data = tmp_path / "archive", tmp_path / "data"
    archive.write_bytes(own.docker_archive(f"{registry.host}/made:1"))
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, str(data), source.host, registry.host, str(archive), stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert [await agent.stdout.readline() for _ in range(2)] == [b"pulled\n", b"pushed\n"]
    agent.kill()
    await agent.wait()
    monkeypatch.delattr(packing.Packer, "gzipped")
    node = Node(data)
    await node.start()

    assert (await push(node, f"{source.host}/x:1", other.host))["Digest"] == made.digest
    again = await push(node, f"{registry.host}/made:1", other.host, "made")
    assert again["Digest"] == digest(registry.manifests["made", "1"][0])
    assert len(blobs(node)) == 3 and node.leftovers() == []
    await node.stop()
