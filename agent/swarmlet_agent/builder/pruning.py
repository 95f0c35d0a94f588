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
    of the step, so that removing it would free nothing. Times in ns."""

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


def plan_pruning(
    items: Iterable[Item], filters: Filters, *, everything: bool, keep_bytes: int, now: int
) -> list[Item]:
    """What goes, the latest used first. InvalidArgument for a filter that is not known.

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
    chosen, kept = [], 0
    for item in sorted(items, key=lambda item: item.used_at, reverse=True):
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
        if keep_bytes and kept + item.size_bytes <= keep_bytes:
            kept += item.size_bytes
            continue
        chosen.append(item)
    return chosen
