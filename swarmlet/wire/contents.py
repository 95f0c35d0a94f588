"""Secrets and configs on their way to a node that has a task with them: before the orders that tell of the task.

They are kept in memory there, until orders say that no task needs them any more.
"""

from __future__ import annotations

from swarmlet.model.base import Record

#: Contents of one message together have about so many bytes, at most.
MESSAGE_BYTES = 4 << 20


class Content(Record, frozen=True, kw_only=True):
    """kind: secret or config. templating: as in its record. lacking: why there is no data, for whoever asks."""

    id: str
    kind: str
    name: str
    data: bytes = b""
    templating: str = ""
    lacking: str = ""

    def __repr__(self) -> str:
        return f"Content(id={self.id!r}, kind={self.kind!r}, name={self.name!r})"


class Contents(Record, frozen=True, kw_only=True, tag="contents"):
    """term: as in orders."""

    term: int
    items: tuple[Content, ...] = ()
