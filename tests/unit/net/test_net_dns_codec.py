"""DNS messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.net import dns_codec
from swarmlet_agent.net.dns_codec import Malformed, answer, encode_name, failure, parse, reverse_address
from swarmlet_agent.net.names import NameTable
from swarmlet_agent.net.records import EndpointRecord

labels = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=63)
OPT = b"\0" + struct.pack(">HHIH", 41, 1400, 0, 0)


def message(name: str, kind: int = 1, *, flags: int = 0x0100, extra: bytes = b"") -> bytes:
    head = struct.pack(">HHHHHH", 0xBEEF, flags, 1, 0, 0, 1 if extra else 0)
    return head + encode_name(name) + struct.pack(">HH", kind, 1) + extra


@given(st.lists(labels, min_size=1, max_size=3))
def test_names_are_read_as_written_in_lower_case(parts: list[str]) -> None:
    name = ".".join(parts)

    assert parse(message(name)).name == name.lower()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_query_or_malformed(data: bytes) -> None:
    try:
        query = parse(data)
    except Malformed:
        assert len(failure(data, dns_codec.FORMERR)) == 12
        return
    assert answer(query, [])[:2] == data[:2]


def test_an_answer_repeats_the_question_and_points_at_it() -> None:
    query = parse(message("Web.App"))
    data = answer(query, [bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])])

    assert struct.unpack_from(">HHHHHH", data) == (0xBEEF, 0x8580, 1, 2, 0, 0)
    assert data[12:].startswith(b"\x03Web\x03App\0\0\1\0\1")  # the asker's own letters
    assert data.endswith(b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\0\0\3")


def test_edns_is_answered_with_edns_and_gives_more_room() -> None:
    plain, extended = parse(message("web")), parse(message("web", extra=OPT))
    records = [bytes([10, 0, 0, last]) for last in range(40)]

    assert (plain.udp_size, extended.udp_size) == (512, 1400)
    cut = answer(plain, records, limit=plain.udp_size)
    whole = answer(extended, records, limit=extended.udp_size)
    assert struct.unpack_from(">HH", cut, 4) == (1, 0) and cut[2] & 2  # truncated: ask again by TCP
    assert struct.unpack_from(">HHHH", whole, 4) == (1, 40, 0, 1) and not whole[2] & 2
    assert len(answer(plain, records)) == len(whole) - 11


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 11,
        message("a", flags=0x8000),
        message("a")[:-1],
        b"\0" * 12,
        message("a")[:12] + b"\xc0\x0c\0\1\0\1",
    ],
)
def test_what_is_no_single_question_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data)


def test_reverse_names_are_understood() -> None:
    assert reverse_address("2.0.17.172.in-addr.arpa") == "172.17.0.2"
    assert reverse_address("2." + "0." * 27 + "0.0.d.f.ip6.arpa") == "fd00::2"
    assert reverse_address("2.0.0.d.f.ip6.arpa") == "" == reverse_address("x." + "0." * 31 + "ip6.arpa")
    for name in ("in-addr.arpa", "1.2.3.in-addr.arpa", "300.0.0.1.in-addr.arpa", "web", "1.0.0.10.in-addr.arpa.x"):
        assert reverse_address(name) == ""


def endpoint(ident: str, ip: str, *names: str, network: str = "n1") -> EndpointRecord:
    return EndpointRecord(id=ident, network_id=network, network={"n1": "app", "n2": "db"}[network], ip=ip, names=names)


def test_names_are_scoped_shared_and_forgotten() -> None:
    table = NameTable()
    one, two = endpoint("e1", "10.0.0.2", "Web", "front"), endpoint("e2", "10.0.0.3", "web2", "front")
    other = endpoint("e3", "10.1.0.2", "web", network="n2")
    for known in (one, two, other):
        table.add(known)

    assert table.addresses("web", ["n1"], {}) == ["10.0.0.2"]
    assert table.addresses("web", ["n2", "n1"], {}) == ["10.1.0.2"]
    assert table.addresses("web.app", ["n2", "n1"], {}) == ["10.0.0.2"]
    assert sorted(table.addresses("front", ["n1"], {}) or ()) == ["10.0.0.2", "10.0.0.3"]
    assert table.addresses("friend", ["n1"], {"friend": "web"}) == ["10.0.0.2"]
    assert table.name_of("10.0.0.2", ["n1"]) == "Web.app" and table.name_of("10.0.0.2", ["n2"]) == ""
    table.remove(one)
    table.remove(one)
    assert table.addresses("web", ["n1"], {}) is None and table.addresses("front", ["n1"], {}) == ["10.0.0.3"]
