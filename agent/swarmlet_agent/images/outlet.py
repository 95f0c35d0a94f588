"""How images leave for registries: which ones a push means, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Sequence

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet_agent.images.intake import Event
from swarmlet_agent.images.platforms import Platform, check_platform
from swarmlet_agent.images.progress import Hub
from swarmlet_agent.images.push import Outgoing, Pusher
from swarmlet_agent.images.pushplan import came_as
from swarmlet_agent.images.reference import Reference
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
        record, layers = self._shelf.catalogue.record(image_id), self._shelf.layers_of(image_id)
        return Outgoing(
            self._shelf.catalogue.configuration(image_id), layers,
            tuple(self._shelf.layers.path(layer.chain_id) for layer in layers),
            came_as(record.manifest, record.manifest_type),
        )
