"""What the mesh needs of a node: enough and no more, whatever came before."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.net.mesh import messages
from swarmlet_agent.net.mesh.plan import (
    BACK,
    ENTRY,
    TABLES,
    Backend,
    MeshNode,
    MeshState,
    Neighbour,
    Programmed,
    Published,
    Route,
    Rule,
    device,
    elements,
    mac_of,
    plan,
    split_ways,
    way,
)
from swarmlet_agent.net.mesh.rules import SETS, TABLE, ruleset
from swarmlet_agent.net.nftset import Change, Verb

OWN = MeshNode(1, "192.0.2.1")
_NUMBERS = st.integers(2, 9)
_PEERS = st.lists(_NUMBERS, unique=True, max_size=5).map(
    lambda numbers: tuple(MeshNode(n, f"192.0.2.{n}", (f"fd02::{n}",)) for n in numbers)
)
_BACKEND = st.builds(
    lambda version, place, node, serving: Backend(
        f"10.7.0.{place}" if version == 4 else f"fd07::{place:x}", 80, node, serving
    ),
    st.sampled_from((4, 6)),
    st.integers(1, 30),
    st.integers(1, 9),
    st.booleans(),
)
_PORT = st.builds(
    Published,
    st.sampled_from(("tcp", "udp", "sctp")),
    st.integers(1, 4),
    st.lists(_BACKEND, max_size=6).map(tuple),
    st.sampled_from(("", "192.0.2.1", "fd02::1")),
    st.booleans(),
)
_PORTS = st.lists(_PORT, max_size=5, unique_by=lambda port: (port.protocol, port.port, port.host_ip)).map(tuple)
_SUBNETS = st.lists(
    st.sampled_from(("10.7.0.0/24", "10.7.1.0/24", "10.7.0.0/16", "fd07::/64", "fd07:0:0:1::/64")), max_size=4
).map(tuple)
_STATES = st.builds(MeshState, st.just(OWN), st.just(1450), _PEERS, _PORTS, _SUBNETS)

Sets = dict[tuple[int, str], dict[tuple[bytes, bool], bytes]]


def apply(sets: Sets, changes: tuple[Change, ...]) -> Sets:
    sets = {name: dict(content) for name, content in sets.items()}
    for change in changes:
        assert change.table == TABLE
        assert change.name in SETS
        content = sets.setdefault((change.family, change.name), {})
        for element in change.elements:
            place = (element.key, element.end)
            if change.verb is Verb.REMOVE:
                del content[place]
            else:
                assert place not in content
                content[place] = element.value
    return {name: content for name, content in sets.items() if content}


@given(st.lists(_STATES, min_size=1, max_size=5), st.booleans())
def test_changes_lead_to_what_is_wanted_and_a_second_pass_changes_nothing(states: list[MeshState], ipv6: bool) -> None:
    sets: Sets = {}
    known = Programmed()
    for state in states:
        after = plan(known, state, ipv6=ipv6)
        sets = apply(sets, elements(TABLE, known, after))
        fresh = plan(Programmed(), state, ipv6=ipv6)

        assert plan(after, state, ipv6=ipv6) == after
        assert sets == apply({}, elements(TABLE, Programmed(), after))
        assert (after.neighbours, after.routes, after.rules, after.members, after.ways) == (
            fresh.neighbours, fresh.routes, fresh.rules, fresh.members, fresh.ways
        )
        assert {key: set(slots) for key, slots in after.slots.items()} == {
            key: set(slots) for key, slots in fresh.slots.items()
        }
        known = after


@given(_STATES)
def test_every_remote_backend_that_may_be_chosen_has_a_way(state: MeshState) -> None:
    after = plan(Programmed(), state)
    peers = {peer.number for peer in state.peers}

    for port in state.ports:
        for backend in port.backends:
            if not port.local_only and backend.node in peers:
                assert backend.address in after.ways  # also of one that serves no more: its connections go on
    for key, slots in after.slots.items():
        assert all(ip_address(address).version == key[0] for address, _ in slots)


@given(_STATES)
def test_rules_routes_and_neighbours_are_read_as_they_were_written(state: MeshState) -> None:
    after = plan(Programmed(), state)

    assert {messages.parse_rule(messages.add_rule(rule).body) for rule in after.rules} == after.rules
    routes = [*after.routes, *(way(*one) for one in after.ways.items())]
    read = [route for one in routes if (route := messages.parse_route(messages.add_route(7, one).body)) is not None]
    assert split_ways(read) == (after.routes, after.ways)
    assert {
        messages.parse_neighbour(messages.add_neighbour(7, one).body) for one in after.neighbours
    } == after.neighbours


def test_rules_of_others_are_not_ours() -> None:
    body = bytearray(messages.add_rule(Rule(4, 1500, ENTRY, ENTRY, TABLES)).body)
    place = body.index(bytes([5, 0, 21, 0]))  # FRA_PROTOCOL
    body[place + 4] = 2  # RTPROT_KERNEL

    assert messages.parse_rule(bytes(body)) is None


def test_a_node_knows_its_peers_by_number_and_address() -> None:
    state = MeshState(OWN, 1450, (MeshNode(7, "192.0.2.7"),))
    after = plan(Programmed(), state, ipv6=False)
    mac, mesh = mac_of(state.peers[0]), ip_address("100.64.0.7")

    assert after.neighbours == {Neighbour(mac, ip_address("192.0.2.7"), underlay=True), Neighbour(mac, mesh)}
    assert after.routes == {Route(TABLES + 7, mesh)}
    assert Rule(4, 1502, BACK | 7, BACK | 0xFFFF, TABLES + 7) in after.rules
    assert mac_of(MeshNode(7, "192.0.2.8")) != mac


def test_numbers_beyond_the_mark_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="65535"):
        device(MeshState(MeshNode(65535, "192.0.2.1"), 1450), ipv6=True)


def test_protocols_without_ports_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="icmp"):
        plan(Programmed(), MeshState(OWN, 1450, ports=(Published("icmp", 1),)))


@pytest.mark.parametrize("family", [4, 6])
def test_every_set_with_elements_is_in_the_ruleset(family: int) -> None:
    text = ruleset(family)

    for name in SETS:
        assert f" {name} {{" in text
        assert f"@{name}" in text
