"""Images in the making: what the builder needs of the store, and nobody else sees.

Between its steps a build has images that are in no catalogue: the engine can make containers of them while they are
lent. Their layers are kept by pins while the build runs, and by the build cache (a holder) afterwards.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet_agent.images.capture import forget_mount_points, seal
from swarmlet_agent.images.layers import Keep, Layer
from swarmlet_agent.images.manifests import Configuration
from swarmlet_agent.images.platforms import Platform
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.types import Image
from swarmlet_agent.images.unpack import Unpacked

log = get_logger(__name__)
_BENCH = "build-"
T = TypeVar("T")
#: Action, whom it is about, the name in its attributes, the image.
Event = Callable[[str, str, str, Image], None]


class Workshop:
    """One per image store."""

    def __init__(self, shelf: Shelf, host: Platform, event: Event) -> None:
        self._shelf, self._event = shelf, event
        self.host = host
        self.lent: dict[str, Image] = {}
        self._lenders: Counter[str] = Counter()

    @property
    def tmp(self) -> Path:
        """For files that need not outlive this process; emptied at start."""
        return self._shelf.layers.tmp

    def hold(self, layers: Callable[[], frozenset[str]]) -> None:
        """Someone else who needs layers: ask it, too, before any is removed. Before the store starts."""
        self._shelf.holders.append(layers)

    async def recover(self) -> None:
        """At start: unmount and remove what a build that was killed had mounted."""
        for name in self._shelf.roots.names():
            if name.startswith(_BENCH):
                await self._shelf.roots.remove(name)

    def configuration(self, image_id: str) -> Configuration:
        return self._shelf.catalogue.configuration(image_id)

    def layer(self, chain_id: str) -> Layer | None:
        return self._shelf.layers.get(chain_id)

    def pinned(self, chains: Sequence[str]) -> AbstractContextManager[None]:
        """These layers stay while the block runs."""
        return self._shelf.layers.pinned(chains)

    async def sync(self, chains: Iterable[str]) -> None:
        """The files of these layers are on disk when this returns."""
        await self._shelf.layers.sync(chains)

    async def sweep(self, chains: Iterable[str]) -> list[Layer]:
        """Remove those of the layers that nothing needs any more; what went."""
        return await self._shelf.sweep(chains)

    async def add(self, configuration: Configuration, names: Sequence[Reference], parent: str) -> Image:
        """A finished image, under these names. Its layers are pinned. parent: the one that it was built on, or ""."""
        image = await self._shelf.add(configuration, names, tagged=bool(names), parent=parent)
        for name in names:
            self._event("tag", image.id, name.familiar, image)
        return image

    def in_images(self) -> frozenset[str]:
        """Layers that images have."""
        return self._shelf.catalogue.layers_in_use()

    @contextmanager
    def lending(self, configuration: Configuration) -> Iterator[None]:
        """While the block runs the engine can make containers of it by its id."""
        image_id = configuration.id
        self.lent[image_id] = Image(
            id=image_id, config=configuration.config, layers=configuration.chain_ids,
            architecture=configuration.platform.architecture, os=configuration.platform.os,
            created=configuration.created, size_bytes=0, variant=configuration.platform.variant,
        )
        self._lenders[image_id] += 1
        try:
            yield
        finally:
            self._lenders[image_id] -= 1
            if not self._lenders[image_id]:
                del self._lenders[image_id], self.lent[image_id]

    @asynccontextmanager
    async def bench(self, chains: Sequence[str]) -> AsyncIterator[Bench]:
        """A root over these layers (lowest first), mounted while the block runs."""
        name = f"{_BENCH}{secrets.token_hex(16)}"
        roots = self._shelf.roots
        ensuring = asyncio.ensure_future(roots.ensure(name, chains))
        try:
            yield Bench(self, name, await asyncio.shield(ensuring), tuple(chains))
        finally:
            await to_the_end(self._remove(name, ensuring))

    async def _remove(self, name: str, ensuring: asyncio.Future[Path]) -> None:
        await asyncio.wait([ensuring])
        try:
            if not ensuring.cancelled() and ensuring.exception() is None:
                await self._shelf.roots.remove(name)
        except (Internal, OSError) as err:
            log.warning("a build's mount stays behind until the next start", root=name, error=str(err))

    async def take(
        self, root: str, chains: Sequence[str], keep: Keep, mounts: Iterable[str] = ()
    ) -> Layer | None:
        """What was changed in a root over `chains`, as a layer; the root keeps its look, with the layer below it now.

        None if nothing was. keep: told of the layer in time to pin it, for the root may be removed at any moment
        and whoever removes one sweeps its layers. mounts: where the runtime mounted things, whose places are no
        change. Nobody may use the root meanwhile. Internal for the disk's errors.
        """
        roots, layers = self._shelf.roots, self._shelf.layers
        await roots.unmount(root)
        upper, targets = roots.upper(root), tuple(mounts)
        lower = [layers.diff(chain) for chain in reversed(chains)]

        def fill(work: Path, stopped: Callable[[], bool]) -> Unpacked | None:
            diff = work / "diff"
            os.rename(upper, diff)
            forget_mount_points(diff, lower, targets)
            return seal(diff, work / "recipe", stopped)

        try:
            layer = await layers.add_folder(chains[-1] if chains else "", fill, keep)
        except OSError as err:
            raise Internal(f"the step's changes cannot be stored: {err.strerror or err}") from err
        await roots.rebase(root, layer.chain_id if layer is not None else "")
        return layer


class Bench:
    """A mounted root. path: its files."""

    def __init__(self, workshop: Workshop, name: str, path: Path, chains: tuple[str, ...]) -> None:
        self._workshop, self._name, self.path, self._chains = workshop, name, path, chains

    async def take(self, keep: Keep) -> Layer | None:
        """The layer of what was changed; the path is of no use afterwards."""
        return await self._workshop.take(self._name, self._chains, keep)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Clearing up is waited for even while being cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
