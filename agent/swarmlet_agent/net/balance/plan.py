"""Which backend a new connection to a VIP goes to, as elements of nftables maps of slots. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from swarmlet_agent.net.nftset import Change, Element, Verb
from swarmlet_agent.net.slots import NFPROTO, SIZES, Edits, fill, maps_text, no_table, rules_text

#: A changed ruleset needs a new number: a living namespace's table of this name is taken to be as we made it.
TABLE = "swlbalance3"
#: What they were called before, by agents that this one may follow.
FORMER = ("swlbalance1", "swlbalance2")
#: A connection's mark while its slot is being drawn: this + slot. Others may be those of a container's own rules.
DRAWN, DRAWN_MASK = 0x5357_0000, 0xFFFF_0000
_MAPS = tuple(f"s{size}" for size in SIZES)

#: VIP -> its backends; none: refuse. Addresses are text, of one family within a service.
Services = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Programmed:
    """What the kernel's maps of one namespace hold: VIP -> the backend of each slot (none: refused)."""

    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def plan(before: Programmed, services: Services) -> Programmed:
    """What the maps should hold for these services."""
    return Programmed({vip: fill(before.slots.get(vip, ()), backends) for vip, backends in services.items()})


def advance(before: Programmed, changed: Mapping[str, Sequence[str] | None]) -> Programmed:
    """As `plan`, where only some VIPs have changed; None: this one is gone."""
    slots = dict(before.slots)
    for vip, backends in changed.items():
        if backends is None:
            slots.pop(vip, None)
        else:
            slots[vip] = fill(before.slots.get(vip, ()), backends)
    return Programmed(slots)


def difference(before: Programmed, after: Programmed, vips: Iterable[str] | None = None) -> tuple[Change, ...]:
    """The element changes from one to the other, `in_turn`. vips: those that may differ, if it is known."""
    edits = Edits(TABLE, DRAWN)
    for vip in sorted({*before.slots, *after.slots} if vips is None else vips):
        old, new = before.slots.get(vip), after.slots.get(vip)
        if old == new:
            continue
        packed = ip_address(vip).packed
        family = 4 if len(packed) == 4 else 6
        if old is None:
            edits.add(family, "vips", Element(packed))
        if new is None:
            edits.remove(family, "vips", Element(packed))
        edits.move(family, "s", packed, old or (), new or (), _packed)
    return edits.changes()


def replacement(after: Programmed, families: Iterable[int]) -> tuple[Change, ...]:
    """The changes that make the maps of these families hold just this, whatever they hold now."""
    emptied = tuple(
        Change(Verb.REMOVE, NFPROTO[family], TABLE, name) for family in sorted(families) for name in ("vips", *_MAPS)
    )
    return emptied + difference(Programmed(), after)


def ruleset(family: int) -> str:
    """The rules of one namespace and family as text, loaded once. The table must not be there yet."""
    ip = "ip" if family == 4 else "ip6"
    maps = "\n".join(maps_text(f"{ip} daddr", "s", f"{ip} daddr"))
    rules = "\n".join(rules_text("dnat to", f"{ip} daddr", "s", DRAWN))
    return (
        f"table {ip} {TABLE} {{\n{maps}\nset vips {{ type ipv{family}_addr; }}\n"
        # What is for no VIP, and its mark, is left alone.
        f"chain out {{ type nat hook output priority -100; policy accept;\n{ip} daddr != @vips accept\n{rules}\n}}\n"
        # The slot has done its service. As the rules above, this sees the first packet of a connection only.
        f"chain drawn {{ type nat hook postrouting priority 100; policy accept;\n"
        f"ct mark & {DRAWN_MASK:#x} == {DRAWN:#x} ct mark set 0\n}}\n"
        # What still goes to a VIP here found no backend.
        f"chain none {{ type filter hook output priority 0; policy accept;\n"
        f"{ip} daddr @vips meta l4proto tcp reject with tcp reset\n{ip} daddr @vips reject\n}}\n"
        # Of a backend, and not translated, for it lies outside the window: a reset would end the connection.
        f"chain stray {{ type filter hook input priority 0; policy accept;\n"
        f"meta l4proto tcp ct state invalid drop\n}}\n}}\n"
    )


def ruleset_anew(family: int) -> str:
    """As `ruleset`, in the place of whatever is there. Not for a new namespace: to remove even nothing takes 20 ms."""
    return no_table(family, TABLE) + ruleset(family)


def _packed(address: str) -> bytes:
    return ip_address(address).packed
