"""Names, records and layers kept in step: every change of what images there are goes through here.

Each change looks, writes the journal, then changes memory, one at a time. Which layers are needed is derived from
the catalogue and from containers' roots; layers that nothing needs go right after the change that freed them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec

from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet_agent.images.catalogue import Catalogue, ImageRecord
from swarmlet_agent.images.kept import KeptBlob, KeptBlobs
from swarmlet_agent.images.layers import Layer, LayerStore
from swarmlet_agent.images.manifests import Configuration
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.removal import Removal
from swarmlet_agent.images.rootfs import RootStore
from swarmlet_agent.images.types import Image

log = get_logger(__name__)


class Shelf:
    def __init__(self, catalogue: Catalogue, layers: LayerStore, roots: RootStore, kept: KeptBlobs) -> None:
        self.catalogue, self.layers, self.roots, self.kept = catalogue, layers, roots, kept
        self._changing = asyncio.Lock()
        #: Others who need layers (the build cache).
        self.holders: list[Callable[[], frozenset[str]]] = []

    async def recover(self) -> None:
        """At start: what journal and disk agree on stays, the rest goes."""
        known = self.catalogue.load()
        await asyncio.to_thread(self.roots.recover)
        await asyncio.to_thread(self.layers.recover, known, self._needed())
        for image in self.catalogue.images():
            missing = [chain for chain in image.layers if self.layers.get(chain) is None]
            if missing:
                log.warning("image is dropped: a layer is missing on disk", image=image.id, layer=missing[0])
                await self.catalogue.remove(image.id, self.catalogue.names(image.id), ())
        stale = {layer.chain_id for layer in known} - {layer.chain_id for layer in self.layers.all()}
        if stale:
            await self.catalogue.forget_layers(stale)
        await self.sweep([layer.chain_id for layer in self.layers.all()])
        await self.kept.recover(self._diff_ids())

    def layers_of(self, image_id: str) -> tuple[Layer, ...]:
        """The image's layers, lowest first."""
        chains = self.catalogue.record(image_id).layers
        return tuple(layer for chain in chains if (layer := self.layers.get(chain)) is not None)

    @asynccontextmanager
    async def keeping(self, chains: Sequence[str]) -> AsyncIterator[None]:
        """These layers (lowest first) stay while the block runs; those that nothing needs then go.

        So a failure leaves nothing of what was on its way in, and a removal in the meantime is made good.
        """
        try:
            with self.layers.pinned(chains):
                yield
        finally:
            if not self._needed().issuperset(chains):
                await self.sweep(chains)

    async def add(
        self, config: Configuration, names: Sequence[Reference], *, comment: str = "", tagged: bool = False,
        manifest: tuple[bytes, str] = (b"", ""), kept: Sequence[KeptBlob] = (), parent: str = "",
    ) -> Image:
        """Promise the image: its layers are installed and pinned, and are on disk before it is in the journal.

        manifest: the one it came with, and its media type. kept: forms of its layers that are in their places.
        parent: the image that it was made on.
        """
        await self.layers.sync(config.chain_ids)
        layers = [layer for chain in config.chain_ids if (layer := self.layers.get(chain)) is not None]
        if len(layers) != len(config.chain_ids):
            raise Internal("a layer of the image was removed meanwhile: try again")
        async with self._changing:
            before = self.catalogue.record(config.id) if config.id in self.catalogue else None
            record = before or ImageRecord(
                id=config.id, raw_config=config.raw, layers=config.chain_ids, comment=comment,
                parent=parent if parent != config.id else "",
                size_bytes=sum(layer.size_bytes for layer in layers),
            )
            if manifest[0]:
                record = msgspec.structs.replace(record, manifest=manifest[0], manifest_type=manifest[1])
            if tagged:
                record = msgspec.structs.replace(record, tagged_at=time.time_ns())
            await self.catalogue.add(record, layers, names, self.kept.writes(kept))
            self.kept.count_in(kept)
        return self.catalogue.image(config.id)

    async def tag(self, ref: str, name: Reference) -> Image:
        """Another name for an image; taken from whoever had it. NotFound."""
        async with self._changing:
            image_id = self.catalogue.find(ref)
            record = msgspec.structs.replace(self.catalogue.record(image_id), tagged_at=time.time_ns())
            await self.catalogue.add(record, (), [name])
        return self.catalogue.image(image_id)

    async def note_digest(self, image_id: str, name: Reference) -> None:
        """A registry has the image under this digest now. If the image is gone meanwhile, so be it."""
        async with self._changing:
            if image_id in self.catalogue and self.catalogue.named(name.full) != image_id:
                await self.catalogue.add(self.catalogue.record(image_id), (), [name])

    async def remove(
        self, ref: str, plan: Callable[[str], Removal | None]
    ) -> tuple[Image, Removal, list[Layer]] | None:
        """Do what `plan` says about the image behind a reference, or nothing if it says None.

        Returns the image as it was, what was planned, and the layers that went. NotFound; what plan raises.
        """
        async with self._changing:
            image_id = self.catalogue.find(ref)
            removal = plan(image_id)
            if removal is None:
                return None
            image = self.catalogue.image(image_id)
            if removal.delete:
                for container_id in removal.kept_for:
                    self.roots.reserve(container_id, image.layers)
                await self.catalogue.remove(image_id, removal.untag, ())
            else:
                await self.catalogue.untag(removal.untag)
        return image, removal, await self.sweep(image.layers) if removal.delete else []

    async def sweep(self, chains: Iterable[str]) -> list[Layer]:
        """Remove those of the layers that nothing needs. Returns them, the highest first."""
        gone = await self.layers.sweep(self._needed, chains)
        # One that was made again meanwhile may be in the journal by now, as a promise.
        doomed = [layer.chain_id for layer in gone if self.layers.get(layer.chain_id) is None]
        if doomed:
            await self.catalogue.forget_layers(doomed)
            await self.kept.forget_layers({layer.diff_id for layer in gone} - self._diff_ids())
        return gone

    def _diff_ids(self) -> set[str]:
        return {layer.diff_id for layer in self.layers.all()}

    def _needed(self) -> frozenset[str]:
        return self.catalogue.layers_in_use().union(
            self.roots.layers_in_use(), *(layers() for layers in self.holders)
        )
