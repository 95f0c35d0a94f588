"""Which node has what: names and ids that this manager has seen lately, so that the next request goes straight there.

Only a shortcut: an agent's inventory and, last, asking every node are the truth, so forgetting is harmless.
"""

from __future__ import annotations

from collections import OrderedDict

#: Entries kept; an exec id is needed for as long as a client polls its exit code.
SIZE = 10_000


class Recent:
    """The newest `SIZE` pairs of an id (or name) and a node id."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, str] = OrderedDict()

    def note(self, ref: str, node_id: str) -> None:
        self._nodes[ref] = node_id
        self._nodes.move_to_end(ref)
        if len(self._nodes) > SIZE:
            self._nodes.popitem(last=False)

    def find(self, ref: str) -> str | None:
        return self._nodes.get(ref)

    def forget(self, ref: str) -> None:
        self._nodes.pop(ref, None)
