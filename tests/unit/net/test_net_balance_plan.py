"""Backends of services as slots of maps: even, with few changes, and never half."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.net.balance.plan import Programmed, advance, difference, plan, replacement, ruleset
from swarmlet_agent.net.mesh.rules import ruleset as mesh_ruleset
from swarmlet_agent.net.nftset import Change, Element, Verb, encode
from swarmlet_agent.net.slots import MOST_BACKENDS, SIZES, fill, in_turn, size_for

_BACKENDS = st.lists(st.integers(1, 80).map(lambda n: f"10.1.0.{n}"), max_size=30).map(tuple)
_BACKENDS6 = st.lists(st.integers(1, 80).map(lambda n: f"fd00::{n:x}"), max_size=30).map(tuple)
_SERVICES = st.dictionaries(st.integers(1, 6).map(lambda n: f"10.0.0.{n}"), _BACKENDS, max_size=6)
_SERVICES6 = st.dictionaries(st.integers(1, 6).map(lambda n: f"fd01::{n:x}"), _BACKENDS6, max_size=3)
_BOTH = st.tuples(_SERVICES, _SERVICES6).map(lambda both: {**both[0], **both[1]})

Maps = dict[tuple[int, str], dict[bytes, bytes]]


def apply(maps: Maps, changes: tuple[Change, ...]) -> Maps:
    """What the kernel makes of a transaction; it refuses what is not there, and what is there already."""
    maps = {name: dict(content) for name, content in maps.items()}
    for change in changes:
        content = maps.setdefault((change.family, change.name), {})
        if change.verb is Verb.REMOVE and not change.elements:
            content.clear()
        for element in change.elements:
            if change.verb is Verb.REMOVE:
                del content[element.key]
            else:
                assert element.key not in content
                content[element.key] = element.value
    return {name: content for name, content in maps.items() if content}


@given(st.lists(_BOTH, min_size=1, max_size=5))
def test_changes_lead_to_what_is_wanted_and_a_second_pass_changes_nothing(
    steps: list[dict[str, tuple[str, ...]]],
) -> None:
    maps: Maps = {}
    known = Programmed()
    for services in steps:
        after = plan(known, services)
        maps = apply(maps, difference(known, after))
        known = after

        assert difference(known, plan(known, services)) == ()
        assert maps == apply({}, difference(Programmed(), known))
        assert {vip: set(slots) for vip, slots in known.slots.items()} == {
            vip: set(backends) for vip, backends in services.items()
        }


@given(_BOTH, _BOTH)
def test_a_replacement_needs_no_knowledge_of_what_was_there(
    before: dict[str, tuple[str, ...]], services: dict[str, tuple[str, ...]]
) -> None:
    there = apply({}, difference(Programmed(), plan(Programmed(), before)))
    after = plan(Programmed(), services)

    assert apply(there, replacement(after, {4, 6})) == apply({}, difference(Programmed(), after))


@given(_BOTH, st.dictionaries(st.integers(1, 9).map(lambda n: f"10.0.0.{n}"), st.none() | _BACKENDS, max_size=4))
def test_an_increment_is_worth_the_whole(
    before: dict[str, tuple[str, ...]], changed: dict[str, tuple[str, ...] | None]
) -> None:
    known = plan(Programmed(), before)
    after = advance(known, changed)
    whole = {**before, **{vip: backends for vip, backends in changed.items() if backends is not None}}

    assert after == plan(known, {vip: whole[vip] for vip in whole if changed.get(vip, ()) is not None})
    assert difference(known, after, changed) == difference(known, after)


@given(st.lists(_BACKENDS, min_size=1, max_size=6))
def test_slots_are_even_whatever_came_before(steps: list[tuple[str, ...]]) -> None:
    slots: tuple[str, ...] = ()
    for backends in steps:
        slots = fill(slots, backends)
        shares = Counter(slots)

        assert set(shares) == set(backends)
        if shares:
            assert max(shares.values()) - min(shares.values()) <= 1
            assert max(shares.values()) <= min(shares.values()) * 1.2


@given(st.integers(1, 70), st.integers(1, 70))
def test_a_packet_that_is_between_two_looks_while_a_transaction_takes_effect_finds_a_backend(
    before: int, after: int
) -> None:
    """Rules look in one map after the other, from small to large, each at what holds then."""
    vip = bytes([10, 0, 0, 1])
    backends = [f"10.1.0.{number}" for number in range(70)]
    known = plan(Programmed(), {"10.0.0.1": backends[:before]})
    maps = apply({}, difference(Programmed(), known))
    for changes in in_turn(difference(known, plan(known, {"10.0.0.1": backends[:after]}))):
        then = apply(maps, tuple(changes))
        for moment in SIZES:
            looked = ((size, maps if size < moment else then) for size in SIZES)
            assert any(key.startswith(vip) for size, seen in looked for key in seen.get((2, f"s{size}"), ()))
        maps = then
    assert maps == apply({}, difference(Programmed(), plan(known, {"10.0.0.1": backends[:after]})))


def test_one_backend_in_the_place_of_another_changes_its_slots_only() -> None:
    before = plan(Programmed(), {"10.0.0.1": [f"10.1.0.{n}" for n in range(1, 11)]})
    after = plan(before, {"10.0.0.1": [f"10.1.0.{n}" for n in range(2, 12)]})

    assert [(change.verb, len(change.elements)) for change in difference(before, after)] == [
        (Verb.REMOVE, 1),
        (Verb.ADD, 1),
    ]


def test_a_service_without_backends_is_in_no_map_but_known() -> None:
    before = plan(Programmed(), {"10.0.0.1": ["10.1.0.1"]})
    after = plan(before, {"10.0.0.1": []})

    assert [(change.verb, change.name) for change in difference(before, after)] == [(Verb.REMOVE, "s1")]
    assert apply({}, difference(Programmed(), after)) == {(2, "vips"): {bytes([10, 0, 0, 1]): b""}}


def test_the_usual_numbers_of_backends_get_a_slot_each() -> None:
    assert [size_for(count) for count in range(1, 13)] == list(range(1, 13))
    assert [size_for(count) for count in (13, 16, 24, 50, 60, 100, 5000)] == [240, 16, 24, 960, 60, 960, MOST_BACKENDS]


def test_more_backends_than_slots_leave_some_out() -> None:
    slots = fill((), [f"10.{n >> 8}.{n & 255}.1" for n in range(2000)])

    assert len(slots) == len(set(slots)) == MOST_BACKENDS


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("rules", [ruleset, mesh_ruleset])
def test_no_key_has_a_random_number_which_nft_1_0_2_refuses(rules: Callable[[int], str], family: int) -> None:
    text = rules(family)

    assert " numgen " in text and ". numgen" not in text


@pytest.mark.parametrize("family", [4, 6])
def test_every_size_has_its_map_and_its_rule(family: int) -> None:
    text = ruleset(family)

    for size in SIZES:
        assert f"map s{size} {{" in text
        assert f"map @s{size}\n" in text


def test_a_transaction_is_framed_and_its_last_message_asks_for_the_answer() -> None:
    change = Change(Verb.ADD, 2, "t", "m", (Element(b"\x0a\0\0\1", b"\x0a\1\0\1"),))
    data, purposes = encode([change], 7)

    kinds, flags, numbers, offset = [], [], [], 0
    while offset < len(data):
        length, kind, flag, number, _ = struct.unpack_from("=IHHII", data, offset)
        kinds.append(kind)
        flags.append(flag)
        numbers.append(number)
        offset += length
    assert kinds == [0x10, 0xA0C, 0x11]  # batch begin, NFT_MSG_NEWSETELEM, batch end
    assert flags == [1, 0x405, 1]
    assert numbers == [7, 8, 9]
    assert purposes[1] == "add elements of t m"


def test_many_elements_are_spread_over_messages_that_fit() -> None:
    elements = tuple(Element(struct.pack("!QQI", 0, 0, n), bytes(16)) for n in range(3000))
    data, purposes = encode([Change(Verb.ADD, 10, "t", "m", elements)], 1)

    assert len(purposes) == 1 + 6
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("=I", data, offset)
        assert length < 65536
        offset += length
    assert offset == len(data)
