"""What earlier builds have made of which step: the build cache, in the journal's table "build".

A key names a step together with all that came before it; the entry is the image after the step. What an entry needs of
the layer store is held by it. Keys: "step/<key>" a CacheEntry; "run/<id>" a build under way that makes containers.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import msgspec

from swarmlet.model.base import Record
from swarmlet_agent.builder.pruning import REGULAR, Item
from swarmlet_agent.builder.state import State, state_of
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import digest_of, parse_config
from swarmlet_agent.images.workshop import Workshop
from swarmlet_agent.journal import Journal, Write

TABLE = "build"
#: Beyond either bound the entries not used for the longest time go.
MAX_ENTRIES = 5_000
MAX_BYTES = 20 << 30
#: A use is written down only if the last one written is older than this: cached builds need not wait for the disk.
_USE_EVERY_NS = 3600 * 10**9
_MAX_DIGESTS = 4096


class CacheEntry(Record, frozen=True, kw_only=True):
    """raw: the configuration of the image after the step; layer: the step's own, "" for none. Times in ns."""

    key: str
    parent: str
    raw: bytes
    layer: str
    description: str
    created_at: int
    used_at: int
    uses: int = 0


def key_of(parent: State, *parts: str) -> str:
    """The key of a step after `parent`."""
    return digest_of(msgspec.json.encode([parent.id, *parts])).removeprefix("sha256:")


class BuildCache:
    def __init__(self, journal: Journal, workshop: Workshop) -> None:
        self._journal, self._workshop = journal, workshop
        self._entries: dict[str, CacheEntry] = {}
        self._states: dict[str, State] = {}
        self._held: Counter[str] = Counter()
        self._digests: OrderedDict[Hashable, str] = OrderedDict()
        self._running: set[str] = set()
        workshop.hold(lambda: frozenset(self._held))

    def load(self) -> None:
        """From the journal: before the image store starts, which asks which layers are needed."""
        for key, value in self._journal.items(TABLE):
            kind, _, name = key.partition("/")
            if kind == "run":
                self._running.add(name)
            else:
                self._remember(msgspec.msgpack.decode(value, type=CacheEntry))

    async def check(self) -> None:
        """After the store's start: entries whose layers are not there any more are forgotten."""
        broken = [
            key for key, state in self._states.items()
            if any(self._workshop.layer(chain) is None for chain in state.chains)
        ]
        await self._forget(broken)

    # looking

    def find(self, key: str) -> State | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries[key] = msgspec.structs.replace(entry, used_at=time.time_ns(), uses=entry.uses + 1)
        return self._states[key]

    def digest(self, key: Hashable) -> str | None:
        """A digest that was computed before, of something that cannot change."""
        found = self._digests.get(key)
        if found is not None:
            self._digests.move_to_end(key)
        return found

    def keep_digest(self, key: Hashable, digest: str) -> None:
        self._digests[key] = digest
        while len(self._digests) > _MAX_DIGESTS:
            self._digests.popitem(last=False)

    def items(self, in_use: frozenset[str]) -> list[Item]:
        """As they are shown and pruned. in_use: layers that images have, too.

        A layer that two steps have come to counts once, for the one used last: the sum is what the disk has.
        """
        items, counted = [], set()
        for entry in sorted(self._entries.values(), key=lambda entry: entry.used_at, reverse=True):
            size = 0 if entry.layer in counted else self._size(entry)
            counted.add(entry.layer)
            items.append(Item(
                key=entry.key, kind=REGULAR, description=entry.description, size_bytes=size,
                created_at=entry.created_at, used_at=entry.used_at, uses=entry.uses, parent=entry.parent,
                shared=entry.layer in in_use, needed=not in_use.isdisjoint(self._states[entry.key].chains[-1:]),
                layer=entry.layer, chain=frozenset(self._states[entry.key].chains),
            ))
        return items

    def _size(self, entry: CacheEntry) -> int:
        layer = self._workshop.layer(entry.layer) if entry.layer else None
        return layer.size_bytes if layer is not None else 0

    # changing

    async def begin(self, build: str) -> None:
        """On disk before a build's first container: whatever is left of it is found by the name."""
        if build not in self._running:
            self._running.add(build)
            await self._journal.put(TABLE, f"run/{build}", b"")

    @property
    def unfinished(self) -> frozenset[str]:
        return frozenset(self._running)

    async def finish(self, build: str, entries: Sequence[CacheEntry], used: Iterable[str]) -> None:
        """A build is over: what it made is cached. The caller still pins the layers."""
        writes: list[Write] = []
        if entries:
            await self._workshop.sync({chain for entry in entries for chain in _chains(entry)})
        layers: dict[str, Layer] = {}
        for entry in entries:
            writes.append(Write(TABLE, f"step/{entry.key}", msgspec.msgpack.encode(entry)))
            for chain in _chains(entry):
                if (layer := self._workshop.layer(chain)) is not None:
                    layers[chain] = layer
        writes += [Write("images", f"layer/{chain}", msgspec.msgpack.encode(layer)) for chain, layer in layers.items()]
        writes += self._uses(used)
        if build in self._running:
            writes.append(Write(TABLE, f"run/{build}", None))
        if writes:
            await self._journal.write(*writes)
        self._running.discard(build)
        replaced = [chain for entry in entries if entry.key in self._states for chain in self._states[entry.key].chains]
        for entry in entries:
            self._remember(entry)
        if replaced:
            await self._workshop.sweep(sorted(set(replaced), key=self._depth))
        await self._shrink()

    def _uses(self, keys: Iterable[str]) -> list[Write]:
        writes = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and entry.used_at - entry.created_at > _USE_EVERY_NS:
                writes.append(Write(TABLE, f"step/{key}", msgspec.msgpack.encode(entry)))
        return writes

    async def remove(self, keys: Sequence[str]) -> int:
        """Forget these steps; the bytes of the layers that nothing needed any more."""
        return sum(layer.size_bytes for layer in await self._forget(keys))

    async def _shrink(self) -> None:
        """Within the bounds again."""
        total, doomed = 0, []
        seen: set[str] = set()
        latest = sorted(self._entries.values(), key=lambda entry: entry.used_at, reverse=True)
        for count, entry in enumerate(latest, 1):
            if entry.layer not in seen:
                seen.add(entry.layer)
                total += self._size(entry)
            if count > MAX_ENTRIES or total > MAX_BYTES:
                doomed.append(entry.key)
        await self._forget(doomed)

    async def _forget(self, keys: Sequence[str]) -> list[Layer]:
        if not keys:
            return []
        await self._journal.write(*(Write(TABLE, f"step/{key}", None) for key in keys))
        chains: dict[str, None] = {}
        for key in keys:
            if self._entries.pop(key, None) is None:
                continue
            state = self._states.pop(key)
            self._held.subtract(state.chains)
            chains |= dict.fromkeys(state.chains)
        self._held += Counter()
        # Lower layers first, as sweep wants them: an image's chain lists them so.
        ordered = sorted(chains, key=self._depth)
        return await self._workshop.sweep(ordered)

    def _depth(self, chain: str) -> int:
        depth, layer = 0, self._workshop.layer(chain)
        while layer is not None and layer.parent:
            depth, layer = depth + 1, self._workshop.layer(layer.parent)
        return depth

    def _remember(self, entry: CacheEntry) -> None:
        before = self._states.pop(entry.key, None)
        if before is not None:
            self._held.subtract(before.chains)
        state = state_of(parse_config(entry.raw))
        self._entries[entry.key], self._states[entry.key] = entry, state
        self._held.update(state.chains)
        self._held += Counter()


def _chains(entry: CacheEntry) -> tuple[str, ...]:
    return parse_config(entry.raw).chain_ids
