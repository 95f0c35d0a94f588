"""An agent that dies at any moment: what it has promised of images is so, and nothing else is left of them."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.images_made import MadeImage, digest, files
from fakes.images_node import Node
from fakes.images_registry import FakeRegistry

from swarmlet.errors import NotFound

pytestmark = pytest.mark.kernel

_COMMON = [files({"a": os.urandom(200_000)}), files({f"d/{number}": b"x" * 500 for number in range(200)})]
_IMAGES = [MadeImage([*_COMMON[: number % 3], files({"own": os.urandom(400_000 + number)})]) for number in range(5)]
_KILLS = 8

#: Does one thing after another; says what it is about to do, and what is done.
_PROGRAM = """
import asyncio, json, random, sys
from pathlib import Path
from swarmlet.engine_api.filters import Filters
from swarmlet.errors import NotFound
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal

folder, registry, archives, seed = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]

async def pieces(number):
    yield (archives / str(number)).read_bytes()

async def main():
    chance = random.Random(seed)
    store = ImageStore(folder, Journal(folder / "journal.db"))
    await store.start()
    while True:
        number, what = chance.randrange(5), chance.choice(["pull", "pull", "load", "tag", "remove", "remove", "prune"])
        print(json.dumps(["begin", what, number]), flush=True)
        try:
            match what:
                case "pull":
                    await store.pull(f"{registry}/x:{number}")
                case "load":
                    await store.load(pieces(number))
                case "tag":
                    await store.tag(f"{registry}/x:{number}", "other", str(number))
                case "remove":
                    await store.remove(f"{registry}/x:{number}", force=True)
                case "prune":
                    await store.prune(Filters())
        except NotFound:
            what = "nothing"
        print(json.dumps(["end", what, number]), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(2))
async def test_what_was_promised_survives_a_kill_and_nothing_else_does(
    tmp_path: Path, registry: FakeRegistry, seed: int
) -> None:
    archives, data = tmp_path / "archives", tmp_path / "data"
    archives.mkdir()
    for number, image in enumerate(_IMAGES):
        registry.push("x", str(number), image)
        (archives / str(number)).write_bytes(image.docker_archive(f"loaded:{number}"))
    chance = random.Random(seed)
    names: dict[str, int] = {}
    for _ in range(_KILLS):
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, str(data), registry.host, str(archives), str(chance.random()),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert agent.stdout is not None
        first = await agent.stdout.readline()
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        agent.kill()
        said = [json.loads(line) for line in (first + await agent.stdout.read()).splitlines()]
        await agent.wait()
        unsure = said[-1][1:] if said[-1][0] == "begin" else None
        for kind, what, number in said:
            if kind == "end":
                _note(names, registry.host, what, number)
        await _check(data, names, registry.host, unsure)


def _note(names: dict[str, int], host: str, what: str, number: int) -> None:
    pulled = f"{host}/x:{number}"
    match what:
        case "pull":
            names[pulled] = number
        case "load":
            names[f"loaded:{number}"] = number
        case "tag":
            names[f"other:{number}"] = number
        case "remove":
            names.pop(pulled)


async def _check(data: Path, names: dict[str, int], host: str, unsure: tuple[str, int] | None) -> None:
    """unsure: what was under way, and may have happened or not; what has is noted."""
    node = Node(data)
    await node.start()
    try:
        if unsure is not None:
            what, number = unsure
            touched = {"pull": f"{host}/x:{number}", "remove": f"{host}/x:{number}", "load": f"loaded:{number}",
                       "tag": f"other:{number}"}.get(what)  # fmt: skip
            if touched is not None:
                names.pop(touched, None)
                try:
                    node.store.get(touched)
                    names[touched] = number
                except NotFound:
                    pass
        there = {tag: image.id for image in node.store.all() for tag in image.repo_tags}
        assert there == {name: _IMAGES[number].id for name, number in names.items()}
        used = {chain.removeprefix("sha256:") for image in node.store.all() for chain in image.layers}
        assert node.layer_folders() == used
        assert not [*(data / "images" / "tmp").iterdir()]
        diff_ids = {diff_id for number in set(names.values()) for diff_id in _IMAGES[number].diff_ids}
        blobs = {digest(blob)[7:] for image in _IMAGES for blob in image.blobs}
        kept = {file.name: file for file in (data / "images" / "blobs").iterdir()}
        assert kept.keys() <= blobs and all(digest(file.read_bytes())[7:] == name for name, file in kept.items())
        assert all(digest(gzip.decompress(file.read_bytes())) in diff_ids for file in kept.values())
        for image in node.store.all():  # each layer is what its name says
            async for _ in node.store.save([image.id]):
                pass
    finally:
        await node.stop()
