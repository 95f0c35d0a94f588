"""Choosing among backends by a random slot of an nftables map, for VIPs and for published ports. Pure.

There is a map for each number of slots: its key ends with the slot, its value is the backend of that slot, and before
a rule looks there, another draws the slot at random. A service is in the one map whose number of slots divides evenly
among its backends, or nearly so; where a map does not know it, the next rule looks in the next one.

What is drawn lies in the mark of the connection, for nft 1.0.2 takes no random number as a part of a key. Not in that
of the packet: the kernel asks for its route again right after the translation, and marks may choose routes.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from swarmlet_agent.net.nftset import Change, Element, Verb

#: nftables' numbers of IPv4 and IPv6.
NFPROTO = {4: 2, 6: 10}
#: Numbers of slots. Exact for the usual services; with more backends some get a slot more than others.
SIZES: tuple[int, ...] = (*range(1, 13), 16, 24, 60, 240, 960)
MOST_BACKENDS = SIZES[-1]
#: A backend with one slot more than another gets at most a fifth more, if any size allows it.
_FAIR_SLOTS = 5

#: A backend: its address, or its address and port.
B = TypeVar("B", str, tuple[str, int])


def size_for(backends: int) -> int:
    """How many slots a service gets."""
    if backends >= MOST_BACKENDS:
        return MOST_BACKENDS
    possible = [size for size in SIZES if size >= backends]
    for size in possible:
        if size % backends == 0 or size // backends >= _FAIR_SLOTS:
            return size
    return possible[-1]


def fill(before: Sequence[B], backends: Sequence[B]) -> tuple[B, ...]:
    """The backend of each slot, even within one slot, keeping as many as possible of those before.

    before: as an earlier call answered. More backends than the largest size has slots: the first ones in order.
    """
    wanted = sorted(set(backends))[:MOST_BACKENDS]
    if not wanted:
        return ()
    if set(before) == set(wanted):
        return tuple(before)
    size = size_for(len(wanted))
    fair, extra = divmod(size, len(wanted))
    if len(before) != size:
        return tuple(wanted[place % len(wanted)] for place in range(size))
    had: defaultdict[B, int] = defaultdict(int)
    for backend in before:
        had[backend] += 1
    # Those with most slots keep the odd ones.
    rich = set(sorted(wanted, key=lambda backend: (-had[backend], backend))[:extra])
    left = {backend: fair + (backend in rich) for backend in wanted}
    slots: list[B | None] = []
    for backend in before:
        keeps = left.get(backend, 0) > 0
        slots.append(backend if keeps else None)
        if keeps:
            left[backend] -= 1
    spare = iter([backend for backend in wanted for _ in range(left[backend])])
    return tuple(next(spare) if backend is None else backend for backend in slots)


_Elements = defaultdict[tuple[int, str], list[Element]]


@dataclass(slots=True)
class Edits:
    """Element changes of one table's sets and maps. first: what its rules draw for the first slot."""

    table: str
    first: int
    _removed: _Elements = field(default_factory=lambda: defaultdict(list))
    _added: _Elements = field(default_factory=lambda: defaultdict(list))
    _removed_last: _Elements = field(default_factory=lambda: defaultdict(list))

    def remove(self, family: int, name: str, *elements: Element) -> None:
        self._removed[family, name] += elements

    def add(self, family: int, name: str, *elements: Element) -> None:
        self._added[family, name] += elements

    def move(
        self, family: int, prefix: str, key: bytes, old: Sequence[B], new: Sequence[B], value: Callable[[B], bytes]
    ) -> None:
        """From one choice of slots to another, in the maps that are called prefix + size.

        Rules look in the small maps first, and each look is at what holds in that moment: a packet that has missed a
        small map, before it had the key, must still find it in the large one.
        """
        moved = len(old) != len(new)
        removed = self._removed_last if 0 < len(new) < len(old) else self._removed
        for place, backend in enumerate(old):
            if moved or new[place] != backend:
                removed[family, f"{prefix}{len(old)}"].append(Element(self._slot_key(key, place, len(old))))
        for place, backend in enumerate(new):
            if moved or old[place] != backend:
                element = Element(self._slot_key(key, place, len(new)), value(backend))
                self.add(family, f"{prefix}{len(new)}", element)

    def _slot_key(self, key: bytes, place: int, size: int) -> bytes:
        # A mark is a number of the host, not of the network.
        return key + struct.pack("=I", self.first + place) if size > 1 else key

    def changes(self) -> tuple[Change, ...]:
        """What goes first, then what comes, then what goes once that is there: `in_turn` makes transactions of them."""
        return tuple(
            Change(verb, NFPROTO[family], self.table, name, tuple(elements))
            for verb, found in (
                (Verb.REMOVE, self._removed), (Verb.ADD, self._added), (Verb.REMOVE, self._removed_last)
            )
            for (family, name), elements in sorted(found.items())
        )


def in_turn(changes: Sequence[Change]) -> list[Sequence[Change]]:
    """One transaction, or two: what is removed behind what is added holds until that does."""
    added = [place for place, change in enumerate(changes) if change.verb is Verb.ADD]
    end = added[-1] + 1 if added else len(changes)
    return [turn for turn in (changes[:end], changes[end:]) if turn]


def maps_text(key: str, prefix: str, value: str) -> list[str]:
    """The maps that are called prefix + size, in nft's language. key: without the slot.

    No `size`, so the maps grow with their content: with one, each namespace would pay for its buckets at once.
    """
    return [f"map {prefix}{size} {{ typeof {_key_text(key, size)} : {value}; }}" for size in SIZES]


def rules_text(dnat: str, key: str, prefix: str, first: int) -> list[str]:
    """The rules that look in those maps, from small to large, each drawing its slot. first: as `Edits` has it.

    dnat: the statement before the key. The connection's mark is overwritten.
    """
    rules: list[str] = []
    for size in SIZES:
        if size > 1:
            rules.append(f"ct mark set numgen random mod {size} offset {first:#x}")
        rules.append(f"{dnat} {_key_text(key, size)} map @{prefix}{size}")
    return rules


def no_table(family: int, name: str) -> str:
    """The end of a table, in nft's language. Not there is fine."""
    ip = "ip" if family == 4 else "ip6"
    return f"table {ip} {name} {{}}\ndelete table {ip} {name}\n"


def _key_text(key: str, size: int) -> str:
    return f"{key} . ct mark" if size > 1 else key
