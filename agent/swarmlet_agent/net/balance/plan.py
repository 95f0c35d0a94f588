"""Which backend a new connection to a VIP goes to, as elements of nftables maps. Pure.

There is a map for each number of slots: its key is (VIP, slot), its value the backend of that slot, and the rule that
looks there draws the slot at random. A service is in the one map whose number of slots divides evenly among its
backends, or nearly so; where a map does not know the VIP, the next rule looks in the next one.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from swarmlet_agent.net.nftset import Change, Element, Verb

TABLE = "swlbalance1"
#: nftables' numbers of IPv4 and IPv6.
NFPROTO = {4: 2, 6: 10}
#: Numbers of slots. Exact for the usual services; with more backends some get a slot more than others.
SIZES: tuple[int, ...] = (*range(1, 13), 16, 24, 60, 240, 960)
MOST_BACKENDS = SIZES[-1]
#: A backend with one slot more than another gets at most a fifth more, if any size allows it.
_FAIR_SLOTS = 5

#: VIP -> its backends; none: refuse. Addresses are text, of one family within a service.
Services = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Programmed:
    """What the kernel's maps of one namespace hold: VIP -> the backend of each slot (none: refused)."""

    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def families(self) -> set[int]:
        return {6 if ":" in vip else 4 for vip in self.slots}


def size_for(backends: int) -> int:
    """How many slots a service gets."""
    if backends >= MOST_BACKENDS:
        return MOST_BACKENDS
    possible = [size for size in SIZES if size >= backends]
    for size in possible:
        if size % backends == 0 or size // backends >= _FAIR_SLOTS:
            return size
    return possible[-1]


def fill(before: Sequence[str], backends: Sequence[str]) -> tuple[str, ...]:
    """The backend of each slot, even within one slot, keeping as many as possible of those before.

    More backends than the largest size has slots: the first ones in the order of their addresses' text.
    """
    wanted = sorted(set(backends))[:MOST_BACKENDS]
    if not wanted:
        return ()
    size = size_for(len(wanted))
    fair, extra = divmod(size, len(wanted))
    if len(before) != size:
        return tuple(wanted[place % len(wanted)] for place in range(size))
    had: defaultdict[str, int] = defaultdict(int)
    for backend in before:
        had[backend] += 1
    # Those with most slots keep the odd ones.
    rich = set(sorted(wanted, key=lambda backend: (-had[backend], backend))[:extra])
    left = {backend: fair + (backend in rich) for backend in wanted}
    slots: list[str | None] = []
    for backend in before:
        keeps = left.get(backend, 0) > 0
        slots.append(backend if keeps else None)
        if keeps:
            left[backend] -= 1
    spare = iter([backend for backend in wanted for _ in range(left[backend])])
    return tuple(next(spare) if backend is None else backend for backend in slots)


def plan(before: Programmed, services: Services) -> Programmed:
    """What the maps should hold for these services."""
    return Programmed({vip: fill(before.slots.get(vip, ()), backends) for vip, backends in services.items()})


def difference(before: Programmed, after: Programmed) -> tuple[Change, ...]:
    """The element changes from one to the other, for one transaction: what goes first, then what comes."""
    removed: defaultdict[tuple[int, str], list[Element]] = defaultdict(list)
    added: defaultdict[tuple[int, str], list[Element]] = defaultdict(list)
    for vip in sorted({*before.slots, *after.slots}):
        old, new = before.slots.get(vip), after.slots.get(vip)
        if old == new:
            continue
        packed = ip_address(vip).packed
        family = 4 if len(packed) == 4 else 6
        if (old is None) != (new is None):
            (removed if new is None else added)[family, "vips"].append(Element(packed))
        old, new = old or (), new or ()
        moved = len(old) != len(new)
        for place, backend in enumerate(old):
            if moved or new[place] != backend:
                removed[family, f"s{len(old)}"].append(Element(_key(packed, place, len(old))))
        for place, backend in enumerate(new):
            if moved or old[place] != backend:
                added[family, f"s{len(new)}"].append(
                    Element(_key(packed, place, len(new)), ip_address(backend).packed)
                )
    return (*_changes(Verb.REMOVE, removed), *_changes(Verb.ADD, added))


def replacement(after: Programmed, families: Iterable[int]) -> tuple[Change, ...]:
    """The changes that make the maps of these families hold just this, whatever they hold now."""
    names = ("vips", *(f"s{size}" for size in SIZES))
    emptied = tuple(Change(Verb.REMOVE, NFPROTO[family], TABLE, name) for family in sorted(families) for name in names)
    return emptied + difference(Programmed(), after)


def ruleset(family: int) -> str:
    """The rules of one namespace and family as text, loaded once. The table must not be there yet.

    A changed text needs a new number in the table's name: a living namespace's table is taken to be this one.
    """
    ip = "ip" if family == 4 else "ip6"
    maps, rules = [], []
    for size in SIZES:
        slot = f" . numgen random mod {size}" if size > 1 else ""
        maps.append(f"map s{size} {{ typeof {ip} daddr{slot} : {ip} daddr; }}")
        rules.append(f"dnat to {ip} daddr{slot} map @s{size}")
    lines = "\n".join(rules)
    # No `size`, so the maps grow with their content: with one, each namespace would pay for its buckets at once.
    return (
        f"table {ip} {TABLE} {{\n" + "\n".join(maps) + f"\nset vips {{ type ipv{family}_addr; }}\n"
        f"chain out {{ type nat hook output priority -100; policy accept;\n{lines}\n}}\n"
        # What still goes to a VIP here found no backend.
        f"chain none {{ type filter hook output priority 0; policy accept;\n"
        f"{ip} daddr @vips meta l4proto tcp reject with tcp reset\n{ip} daddr @vips reject\n}}\n}}\n"
    )


def _key(vip: bytes, place: int, size: int) -> bytes:
    # The slot is a number of the host, not of the network.
    return vip + struct.pack("=I", place) if size > 1 else vip


def _changes(verb: Verb, found: Mapping[tuple[int, str], Iterable[Element]]) -> Iterable[Change]:
    for (family, name), elements in sorted(found.items()):
        yield Change(verb, NFPROTO[family], TABLE, name, tuple(elements))
