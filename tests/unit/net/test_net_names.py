"""Names in networks: who is called what, for whom, and after any change."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.wire.networking import EndpointInfo, ServiceInfo, ServicePort
from swarmlet_agent.net import dns_codec
from swarmlet_agent.net.dns_answers import MAX_READY_BYTES, Answers, Asker
from swarmlet_agent.net.names import Entry, Found, Kind, NameTable, Target
from swarmlet_agent.net.overlay.directory import (
    backends,
    endpoint_entry,
    endpoint_holder,
    service_entry,
    service_holder,
)
from swarmlet_agent.net.records import EndpointRecord


def endpoint(
    ident: str, last: int, *more: str, slot: int = 0, service: str = "", serving: bool = True
) -> EndpointInfo:
    return EndpointInfo(
        network_id="n", id=ident, address=f"10.0.0.{last}", node_id="x", node_addr="192.0.2.1", names=(ident, *more),
        service_id=service, slot=slot, serving=serving,
    )  # fmt: skip


WEB = [
    endpoint("web.1.aa", 4, slot=1, service="s"),
    endpoint("web.2.bb", 5, slot=2, service="s"),
    endpoint("web.3.cc", 6, slot=3, service="s", serving=False),
]
PORTS = (ServicePort(name="http", port=80), ServicePort(protocol="udp", port=53))


def service(name: str = "Web", **more: object) -> ServiceInfo:
    return ServiceInfo(network_id="n", id="s", name=name, **more)  # type: ignore[arg-type]


def told(table: NameTable, endpoints: Sequence[EndpointInfo], *services: ServiceInfo) -> NameTable:
    """What a manager tells of network n, called ov."""
    for one in endpoints:
        table.put("n", "ov", endpoint_holder(one), endpoint_entry(one))
    for known in services:
        own = [one for one in endpoints if one.service_id == known.id]
        table.put("n", "ov", service_holder(known.id), service_entry(known, own))
    return table


def addresses(table: NameTable, name: str, *networks: str) -> tuple[str, ...] | None:
    """None for a name that others may know; ("missing",) for one that nobody can have."""
    found = table.find(name, networks or ("n",), {})
    return None if found is None else ("missing",) if found.missing else found.addresses


def test_a_service_without_a_virtual_address_stands_for_its_serving_tasks() -> None:
    table = told(NameTable(), WEB, service(aliases=("www",)))
    both = ("10.0.0.4", "10.0.0.5")
    for name in ("web", "www", "tasks.web", "tasks.www", "web.ov", "tasks.www.ov"):
        assert addresses(table, name) == both
    assert addresses(table, "1.web") == ("10.0.0.4",) and addresses(table, "2.www.ov") == ("10.0.0.5",)
    assert addresses(table, "web.3.cc") == ("10.0.0.6",)
    # Known, and not serving; not known, and nobody's; perhaps a domain elsewhere.
    assert addresses(table, "3.web") == () and addresses(table, "4.web") == ("missing",)
    assert addresses(table, "4.web.ov") == ("missing",) and addresses(table, "x.web") is None


def test_a_service_with_a_virtual_address_stands_for_that() -> None:
    table = told(NameTable(), WEB, service(aliases=("www",), vip="10.0.0.2"))
    assert addresses(table, "web") == addresses(table, "www") == ("10.0.0.2",)
    assert addresses(table, "tasks.web") == ("10.0.0.4", "10.0.0.5")
    assert table.name_of("10.0.0.2", ["n"]) == "Web.ov" and table.name_of("10.0.0.4", ["n"]) == "web.1.aa.ov"
    assert table.name_of("10.0.0.4", ["other"]) == table.name_of("10.0.0.99", ["n"]) == ""
    assert backends(WEB, "10.0.0.2") == ("10.0.0.4", "10.0.0.5") and backends([], "10.0.0.2") == ()


def test_with_ipv6_names_and_virtual_addresses_are_of_both_families() -> None:
    web = [replace(known, address6=f"fd00::{number}") for number, known in enumerate(WEB, 4)]
    table = told(NameTable(), web, service(vip="10.0.0.2", vip6="fd00::2", ports=PORTS))
    assert addresses(table, "web") == ("10.0.0.2", "fd00::2")
    assert addresses(table, "tasks.web") == ("10.0.0.4", "fd00::4", "10.0.0.5", "fd00::5")
    assert addresses(table, "2.web") == addresses(table, "web.2.bb") == ("10.0.0.5", "fd00::5")
    assert (table.name_of("fd00::2", ["n"]), table.name_of("fd00::6", ["n"])) == ("Web.ov", "web.3.cc.ov")
    assert backends(web, "fd00::2") == ("fd00::4", "fd00::5")
    found = table.find("_80._tcp.web", ["n"], {})
    assert found is not None and found.targets[0].addresses == ("10.0.0.2", "fd00::2")


def test_ports_are_found_by_number_and_by_name() -> None:
    table = told(NameTable(), WEB, service(vip="10.0.0.2", ports=PORTS))
    one = Found(targets=(Target("web", 80, ("10.0.0.2",)),), network="ov")
    for name in ("_80._tcp.web", "_http._tcp.web", "_http._tcp.web.ov"):
        assert table.find(name, ["n"], {}) == one
    each = table.find("_53._udp.tasks.web", ["n"], {})
    assert each is not None
    assert each.targets == (Target("1.web", 53, ("10.0.0.4",)), Target("2.web", 53, ("10.0.0.5",)))
    for name in ("_81._tcp.web", "_80._udp.web", "_80._tcp.tasks.web.ov.ov"):
        assert addresses(table, name) in (("missing",), None)
    assert addresses(table, "_81._tcp.web") == ("missing",) and addresses(table, "_80._tcp.else") is None
    plain = told(NameTable(), WEB, service(ports=PORTS)).find("_80._tcp.web", ["n"], {})
    assert plain is not None and [target.name for target in plain.targets] == ["1.web", "2.web"]


def test_a_service_without_tasks_is_known_and_has_no_address() -> None:
    table = told(NameTable(), [], service())
    assert addresses(table, "web") == addresses(table, "web.ov") == addresses(table, "tasks.web") == ()
    assert addresses(table, "nobody") is None and addresses(table, "web", "other") is None


def test_a_tasks_own_names_do_not_lead_past_a_service() -> None:
    db = endpoint("db.1.aa", 9, "web", slot=1, service="d")
    plain = endpoint("c", 10, "web")
    table = told(NameTable(), [*WEB, db, plain], service(vip="10.0.0.2"))
    # A container that was given the same alias is meant; a host name is not.
    assert set(addresses(table, "web") or ()) == {"10.0.0.2", "10.0.0.10"}
    table.drop("n", service_holder("s"))
    assert set(addresses(table, "web") or ()) == {"10.0.0.9", "10.0.0.10"}


def test_what_was_told_is_forgotten_with_its_network_and_this_nodes_own_stays() -> None:
    table = told(NameTable(), WEB, service())
    table.add(EndpointRecord(id="e", network_id="n", network="ov", ip="10.0.0.50", names=("own",)))
    table.leave("n")
    assert addresses(table, "web") is None and table.name_of("10.0.0.4", ["n"]) == ""
    assert addresses(table, "own") == ("10.0.0.50",)


def record(ident: str, ip: str, *names: str, network: str = "n1") -> EndpointRecord:
    return EndpointRecord(id=ident, network_id=network, network={"n1": "app", "n2": "db"}[network], ip=ip, names=names)


def test_names_are_scoped_shared_and_forgotten() -> None:
    table = NameTable()
    one, two = record("e1", "10.0.0.2", "Web", "front"), record("e2", "10.0.0.3", "web2", "front")
    other = record("e3", "10.1.0.2", "web", network="n2")
    for known in (one, two, other):
        table.add(known)

    assert addresses(table, "web", "n1") == ("10.0.0.2",)
    assert addresses(table, "web", "n2", "n1") == ("10.1.0.2",)
    assert addresses(table, "web.app", "n2", "n1") == ("10.0.0.2",)
    assert sorted(addresses(table, "front", "n1") or ()) == ["10.0.0.2", "10.0.0.3"]
    assert table.find("friend", ["n1"], {"friend": "web"}) == Found(("10.0.0.2",))
    assert table.name_of("10.0.0.2", ["n1"]) == "Web.app" and table.name_of("10.0.0.2", ["n2"]) == ""
    table.remove(one)
    table.remove(one)
    assert addresses(table, "web", "n1") is None and addresses(table, "front", "n1") == ("10.0.0.3",)


names = st.sampled_from(["a", "b", "c"])
entries = st.builds(
    Entry,
    st.dictionaries(names, st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2"]), max_size=2, unique=True).map(tuple)),
    st.dictionaries(st.sampled_from(["10.0.0.1", "10.0.0.2"]), names),
    st.dictionaries(st.just("_80._tcp.a"), st.just((Target("a", 80, ("10.0.0.1",)),))),
    st.lists(names, unique=True).map(tuple),
)
holders = st.tuples(st.sampled_from(list(Kind)), st.sampled_from(["x", "y"]))


@given(steps=st.lists(st.tuples(holders, st.none() | entries), max_size=12))
def test_after_any_changes_the_table_is_as_one_made_of_what_is_left(
    steps: list[tuple[tuple[Kind, str], Entry | None]]
) -> None:
    table, left = NameTable(), {}
    for holder, entry in steps:
        before = table.version
        if entry is None:
            known = left.pop(holder, None)
            table.drop("n", holder)
            assert (table.version > before) == (known is not None)
        else:
            table.put("n", "ov", holder, entry)
            assert (table.version > before) == (left.get(holder) != entry)
            left[holder] = entry
    fresh = NameTable()
    for holder, entry in left.items():
        fresh.put("n", "ov", holder, entry)
    for name in ("a", "b.ov", "c", "_80._tcp.a", "1.a", "_81._tcp.b"):
        now, wanted = table.find(name, ["n"], {}), fresh.find(name, ["n"], {})
        assert (now is None) == (wanted is None)
        if now is not None and wanted is not None:
            assert (set(now.addresses), set(now.targets), now.missing) == (
                set(wanted.addresses), set(wanted.targets), wanted.missing
            )
    for address in ("10.0.0.1", "10.0.0.2"):
        assert bool(table.name_of(address, ["n"])) == bool(fresh.name_of(address, ["n"]))


def query(name: str, kind: int = dns_codec.A, ident: int = 7) -> bytes:
    head = struct.pack(">HHHHHH", ident, 0x0100, 1, 0, 0, 0)
    return head + dns_codec.encode_name(name) + struct.pack(">HH", kind, dns_codec.IN)


def code_and_count(answer: bytes | None) -> tuple[int, int]:
    assert answer is not None
    return answer[3] & 15, int(struct.unpack_from(">H", answer, 6)[0])


def test_answers_tell_no_such_record_from_no_such_name() -> None:
    table = told(NameTable(), WEB, service(vip="10.0.0.2", ports=PORTS))
    answers = Answers(table, Asker("c", ("n",)))
    aaaa, mx = dns_codec.AAAA, 15
    for name, kind, wanted in (
        ("web", dns_codec.A, (0, 1)), ("web", dns_codec.ANY, (0, 1)), ("web", aaaa, (0, 0)), ("web", mx, (0, 0)),
        ("web", dns_codec.SRV, (0, 0)), ("_80._tcp.web", dns_codec.SRV, (0, 1)), ("_80._tcp.web", dns_codec.A, (0, 0)),
        ("9.web", dns_codec.A, (3, 0)), ("_9._tcp.web", dns_codec.SRV, (3, 0)), ("3.web", dns_codec.A, (0, 0)),
        ("2.0.0.10.in-addr.arpa", dns_codec.PTR, (0, 1)),
    ):  # fmt: skip
        assert code_and_count(answers.answer(query(name, kind), udp=True)) == wanted, name
    for name in ("example.com", "nobody"):
        assert answers.answer(query(name), udp=True) is None
    closed = Answers(table, Asker("c", ("n",), forward=False))
    assert code_and_count(closed.answer(query("example.com"), udp=True)) == (2, 0)


def test_what_was_answered_is_kept_ready_until_any_name_changes() -> None:
    table = told(NameTable(), WEB, service())
    answers = Answers(table, Asker("c", ("n",)))
    assert answers.ready(query("web")) is None
    answers.answer(query("web"), udp=True)
    again = [answers.ready(query("web", ident=number)) for number in range(2, 22)]
    assert [int.from_bytes((answer or b"")[:2], "big") for answer in again] == list(range(2, 22))
    # Whoever takes the first address is sent to each as often.
    firsts = [(answer or b"")[-20:-16] for answer in again]
    assert {firsts.count(first) for first in firsts} == {10}
    table.put("n", "ov", (Kind.CONTAINER, "c"), Entry({"other": ("10.0.0.77",)}))
    assert answers.ready(query("web")) is None


def test_what_is_kept_ready_is_bounded() -> None:
    table, count = NameTable(), 10_000
    table.put("n", "ov", (Kind.CONTAINER, "c"), Entry({f"c{number}": ("10.0.0.77",) for number in range(count)}))
    answers = Answers(table, Asker("c", ("n",)))
    for number in range(count):
        answers.answer(query(f"c{number}"), udp=True)
    kept = [ready for number in range(count) if (ready := answers.ready(query(f"c{number}"))) is not None]
    assert 500 < len(kept) < count and sum(map(len, kept)) < MAX_READY_BYTES
    answers.answer(query("unknown.example"), udp=True)
    assert answers.ready(query("unknown.example")) is None
