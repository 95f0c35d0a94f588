"""The build cache as `docker system df` shows it, and which of it `docker builder prune` takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from swarmlet.engine_api.filters import Filters
from swarmlet.model.times import rfc3339
from swarmlet_agent.images.listing import until_ns

REGULAR, CACHE_MOUNT = "regular", "exec.cachemount"
_FILTERS = (
    "until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private", "label", "label!",
)


@dataclass(frozen=True, slots=True)
class Item:
    """A step's result, or a cache of RUN --mount. shared: images have its layer, too; needed: they have the layers
    of the step, so that removing it would free nothing. layer: the step's own, "" for none; chain: all that its result
    consists of. Times in ns."""

    key: str
    kind: str
    description: str
    size_bytes: int
    created_at: int
    used_at: int
    uses: int
    parent: str = ""
    in_use: bool = False
    shared: bool = False
    needed: bool = False
    layer: str = ""
    chain: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return self.key[:25]


def shown(item: Item) -> dict[str, Any]:
    """Engine API BuildCache."""
    return {
        "ID": item.id, "Parents": [item.parent[:25]] if item.parent else None, "Type": item.kind,
        "Description": item.description, "InUse": item.in_use, "Shared": item.shared, "Size": item.size_bytes,
        "CreatedAt": rfc3339(item.created_at), "LastUsedAt": rfc3339(item.used_at), "UsageCount": item.uses,
    }


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of the cache may stay, in bytes (Engine API BuildPrune); 0 says nothing.

    reserved: so much in any case; max_used: no more than that; min_free: less, if the disk has less free than that.
    """

    reserved: int = 0
    max_used: int = 0
    min_free: int = 0

    def keep_bytes(self, total: int, free: int) -> int:
        """0 = nothing has to stay. total: of the cache now; free: of its disk."""
        if not (self.reserved or self.max_used or self.min_free):
            return 0
        limits = [self.max_used] if self.max_used else []
        if self.min_free:
            limits.append(max(0, total - max(0, self.min_free - free)))
        return max(self.reserved, min(limits, default=0))


def plan_pruning(
    items: Iterable[Item], filters: Filters, *, everything: bool, keep_bytes: int, now: int
) -> list[Item]:
    """What goes, the latest used first. InvalidArgument for a filter that is not known.

    A step that a later one is built on stays as long as that: without it nothing would be freed.

    everything: also what images need; keep_bytes: what may stay, the latest used first; filters: until and unused-for
    (both: not used since), id, parent, type, description, inuse, shared, private. Nothing here has labels, so `label`,
    which `docker system prune` passes on, keeps it all.
    """
    filters.check(*_FILTERS)
    flags = (filters.flag("inuse"), filters.flag("shared"), filters.flag("private"))
    if filters.get("label"):
        return []
    limits = [until_ns(text, now) for name in ("until", "unused-for") for text in filters.get(name)]
    before = min(limits, default=None)
    items = sorted(items, key=lambda item: item.used_at, reverse=True)
    sizes = {item.layer: item.size_bytes for item in reversed(items) if item.layer and item.size_bytes}
    chosen, kept, layers = [], 0, set[str]()
    for item in items:
        if (
            item.in_use or (item.needed and not everything)
            or (before is not None and item.used_at >= before)
            or any(flag not in (None, is_so) for flag, is_so in zip(
                flags, (item.in_use, item.shared, not item.shared), strict=True
            ))
            or not filters.matches_part("id", item.key) or not filters.matches_prefix("parent", item.parent)
            or not filters.matches_part("description", item.description) or not filters.matches("type", item.kind)
        ):
            continue
        cost = sum(sizes.get(layer, 0) for layer in item.chain - layers) if item.chain else item.size_bytes
        if keep_bytes and kept + cost <= keep_bytes:
            kept += cost
            layers |= item.chain
            continue
        chosen.append(item)
    gone = set(chosen)
    held = frozenset[str]().union(*(item.chain for item in items if item not in gone))
    return [item for item in chosen if item.layer not in held]
