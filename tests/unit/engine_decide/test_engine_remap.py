"""Which host ids a container's ids are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import HostConfig
from swarmlet_agent.decide.remap import OVERFLOW_ID, Remap, check_remapped, mappings, parse_remap

ACCOUNTS = {"alice": 1000, "bob": 1001}


def lookup(text: str) -> tuple[str, int]:
    for name, number in ACCOUNTS.items():
        if text in (name, str(number)):
            return name, number
    raise KeyError(text)


def parse(setting: str, subuid: str, subgid: str | None = None) -> Remap | None:
    return parse_remap(
        setting, user_of=lookup, group_of=lookup, subuid=subuid, subgid=subuid if subgid is None else subgid
    )


def test_ranges_are_found_by_name_or_number_and_count_in_order() -> None:
    text = "# none\nbob:5000:10\nalice:200000:1000\n1000:100000:65536\nalice:x:1\n"
    assert parse("", text) is None
    for setting in ("alice", "1000", "alice:alice", "1000:1000"):
        assert parse(setting, text) == Remap(
            uids=((100000, 65536), (200000, 1000)), gids=((100000, 65536), (200000, 1000))
        )
    mixed = parse("alice:bob", text)
    assert mixed is not None and mixed.gids == ((5000, 10),) and mixed.root == (100000, 5000)
    # Nobody has to have made Docker's user.
    assert parse("default", "dockremap:300000:65536") == Remap(uids=((300000, 65536),), gids=((300000, 65536),))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("nobody", 'there is no user "nobody"'), ("alice:", "is neither"), (":alice", "is neither"),
        ("alice:nobody", 'there is no group "nobody"'), ("bob", 'no subuid ranges found for "bob"'),
        ("default", 'no subuid ranges found for "dockremap": add a line such as "dockremap:100000:65536"'),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(setting: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        parse(setting, "alice:100000:65536")


ranges = st.lists(st.integers(1, 500), min_size=1, max_size=4).map(
    lambda counts: tuple((100_000 + 1000 * number, count) for number, count in enumerate(counts))
)


@given(uids=ranges, ident=st.integers(0, 3000))
def test_ids_go_to_the_host_and_come_back(uids: tuple[tuple[int, int], ...], ident: int) -> None:
    remap = Remap(uids=uids, gids=uids)
    total = sum(count for _, count in uids)
    assert sum(count for _, _, count in mappings(uids)) == total
    if ident < total:
        outer = remap.on_host(ident, ident)
        assert outer[0] >= 100_000 and remap.inside(*outer) == (ident, ident)
    else:
        with pytest.raises(InvalidArgument, match="cannot be mapped to a host ID"):
            remap.on_host(ident, 0)
    assert remap.inside(0, 99_999) == (OVERFLOW_ID, OVERFLOW_ID)


def test_what_needs_the_hosts_ids_is_refused_without_them() -> None:
    remap = Remap(uids=((100000, 65536),), gids=((100000, 65536),))
    assert check_remapped(HostConfig(), remap) == remap
    assert check_remapped(HostConfig(), None) is None
    for host in (HostConfig(privileged=True), HostConfig(network_mode="host"), HostConfig(pid_mode="host")):
        with pytest.raises(InvalidArgument):
            check_remapped(host, remap)
        with_host = HostConfig(
            privileged=host.privileged, network_mode=host.network_mode, pid_mode=host.pid_mode, userns_mode="host"
        )
        assert check_remapped(with_host, remap) is None
