"""Leases: who gets an address in an attachable network, what a node's statement makes of it, and who is refused."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Interface, IPv4Network, ip_network

import pytest
from decide_make import make_node
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotSupported, SwarmletError, Unavailable
from swarmlet.model.defaults import NODE_DOWN_ORPHAN_NS
from swarmlet.model.network import Ipam, IpamConfig, Lease, Network, NetworkCreate, Subnet
from swarmlet.model.states import NodeState
from swarmlet.model.ways import NodeWays
from swarmlet_manager.decide.addresses import AddressInUse, Allocator, Exhausted
from swarmlet_manager.decide.leases import Granted, Stated, plan_ask, plan_held
from swarmlet_manager.decide.networks import users_of
from swarmlet_manager.decide.nodes import plan_node
from swarmlet_manager.state import Delete, Op, Put, State

NODES = ("a", "b")
#: Of a node that can encrypt.
OPEN = NodeWays(lacking="")


def network(ident: str = "n1", subnet: str = "10.1.0.0/29", *, attachable: bool = True) -> Network:
    spec = NetworkCreate(
        name=f"net-{ident}", driver="overlay", attachable=attachable, ipam=Ipam(config=(IpamConfig(subnet=subnet),))
    )
    return Network(id=ident, spec=spec, subnet=subnet, gateway=str(IPv4Network(subnet).network_address + 1), vni=4097)


class Books:
    """State and allocator, as the leader's loop has them."""

    def __init__(self, *networks: Network) -> None:
        self.state = State()
        for one in networks or (network(),):
            self.state.apply(Put(one))
        for node in NODES:
            self.state.apply(Put(make_node(node)))
        self.books = Allocator(self.state)

    def write(self, ops: tuple[Op, ...]) -> None:
        self.books.apply([self.state.apply(op) for op in ops])

    def ask(
        self, ident: str, node: str = "a", ref: str = "n1", address: str = "", prefer: str = "", **more: str
    ) -> Lease:
        wanted = Lease(
            id=ident, network_id="", node_id=node, container_id=f"c{ident}", container_name=f"box{ident}",
            address=address, mac=more.get("mac", ""), address6=more.get("address6", ""),
        )
        granted: Granted = plan_ask(self.state, self.books, ref, wanted, prefer, more.get("prefer6", ""))
        self.write(granted.ops)
        return self.state.leases[ident]

    def held(self, node: str, *leases: Lease, **more: object) -> Stated:
        stated = plan_held(self.state, self.books, node, leases, **more)  # type: ignore[arg-type]
        self.write(stated.ops)
        return stated

    def check(self) -> None:
        """No address twice; the books agree with the records."""
        for one in self.state.networks.values():
            given = [str(IPv4Interface(lease.address).ip) for lease in self.state.leases_on_network(one.id)]
            assert max(Counter(given).values(), default=1) == 1, given
            pool = self.books.pool(one.id)
            assert pool is not None and pool.taken == len(given)


def test_a_container_gets_an_address_of_the_network() -> None:
    books = Books()
    assert books.ask("1").address == "10.1.0.2/29"
    assert books.ask("2", "b", "net-n1").address == "10.1.0.3/29"
    books.check()
    assert users_of(books.state, books.state.networks["n1"]).startswith("network n1 is in use by container box")


def with_ipv6(subnet: str = "fd01::/126") -> Network:
    return replace(network(), v6=Subnet(subnet=subnet, gateway=str(ip_network(subnet).network_address + 1)))


def test_where_a_network_has_ipv6_a_container_has_an_address_of_each_family_or_none() -> None:
    books = Books(with_ipv6())
    assert books.ask("1", prefer6="fd01::3").place.addresses == ("10.1.0.2/29", "fd01::3/126")
    with pytest.raises(AddressInUse):
        books.ask("2", address6="fd01::3")
    with pytest.raises(InvalidArgument, match="invalid IPv6 address: 10"):
        books.ask("2", address6="10.1.0.4")
    assert books.ask("2", address6="fd01::2").address == "10.1.0.5/29"
    with pytest.raises(Exhausted, match="fd01::/126, 2 in use"):
        books.ask("3")
    books.check()
    assert books.held("a", books.state.leases["1"], full=True).lost == ()
    books.check()
    with pytest.raises(InvalidArgument, match="no configured subnet"):
        Books().ask("1", address6="fd01::3")


def test_a_lease_of_both_families_is_regained_whole_or_not_at_all() -> None:
    books = Books(with_ipv6())
    one = books.ask("1")
    books.held("a", full=True)
    assert books.held("a", one).lost == () and books.state.leases["1"].place == one.place
    books.held("a", full=True)
    books.ask("2", "b", address6=one.address6.partition("/")[0], address="10.1.0.6")
    assert books.held("a", one).lost == ("1",)
    books.check()


def test_asked_again_the_answer_is_the_same_with_newer_names() -> None:
    books = Books()
    first = books.ask("1")
    wanted = replace(first, address="", names=("box1", "other"))
    granted = plan_ask(books.state, books.books, "n1", wanted)
    books.write(granted.ops)
    assert books.state.leases["1"] == replace(first, names=("box1", "other"))
    with pytest.raises(Conflict, match="another container's"):
        plan_ask(books.state, books.books, "n1", replace(wanted, node_id="b"))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"ref": "none"}, NotFound, "network none not found"),
        ({"ref": "closed"}, Forbidden, "code = PermissionDenied desc = network closed not manually attachable"),
        ({"address": "10.1.0.2"}, AddressInUse, "Address already in use"),
        ({"address": "10.1.0.1"}, AddressInUse, "Address already in use"),
        ({"address": "10.9.0.1"}, InvalidArgument, "no configured subnet"),
        ({"address": "x"}, InvalidArgument, "invalid IPv4 address: x"),
        ({"node": "gone"}, Unavailable, "not a member"),
        ({"mac": "02:42:0a:01:00:05"}, Conflict, "is that of another address"),
        ({"mac": "02:00:00:00:00:01"}, Conflict, "already in use in network net-n1 by container box0"),
        ({"mac": "zz"}, InvalidArgument, "invalid MAC"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(more: dict[str, str], error: type, words: str) -> None:
    books = Books(network(), network("closed", "10.2.0.0/29", attachable=False))
    books.ask("0", mac="02:00:00:00:00:01")
    before = dict(books.state.leases)
    with pytest.raises(error, match=words):
        books.ask("1", **more)
    assert books.state.leases == before
    books.check()
    assert books.ask("2").address in ("10.1.0.3/29", "10.1.0.4/29")


def test_a_full_network_says_so_and_has_room_again() -> None:
    books = Books()
    leases = [books.ask(str(number)) for number in range(5)]
    with pytest.raises(Exhausted, match=r"no address is free in network net-n1 \(10.1.0.0/29, 5 in use\)"):
        books.ask("6")
    books.held("a", released=(leases[2].id,))
    assert books.ask("6").address == leases[2].address


def test_what_it_had_before_is_given_again_if_it_is_free() -> None:
    books = Books()
    first = books.ask("1")
    assert books.ask("2", prefer="10.1.0.2").address != first.address
    assert books.ask("3", prefer="10.1.0.6").address == "10.1.0.6/29"
    assert books.ask("4", prefer="nonsense").address == "10.1.0.4/29"


def test_a_full_statement_releases_what_is_not_in_it() -> None:
    books = Books()
    kept, lost, asked = books.ask("1"), books.ask("2"), books.ask("3")
    other = books.ask("4", "b")
    stated = books.held("a", replace(kept, node_id="", names=("new",)), full=True, asking=(asked.id,))
    assert stated.lost == ()
    assert set(books.state.leases) == {kept.id, asked.id, other.id} and lost.id not in books.state.leases
    assert books.state.leases["1"].names == ("new",)


def test_a_node_speaks_for_itself_only() -> None:
    books = Books()
    lease = books.ask("1", "a")
    assert books.held("b", lease, released=(lease.id,)).lost == ("1",)
    assert books.held("b", released=(lease.id,)).ops == ()
    assert books.held("b", full=True).ops == ()
    assert books.state.leases["1"] == lease


def test_a_lost_node_gives_its_addresses_back_and_has_them_again_if_they_are_free() -> None:
    books = Books()
    lease, gone = books.ask("1"), books.ask("2")
    down = replace(books.state.nodes["a"], state=NodeState.DOWN, state_changed_at=5)
    books.write((Put(down),))
    plan = plan_node(books.state, "a", 6)
    assert plan.ops == () and plan.wake_at == 5 + NODE_DOWN_ORPHAN_NS
    books.write(plan_node(books.state, "a", 5 + NODE_DOWN_ORPHAN_NS).ops)
    assert not books.state.leases
    other = books.ask("3", "b", address="10.1.0.3")
    stated = books.held("a", lease, gone, full=True)
    assert stated.lost == ("2",)
    assert books.state.leases == {"1": lease, "3": other}
    books.write((Delete(down),))
    books.write(plan_node(books.state, "a", 7).ops)
    assert books.state.leases == {"3": other}
    assert books.held("a", lease).lost == ("1",)


def test_a_removed_network_is_not_had_again() -> None:
    books = Books()
    lease = books.ask("1")
    books.held("a", released=("1",))
    books.write((Put(replace(books.state.networks["n1"], pending_delete=True)),))
    assert books.held("a", lease).lost == ("1",)
    with pytest.raises(NotFound):
        books.ask("2")


_steps = st.lists(
    st.tuples(
        st.sampled_from(("ask", "fixed", "release", "state", "forget", "again")), st.sampled_from(NODES),
        st.integers(0, 9), st.integers(0, 9),
    ),
    max_size=60,
)


@given(steps=_steps)
def test_no_address_is_given_twice_and_none_leaks(steps: list[tuple[str, str, int, int]]) -> None:
    """Agents that ask, give back, forget and state; a new allocator in between is no different."""
    books = Books()
    believed: dict[str, dict[str, Lease]] = {node: {} for node in NODES}
    for number, (what, node, first, second) in enumerate(steps):
        mine = believed[node]
        some = sorted(mine)[first % len(mine)] if mine else ""
        match what:
            case "ask" | "fixed":
                address = f"10.1.0.{second}" if what == "fixed" else ""
                try:
                    lease = books.ask(f"{node}{number}", node, address=address)
                except SwarmletError:
                    continue
                if first:  # else the answer is lost
                    mine[lease.id] = lease
            case "release" if some:
                del mine[some]
                books.held(node, released=(some,))
            case "forget" if some:
                del mine[some]
            case "state":
                stated = books.held(node, *mine.values(), full=True)
                assert not stated.lost
                assert {lease.id for lease in books.state.leases_on_node(node)} == set(mine)
                assert books.held(node, *mine.values(), full=True) == Stated()
            case "again":
                books.books = Allocator(books.state)
        books.check()


def test_a_node_that_cannot_encrypt_has_no_place_in_an_encrypted_network() -> None:
    sealed = network("sealed", "10.3.0.0/29")
    books = Books(replace(sealed, spec=replace(sealed.spec, options={"encrypted": ""})))
    ways = NodeWays(lacking="no module wireguard")
    books.write((Put(replace(books.state.nodes["a"], ways=ways)), Put(replace(books.state.nodes["b"], ways=OPEN))))
    with pytest.raises(NotSupported, match="is encrypted, and this node cannot encrypt: no module wireguard"):
        books.ask("1", "a", "sealed")
    assert books.ask("2", "b", "sealed").address == "10.3.0.2/29"


def test_what_an_agent_makes_up_is_neither_stored_nor_told_to_others() -> None:
    books = Books()
    lease = books.ask("1")
    many = tuple(f"name{number}" for number in range(3000))
    for bad in (replace(lease, names=many), replace(lease, container_name="x" * 20_000)):
        assert books.held("a", bad).lost == ("1",)
        with pytest.raises(InvalidArgument, match="too long"):
            plan_ask(books.state, books.books, "n1", replace(bad, id="2", address=""))
    new = replace(lease, id="2")
    for bad in (replace(new, id="../2"), replace(new, address="x"), replace(new, container_id="")):
        assert books.held("a", bad).lost == (bad.id,)
    assert books.state.leases == {"1": lease}
    books.check()
