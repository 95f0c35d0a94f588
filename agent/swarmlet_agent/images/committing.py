"""An image from another one, a layer on top and a new configuration (docker commit)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Conflict, Internal
from swarmlet.model.base import to_api
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import rfc3339
from swarmlet_agent.images.layers import Blob, LayerStore, stoppable
from swarmlet_agent.images.manifests import MAX_LAYERS, Configuration, parse_config
from swarmlet_agent.images.platforms import Platform
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.types import Image

#: A tar without entries is its end mark alone: no layer is made of it.
_EMPTY_TAR_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Commit:
    """What is new about the image. created: ns; created_by: what the history says was run."""

    config: ImageConfig
    container_id: str
    created: int
    created_by: str = ""
    author: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A layer's tar on disk; diff_id "" if there is nothing in it."""

    path: Path
    diff_id: str
    size: int


@asynccontextmanager
async def spooled_layer(layers: LayerStore, pieces: Iterator[bytes]) -> AsyncIterator[Spooled]:
    """The pieces, taken in a thread, as a file that is gone when the block ends. Internal for the disk's errors."""
    path = layers.tmp / f"commit-{secrets.token_hex(8)}"
    try:
        try:
            yield await stoppable(lambda stopped: _spool(pieces, path, stopped))
        except OSError as err:
            raise Internal(f"the changes cannot be stored: {err.strerror}") from err
    finally:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(path.unlink)


def _spool(pieces: Iterator[bytes], path: Path, stopped: Callable[[], bool]) -> Spooled:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        for piece in pieces:
            if stopped():
                break
            digest.update(piece)
            target.write(piece)
            size += len(piece)
    return Spooled(path, f"sha256:{digest.hexdigest()}" if size > _EMPTY_TAR_BYTES else "", size)


async def commit_image(
    shelf: Shelf, base_id: str, chains: Sequence[str], layer: Spooled, commit: Commit, name: Reference | None,
    host: Platform,
) -> Image:
    """The new image, on disk and in the journal. chains: of the layers below, lowest first; base_id may be gone.

    Conflict if the image would have too many layers.
    """
    base = shelf.catalogue.configuration(base_id) if base_id in shelf.catalogue else None
    below = [found.diff_id for chain in chains if (found := shelf.layers.get(chain)) is not None]
    if len(below) != len(chains):
        raise Internal("a layer of the container's image is missing on disk")
    diff_ids = [*below, layer.diff_id] if layer.diff_id else below
    if len(diff_ids) > MAX_LAYERS:
        raise Conflict(f"max depth exceeded: the image would have {len(diff_ids)} layers, {MAX_LAYERS} is the most")
    new = parse_config(_document(base, diff_ids, commit, host, empty=not layer.diff_id))
    async with shelf.keeping(new.chain_ids):
        await shelf.layers.install(new.diff_ids, _OnTop(len(below), layer))
        return await shelf.add(new, [name] if name else [], comment=commit.comment, tagged=bool(name), parent=base_id)


def _document(
    base: Configuration | None, diff_ids: Sequence[str], commit: Commit, host: Platform, *, empty: bool
) -> bytes:
    """OCI image-spec config.md, with Docker's additions. The base's own extra fields are about the base."""
    platform = base.platform if base is not None else host
    created = rfc3339(commit.created)
    entry: dict[str, Any] = {"created": created, "created_by": commit.created_by}
    if commit.author:
        entry["author"] = commit.author
    if commit.comment:
        entry["comment"] = commit.comment
    if empty:
        entry["empty_layer"] = True
    history = msgspec.to_builtins(base.history) if base is not None else ()
    document: dict[str, Any] = {
        "architecture": platform.architecture, "os": platform.os or "linux", "created": created,
        "container": commit.container_id, "container_config": to_api(commit.config),
        "config": to_api(commit.config), "history": [*history, entry],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    for key, value in (
        ("variant", platform.variant), ("os.version", platform.os_version), ("author", commit.author),
        ("comment", commit.comment),
    ):
        if value:
            document[key] = value
    return msgspec.json.encode(document, order="deterministic")


class _OnTop:
    """Installation (see layers.py): the layers below are there, the last one comes from a file."""

    def __init__(self, below: int, layer: Spooled) -> None:
        self._below, self._layer = below, layer

    @asynccontextmanager
    async def blob(self, number: int) -> AsyncIterator[Blob]:
        if number < self._below:
            raise Internal("a layer of the container's image is missing on disk")
        yield Blob(self._layer.path, 0, self._layer.size)

    async def exists(self, number: int) -> None: ...

    async def extracting(self, number: int, consumed: int, total: int) -> None: ...

    async def complete(self, number: int) -> None: ...
