"""DNS messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.net import dns_codec
from swarmlet_agent.net.dns_codec import Malformed, answer, encode_name, failure, parse, reverse_address

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
    assert struct.unpack_from(">HH", cut, 4) == (1, 30) and cut[2] & 2  # truncated: ask again by TCP for the rest
    assert len(cut) <= 512 < len(cut) + 16
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


def test_places_of_services_are_told_with_their_addresses_as_far_as_those_fit() -> None:
    query = parse(message("_80._tcp.web", dns_codec.SRV))
    target = encode_name("1.web.app")
    records = [dns_codec.service_location(80, target)]
    extra = [dns_codec.Extra(target, dns_codec.A, bytes([10, 0, 0, 2]))]
    whole = answer(query, records, extra=extra)
    assert struct.unpack_from(">HHHH", whole, 4) == (1, 1, 0, 1)
    assert whole.endswith(target + b"\0\1\0\1\0\0\0\5\0\4\x0a\0\0\2")
    assert b"\0\0\0\0\0\x50" + target in whole
    bare = answer(query, records, extra=extra, limit=len(whole) - 1)
    assert struct.unpack_from(">HHHH", bare, 4) == (1, 1, 0, 0) and not bare[2] & 2


def test_a_record_that_does_not_fit_is_left_out_whole() -> None:
    query = parse(message("web"))
    records = [bytes([10, 0, 0, last]) for last in range(9)]
    for limit in range(40, 200):
        sent = answer(query, records, limit=limit)
        count = struct.unpack_from(">H", sent, 6)[0]
        assert len(sent) <= limit and sent == answer(query, records[:count])[:2] + sent[2:]
        assert bool(sent[2] & 2) == (count < 9)
