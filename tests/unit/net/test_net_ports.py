"""Published ports: parsing, choosing, holding."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import PortBinding
from swarmlet_agent.net.holds import PortBook, hold
from swarmlet_agent.net.plan_ports import (
    ANY,
    ANY6,
    EPHEMERAL,
    HostPort,
    PortWish,
    aim,
    blocker,
    candidates,
    default_host_ips,
    parse_ports,
    published,
    reachable,
)
from swarmlet_agent.net.records import NetworkFailure, PortRecord, PortTaken

host_ports = st.builds(
    HostPort,
    st.sampled_from([ANY, "10.0.0.1", "10.0.0.2", ANY6, "fd00::1"]),
    st.sampled_from(["tcp", "udp"]),
    st.integers(80, 83),
)


def test_fixed_ports_are_served_before_free_ones() -> None:
    wishes = parse_ports(
        {
            "80/tcp": (PortBinding(),),
            "81": (PortBinding(host_port="8000-8002"), PortBinding(host_port="9000")),
            "53/udp": (PortBinding(host_ip="127.0.0.1", host_port="53"),),
            "82/tcp": (),
        },
        (ANY, ANY6),
    )

    assert wishes == [
        PortWish(81, "tcp", (ANY, ANY6), 9000, 9000),
        PortWish(53, "udp", ("127.0.0.1",), 53, 53),
        PortWish(81, "tcp", (ANY, ANY6), 8000, 8002),
        PortWish(80, "tcp", (ANY, ANY6), 0, 0),
    ]


@pytest.mark.parametrize(
    ("key", "binding"),
    [
        ("0/tcp", PortBinding()),
        ("x/tcp", PortBinding()),
        ("80/icmp", PortBinding()),
        ("80", PortBinding(host_port="70000")),
        ("80", PortBinding(host_port="9-8")),
        ("80", PortBinding(host_ip="1.2.3")),
        ("80", PortBinding(host_port="-1")),
        ("٣/tcp", PortBinding()),
    ],
)
def test_impossible_ports_are_refused(key: str, binding: PortBinding) -> None:
    with pytest.raises(InvalidArgument, match="invalid port specification"):
        parse_ports({key: (binding,)}, (ANY,))


def test_a_port_is_published_on_both_families_unless_the_network_or_the_client_names_an_address() -> None:
    assert default_host_ips("", host_has_ipv6=True) == (ANY, ANY6)
    assert default_host_ips(ANY, host_has_ipv6=False) == (ANY,)
    assert default_host_ips("127.0.0.1", host_has_ipv6=True) == ("127.0.0.1",)
    for given_, parsed in (("[fd00:0:0::1]", "fd00::1"), ("::", ANY6), ("10.0.0.1", "10.0.0.1")):
        (found,) = parse_ports({"80": (PortBinding(host_ip=given_, host_port="80"),)}, (ANY, ANY6))
        assert found.host_ips == (parsed,)


def test_each_host_address_leads_to_the_containers_address_of_its_family_if_it_has_one() -> None:
    assert aim((ANY, ANY6), "10.0.0.2", "fd00::2") == {ANY: "10.0.0.2", ANY6: "fd00::2"}
    assert aim((ANY, ANY6), "10.0.0.2", "") == {ANY: "10.0.0.2", ANY6: "10.0.0.2"}
    assert aim((ANY, ANY6), "", "fd00::2") == {ANY: "fd00::2", ANY6: "fd00::2"}


def test_sctp_is_published_only_where_the_kernel_leads() -> None:
    both = PortWish(70, "sctp", (ANY, ANY6), 8080, 8080)

    assert reachable([both], "10.0.0.2", "")[0].host_ips == (ANY,)
    assert reachable([both], "10.0.0.2", "fd00::2") == [both]
    with pytest.raises(InvalidArgument, match="SCTP is not relayed"):
        reachable([PortWish(70, "sctp", (ANY6,), 8080, 8080)], "10.0.0.2", "")


@given(taken=st.sets(host_ports, max_size=5), wanted=host_ports)
def test_a_port_is_taken_exactly_if_two_sockets_would_clash(taken: set[HostPort], wanted: HostPort) -> None:
    clash = any(
        other.port == wanted.port
        and other.protocol == wanted.protocol
        and (":" in other.host_ip) == (":" in wanted.host_ip)
        and (other.host_ip == wanted.host_ip or bool({ANY, ANY6} & {other.host_ip, wanted.host_ip}))
        for other in taken
    )
    assert (blocker(wanted, taken) is not None) is clash
    assert not clash or blocker(wanted, taken) in taken


def test_free_ports_are_walked_through_once_from_where_the_last_one_was() -> None:
    walk = list(candidates(PortWish(80, "tcp", (ANY,), 0, 0), 40000))

    assert (walk[0], walk[-1], len(walk)) == (40000, 39999, len(EPHEMERAL))
    assert set(walk) == set(EPHEMERAL)


class Sockets:
    """A host where some ports belong to others."""

    def __init__(self, others: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.others = others

    def __call__(self, port: HostPort) -> None:
        if port.port in self.others:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if port.host_ip == "192.0.2.1":
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def wish(port: int, last: int | None = None, ip: str = ANY, *more: str) -> PortWish:
    return PortWish(80, "tcp", (ip, *more), port, port if last is None else last)


def test_containers_get_different_ports_and_all_or_none() -> None:
    book = PortBook(Sockets({8001}))

    first = book.take("a", [wish(8000, 8002), wish(0)], ("172.17.0.2", ""))
    second = book.take("b", [wish(8000, 8002), wish(0)], ("172.17.0.3", ""))
    assert [record.host_port for record in (*first, *second)] == [8000, 32768, 8002, 32769]
    with pytest.raises(PortTaken, match="failed"):
        book.take("c", [wish(9000), wish(8000, 8002)], ("172.17.0.4", ""))
    assert book.take("d", [wish(9000)], ("172.17.0.5", ""))[0].host_port == 9000
    book.release("a")
    assert book.take("c", [wish(8000)], ("172.17.0.4", ""))[0].host_port == 8000


class TakenOnIPv6:
    """A host where some ports are another process's, on IPv6 only."""

    def __init__(self, others: set[int]) -> None:
        self.others = others

    def __call__(self, port: HostPort) -> None:
        if port.port in self.others and port.host_ip == ANY6:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def test_both_families_get_the_same_number_or_neither_gets_one() -> None:
    book = PortBook(TakenOnIPv6({8001}))

    records = book.take("a", [wish(8000, 8003, ANY, ANY6)], ("172.17.0.2", "fd00::2"))
    assert [(record.host_ip, record.host_port, record.target_ip) for record in records] == [
        (ANY, 8000, "172.17.0.2"),
        (ANY6, 8000, "fd00::2"),
    ]
    again = book.take("b", [wish(8000, 8003, ANY, ANY6)], ("172.17.0.3", ""))
    assert {(record.host_port, record.target_ip) for record in again} == {(8002, "172.17.0.3")}
    assert book.take("c", [wish(8001)], ("172.17.0.4", ""))[0].host_port == 8001  # not kept by the failed try


def test_refusals_are_dockerds() -> None:
    book = PortBook(Sockets({81}))
    book.take("a", [wish(80)], ("172.17.0.2", ""))

    with pytest.raises(PortTaken, match=r"^Bind for 10\.0\.0\.1:80 failed: port is already allocated$"):
        book.take("b", [wish(80, ip="10.0.0.1")], ("172.17.0.3", ""))
    with pytest.raises(PortTaken, match=r"^failed to bind host port 0\.0\.0\.0:81/tcp: address already in use$"):
        book.take("b", [wish(81)], ("172.17.0.3", ""))
    with pytest.raises(NetworkFailure, match="cannot assign requested address"):
        book.take("b", [wish(82, ip="192.0.2.1")], ("172.17.0.3", ""))


def test_a_refusal_names_who_has_the_port_container_or_service() -> None:
    book = PortBook(Sockets())
    book.take("a", [wish(80)], ("172.17.0.2", ""), name="web")
    assert book.take_for_mesh({HostPort(ANY, "tcp", 8080): "shop"}) == {}

    with pytest.raises(PortTaken, match=r"port is already allocated \(container web\)$"):
        book.take("b", [wish(80)], ("172.17.0.3", ""))
    with pytest.raises(PortTaken, match=r"port is already allocated \(service shop, on every node\)$"):
        book.take("b", [wish(8080)], ("172.17.0.3", ""))


def test_the_mesh_leaves_a_port_to_who_has_it_and_takes_it_once_it_is_free() -> None:
    sockets = Sockets({81})
    book = PortBook(sockets)
    book.take("a", [wish(80)], ("172.17.0.2", ""), name="web")
    book.freed.clear()
    wanted = {HostPort(ANY, "tcp", number): "shop" for number in (80, 81, 82)}

    said = "port {}/tcp of service shop is not published on this node: "
    assert book.take_for_mesh(wanted) == {
        HostPort(ANY, "tcp", 80): said.format(80) + "container web has it",
        HostPort(ANY, "tcp", 81): said.format(81) + "a process of this host has it",
    }
    book.release("a")
    assert book.freed.is_set()
    assert set(book.take_for_mesh(wanted)) == {HostPort(ANY, "tcp", 81)}
    # What it does not want any more is anybody's.
    assert book.take_for_mesh({}) == {}
    assert book.take("b", [wish(82)], ("172.17.0.3", ""))[0].host_port == 82


def test_a_container_that_returns_keeps_its_free_port() -> None:
    book = PortBook(Sockets())
    before = [PortRecord(port=80, protocol="tcp", host_ip=ANY, host_port=40123, target_ip="172.17.0.2")]

    assert book.take("a", [wish(0)], ("172.17.0.9", ""), before)[0].host_port == 40123


def test_a_held_port_cannot_be_taken_by_a_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    holder = hold(HostPort("127.0.0.1", "tcp", port))
    assert holder is not None
    with holder, pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))


def test_exposed_ports_are_shown_with_their_bindings() -> None:
    records = [PortRecord(port=80, protocol="tcp", host_ip=ANY, host_port=8080, target_ip="172.17.0.2")]

    assert published(records, {"80/tcp": (), "90/udp": ()}) == {
        "80/tcp": (PortBinding(host_ip=ANY, host_port="8080"),),
        "90/udp": (),
    }
