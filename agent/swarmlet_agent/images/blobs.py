"""Which blobs of registries carry which layers, as pulls and pushes have shown: durable in the journal's table "blobs".

Knowledge, not truth: a registry is always asked before a blob is counted on. It saves uploads of what is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from swarmlet.model.base import Record
from swarmlet_agent.images.manifests import Descriptor
from swarmlet_agent.journal import Journal, Write

_TABLE = "blobs"
#: Kept of each layer, the last ones first: differently compressed forms, and repositories of each.
_MAX_BLOBS = 8
_MAX_REPOSITORIES = 32


class KnownBlob(Record, frozen=True, kw_only=True):
    """A layer's compressed form. repositories: full names ("docker.io/library/busybox"), last seen first."""

    digest: str
    size: int
    media_type: str = ""
    repositories: tuple[str, ...] = ()

    def paths_at(self, domain: str) -> list[str]:
        """Paths of the repositories of one registry."""
        start = f"{domain}/"
        return [name.removeprefix(start) for name in self.repositories if name.startswith(start)]


class BlobBook:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[str, tuple[KnownBlob, ...]] = {}

    async def load(self, diff_ids: Collection[str]) -> None:
        """At start. What is known of layers that are not here any more is forgotten."""
        gone = []
        for diff_id, value in self._journal.items(_TABLE):
            if diff_id in diff_ids:
                self._known[diff_id] = msgspec.msgpack.decode(value, type=tuple[KnownBlob, ...])
            else:
                gone.append(Write(_TABLE, diff_id, None))
        if gone:
            await self._journal.write(*gone)

    def known(self, diff_id: str) -> tuple[KnownBlob, ...]:
        """Last seen first."""
        return self._known.get(diff_id, ())

    async def note(self, seen: Iterable[tuple[str, Descriptor]], repository: str) -> None:
        """(diff id, blob) pairs that a repository has."""
        changed = {}
        for diff_id, blob in seen:
            before = self.known(diff_id)
            after = with_blob(before, blob, repository)
            if after != before:
                changed[diff_id] = self._known[diff_id] = after
        if changed:
            await self._journal.write(
                *(Write(_TABLE, diff_id, msgspec.msgpack.encode(blobs)) for diff_id, blobs in changed.items())
            )


def with_blob(known: tuple[KnownBlob, ...], blob: Descriptor, repository: str) -> tuple[KnownBlob, ...]:
    """What is known once a repository has been seen to have a blob. Pure."""
    before = next((each for each in known if each.digest == blob.digest), None)
    others = tuple(each for each in known if each is not before)
    names = tuple(name for name in (before.repositories if before else ()) if name != repository)
    seen = KnownBlob(
        digest=blob.digest, size=blob.size, media_type=blob.media_type,
        repositories=(repository, *names)[:_MAX_REPOSITORIES],
    )
    return (seen, *others)[:_MAX_BLOBS]
