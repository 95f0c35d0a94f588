"""How images go: what `docker rmi` and `docker image prune` mean, done to the shelf and told to clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import NotFound
from swarmlet_agent.images import listing
from swarmlet_agent.images.intake import Event
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.removal import Removal, User, plan_parent, plan_pruning, plan_removal
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.types import Image

#: What clients print, a line each: {"Untagged": name} or {"Deleted": id of an image or layer}.
Deleted = list[dict[str, str]]


class Disposal:
    """users: the containers made from an image."""

    def __init__(self, shelf: Shelf, users: Callable[[str], Sequence[User]], event: Event) -> None:
        self._shelf, self._users, self._event = shelf, users, event

    async def remove(self, ref: str, *, force: bool, prune_parents: bool) -> Deleted:
        """One image, or one of its names. NotFound; Conflict in dockerd's words.

        prune_parents: the images that it was made on go too, if nothing else needs them.
        """
        catalogue = self._shelf.catalogue

        def plan(image_id: str) -> Removal:
            return plan_removal(
                image_id, catalogue.names(image_id), catalogue.name_meant(ref, image_id), self._users(image_id),
                force=force, has_children=catalogue.has_children(image_id),
            )

        return await self._removed(ref, plan, prune_parents=prune_parents)

    async def prune(self, filters: Filters, now: int) -> tuple[Deleted, int]:
        """What the filters mean and nothing needs; and the bytes of layers and their kept forms that freed. now: ns."""
        filters.check(*listing.PRUNE_FILTERS)
        dangling_only = filters.flag("dangling") is not False
        until = min((listing.until_ns(text, now) for text in filters.get("until")), default=None)
        before = {layer.chain_id: layer.size_bytes for layer in self._shelf.layers.all()}
        kept = self._shelf.kept.all()
        deleted: Deleted = []
        for image in self._shelf.catalogue.children_first():
            if (
                image.id not in self._shelf.catalogue or (dangling_only and not listing.is_dangling(image))
                or (until is not None and image.created >= until)
                or not filters.matches_labels(image.config.labels)
                or ("label!" in filters and filters.matches_labels(image.config.labels, "label!"))
            ):
                continue
            deleted += await self._removed(image.id, self._plan_pruning, prune_parents=True)
        left = self._shelf.kept.all()
        freed = sum(before.get(entry.get("Deleted", ""), 0) for entry in deleted)
        return deleted, freed + sum(blob.size for blob in kept if blob not in left)

    def _plan_pruning(self, image_id: str) -> Removal | None:
        catalogue = self._shelf.catalogue
        return plan_pruning(
            catalogue.names(image_id), self._users(image_id), has_children=catalogue.has_children(image_id)
        )

    def _plan_parent(self, image_id: str) -> Removal | None:
        catalogue = self._shelf.catalogue
        return plan_parent(
            catalogue.names(image_id), self._users(image_id), has_children=catalogue.has_children(image_id)
        )

    async def _removed(self, ref: str, plan: Callable[[str], Removal | None], *, prune_parents: bool) -> Deleted:
        """What was removed: each image before the one that it was made on."""
        catalogue = self._shelf.catalogue
        parent = catalogue.parent(catalogue.find(ref))
        done = await self._shelf.remove(ref, plan)
        deleted = self._told(done)
        while parent and prune_parents and done is not None and done[1].delete:
            ref, parent = parent, catalogue.parent(parent)
            try:
                done = await self._shelf.remove(ref, self._plan_parent)
            except NotFound:  # somebody was faster
                break
            deleted += self._told(done)
        return deleted

    def _told(self, done: tuple[Image, Removal, list[Layer]] | None) -> Deleted:
        """A removal's events, and its lines."""
        if done is None:
            return []
        image, removal, layers = done
        lines: Deleted = [{"Untagged": name.familiar} for name in removal.untag]
        for _name in removal.untag:
            self._event("untag", image.id, image.id, image)
        if removal.delete:
            lines += [{"Deleted": image.id}, *({"Deleted": layer.chain_id} for layer in layers)]
            self._event("delete", image.id, image.id, image)
        return lines
