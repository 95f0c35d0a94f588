"""Which node has which container, as the agents tell: how the cluster view routes a name or an id.

In memory only; an agent sends all it has at the start of each session. A node that is away keeps its last
inventory, so that asking for one of its containers says "node is down" instead of "no such container".
"""

from __future__ import annotations

from collections.abc import Mapping

from swarmlet.errors import Conflict, InvalidArgument, NotFound
from swarmlet.wire.messages import Inventory

#: Of one node: an agent cannot fill the manager's memory.
MAX_CONTAINERS = 50_000


class Inventories:
    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}  # node -> container id -> name

    def apply(self, node_id: str, told: Inventory) -> None:
        """InvalidArgument for more than a node can have."""
        held = {} if told.full else self._names.setdefault(node_id, {})
        held.update((container.id, container.name) for container in told.containers)
        for ident in told.removed:
            held.pop(ident, None)
        if len(held) > MAX_CONTAINERS:
            raise InvalidArgument(f"node {node_id} lists {len(held)} containers; at most {MAX_CONTAINERS} are kept")
        self._names[node_id] = held

    def forget(self, node_id: str) -> None:
        self._names.pop(node_id, None)

    def of_node(self, node_id: str) -> Mapping[str, str]:
        """Container id -> name."""
        return self._names.get(node_id, {})

    def locate(self, ref: str) -> str:
        """The node of a container by name (with or without "/"), id or id prefix.

        NotFound; Conflict if the name or prefix means containers on several nodes.
        """
        wanted = ref.removeprefix("/")
        exact = {node for node, held in self._names.items() if wanted in held}
        found = exact or {node for node, held in self._names.items() if wanted in held.values()}
        if not found and wanted:
            matches = {
                (node, ident) for node, held in self._names.items() for ident in held if ident.startswith(wanted)
            }
            if len(matches) > 1:
                raise Conflict(f"multiple IDs found with provided prefix: {ref}")
            found = {node for node, _ in matches}
        if not found:
            raise NotFound("container", ref)
        if len(found) > 1:
            raise Conflict(f"container {ref} exists on {len(found)} nodes: use its id")
        return found.pop()

    def holder(self, name: str) -> tuple[str, str] | None:
        """(node, id) of the container of exactly this name, on a node that is away, too."""
        found = ((node, ident) for node, held in self._names.items() for ident, other in held.items() if other == name)
        return next(found, None)

