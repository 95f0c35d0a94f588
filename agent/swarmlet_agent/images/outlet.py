"""How images leave, for registries and in archives: which ones a push or a save means, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet_agent.images.intake import Event
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.platforms import Platform, check_platform
from swarmlet_agent.images.progress import Hub
from swarmlet_agent.images.push import Outgoing, Pusher
from swarmlet_agent.images.pushplan import came_as
from swarmlet_agent.images.reference import Reference, is_image_id, parse_reference
from swarmlet_agent.images.save import Saved, archive_chunks
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.types import RegistryAuth


class Outlet:
    def __init__(self, shelf: Shelf, pusher: Pusher, event: Event) -> None:
        self._shelf, self._pusher, self._event = shelf, pusher, event

    async def push(self, ref: Reference, auth: RegistryAuth | None, wanted: Platform | None, hub: Hub) -> None:
        """One tag, or all of the repository if ref has none; what happens is told to the hub in dockerd's words."""
        if ref.digest:
            raise InvalidArgument("cannot push a digest reference")
        hub.emit({"status": f"The push refers to repository [{ref.name}]"})
        catalogue = self._shelf.catalogue
        named = self._tags(ref)
        for name in named:
            image_id = catalogue.find(name.full)
            image = catalogue.image(image_id)
            check_platform(name.familiar, image.platform, wanted)
            async with self._shelf.keeping(catalogue.record(image_id).layers):
                digest = await self._pusher.push(name, auth, self._outgoing(image_id), hub)
            await self._shelf.note_digest(image_id, name.with_digest(digest))
        image = catalogue.image(catalogue.find(named[-1].full))
        self._event("push", ref.familiar, ref.familiar_name, image)

    async def save(self, refs: Sequence[str], wanted: Platform | None) -> AsyncGenerator[bytes, None]:
        """An archive of these images in pieces. NotFound before the first piece."""
        chosen = self._to_save(refs, wanted)
        async with self._shelf.keeping([layer.chain_id for saved in chosen for layer in saved.layers]):
            chunks = archive_chunks(chosen)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        for saved in chosen:
            ident = saved.configuration.id
            if ident in self._shelf.catalogue:
                self._event("save", ident, ident, self._shelf.catalogue.image(ident))

    def _to_save(self, refs: Sequence[str], wanted: Platform | None) -> list[Saved]:
        catalogue = self._shelf.catalogue
        names: dict[str, list[Reference]] = {}
        for ref in refs:
            for image_id, name in self._meant(ref):
                check_platform(ref, catalogue.image(image_id).platform, wanted)
                known = names.setdefault(image_id, [])
                if name is not None and name not in known:
                    known.append(name)
        return [
            Saved(catalogue.configuration(image_id), *self._on_disk(image_id), tuple(tags))
            for image_id, tags in names.items()
        ]

    def _meant(self, ref: str) -> list[tuple[str, Reference | None]]:
        """docker save's arguments: an id alone, a name with its tag, or a repository with all its tags."""
        catalogue = self._shelf.catalogue
        if not is_image_id(ref) and not ref.startswith("sha256:"):
            parsed = parse_reference(ref)
            if not parsed.version:
                tagged: list[tuple[str, Reference | None]] = [
                    (image.id, name) for image in catalogue.images() for name in catalogue.names(image.id)
                    if name.tag and name.name == parsed.name
                ]
                if tagged:
                    return tagged
        try:
            image_id = catalogue.find(ref)
        except NotFound as err:  # dockerd repeats the name as it was given here
            raise NotFound("image", ref) from err
        named = catalogue.name_meant(ref, image_id)
        return [(image_id, named if named is not None and named.tag else None)]

    def _tags(self, ref: Reference) -> Sequence[Reference]:
        """NotFound in dockerd's words."""
        catalogue = self._shelf.catalogue
        names = [
            name for image in catalogue.images() for name in catalogue.names(image.id) if name.name == ref.name
        ]
        if not names:
            raise NotFound(
                "image", ref.familiar, f"An image does not exist locally with the tag: {ref.familiar_name}"
            )
        tags = sorted((name for name in names if name.tag and ref.tag in ("", name.tag)), key=lambda name: name.tag)
        if not tags:
            raise NotFound("image", ref.familiar, f"tag does not exist: {ref.familiar}")
        return tags

    def _outgoing(self, image_id: str) -> Outgoing:
        record = self._shelf.catalogue.record(image_id)
        return Outgoing(
            self._shelf.catalogue.configuration(image_id), *self._on_disk(image_id),
            came_as(record.manifest, record.manifest_type),
        )

    def _on_disk(self, image_id: str) -> tuple[tuple[Layer, ...], tuple[Path, ...]]:
        """The image's layers and their folders, lowest first."""
        layers = self._shelf.layers_of(image_id)
        return layers, tuple(self._shelf.layers.path(layer.chain_id) for layer in layers)
