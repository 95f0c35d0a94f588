"""Capabilities, as --cap-add, --cap-drop and --privileged ask for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.runtime import caps

ALL = frozenset(caps.NAMES)
names = st.lists(st.sampled_from([*caps.NAMES, "ALL"]), max_size=6)


def granted(add: tuple[str, ...] = (), drop: tuple[str, ...] = (), **more: object) -> tuple[str, ...]:
    return caps.granted(add, drop, privileged=bool(more.get("privileged")), available=ALL)


def test_docker_s_fourteen_by_default() -> None:
    assert set(granted()) == set(caps.DEFAULT)
    assert len(caps.DEFAULT) == 14
    assert sum(1 << caps.NAMES.index(name) for name in granted()) == 0xA80425FB


def test_names_come_in_any_case_with_or_without_prefix() -> None:
    assert set(granted(("net_admin", "CAP_SYS_TIME"), ("cap_chown",))) == (
        set(caps.DEFAULT) | {"CAP_NET_ADMIN", "CAP_SYS_TIME"}
    ) - {"CAP_CHOWN"}


def test_all_is_everything_but_what_is_dropped() -> None:
    assert set(granted(("ALL",), ("SYS_ADMIN",))) == ALL - {"CAP_SYS_ADMIN"}
    assert granted((), ("ALL",)) == ()
    assert granted(("NET_RAW",), ("ALL",)) == ("CAP_NET_RAW",)


@given(names, names)
def test_a_privileged_container_has_all_there_is_whatever_is_asked(add: list[str], drop: list[str]) -> None:
    assert set(granted(tuple(add), tuple(drop), privileged=True)) == ALL


@given(names, names, st.sets(st.sampled_from(caps.NAMES)))
def test_never_more_than_the_host_has(add: list[str], drop: list[str], available: set[str]) -> None:
    wanted = [name for name in add if name == "ALL" or name in available]

    result = caps.granted(wanted, drop, privileged=False, available=frozenset(available))

    assert set(result) <= available
    assert len(set(result)) == len(result)
    assert list(result) == sorted(result, key=caps.NAMES.index)


@given(names, names)
def test_what_is_dropped_is_gone_unless_it_is_added(add: list[str], drop: list[str]) -> None:
    result = set(granted(tuple(add), tuple(drop)))

    if "ALL" not in add:
        assert not (set(drop) - set(add)) & result
        assert set(add) <= result


def test_unknown_and_unavailable_capabilities_are_named() -> None:
    with pytest.raises(InvalidArgument, match='invalid CapAdd: unknown capability: "CAP_FOO"'):
        granted(("FOO",))
    with pytest.raises(InvalidArgument, match='invalid CapDrop: unknown capability: "CAP_FOO"'):
        granted((), ("CAP_FOO",))
    with pytest.raises(InvalidArgument, match='not available in the current environment: "CAP_BPF"'):
        caps.granted(("BPF",), (), privileged=False, available=frozenset(caps.DEFAULT))


@given(st.integers(0, (1 << 63) - 1))
def test_a_mask_has_the_names_of_its_bits(mask: int) -> None:
    found = caps.from_mask(mask)

    assert sum(1 << caps.NAMES.index(name) for name in found) == mask & ((1 << len(caps.NAMES)) - 1)
