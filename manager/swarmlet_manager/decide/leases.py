"""Leases: addresses of plain containers in attachable networks, as the agents that run them ask for and state them.

Pure but for the allocator's books, which count what is decided here as given. An agent may only speak for its node.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotSupported, SwarmletError, Unavailable
from swarmlet.model.network import Lease, Network
from swarmlet_manager.decide.addresses import AddressInUse, Allocator
from swarmlet_manager.decide.fixed import check_mac
from swarmlet_manager.decide.ways import is_encrypted
from swarmlet_manager.state import Delete, Op, Put, State

_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
#: Characters of a container's names in one network, and one for each of them.
MOST_OF_NAMES = 16_384
_ID = re.compile(r"[0-9a-zA-Z]{1,64}")


@dataclass(frozen=True, slots=True)
class Granted:
    """ops: to be written before the answer. A lease without an address: nothing was to be given."""

    network: Network
    lease: Lease
    ops: tuple[Op, ...] = ()


@dataclass(frozen=True, slots=True)
class Stated:
    """What a statement makes of the records; lost: ids that are not the node's any more."""

    ops: tuple[Op, ...] = ()
    lost: tuple[str, ...] = ()


def plan_ask(
    state: State, books: Allocator, ref: str, wanted: Lease, prefer: str = "", prefer6: str = ""
) -> Granted:
    """An address for a container in the network called `ref`; nothing but whether it may, for a container_id of "".

    wanted.address, address6: this one or none, in plain form; "" for any, `prefer` if it is free. NotFound, Forbidden
    (not attachable) in SwarmKit's words; InvalidArgument, AddressInUse, Exhausted. Asked again with the same id, the
    answer is the same.
    """
    network = _attachable(state, ref)
    wanted = replace(wanted, network_id=network.id)
    if not wanted.container_id:
        return Granted(network, replace(wanted, address="", address6=""))
    if not _is_sound(wanted):
        raise InvalidArgument("invalid endpoint: its ids or names are malformed or too long")
    if (node := state.nodes.get(wanted.node_id)) is None:
        raise Unavailable(f"node {wanted.node_id} is not a member of this cluster any more")
    if is_encrypted(network) and node.ways.lacking:
        raise NotSupported(f"network {network.name} is encrypted, and this node cannot encrypt: {node.ways.lacking}")
    if (known := state.leases.get(wanted.id)) is not None:
        if _place(known) != _place(wanted):
            raise Conflict(f"endpoint {wanted.id} is another container's")
        return Granted(network, known, tuple(_renamed(known, wanted)))
    if wanted.mac:
        wanted = replace(wanted, mac=_mac(wanted.mac))
    lease = replace(wanted, address=_address(books, network, wanted.id, wanted.address, prefer), address6="")
    try:
        lease = replace(lease, address6=_address6(books, network, wanted, prefer6))
    except SwarmletError:
        books.free(lease.place, lease.id)
        raise
    if lease.mac:
        try:
            check_mac(state, network, lease.mac, lease.address.partition("/")[0])
        except Conflict:
            books.free(lease.place, lease.id)
            raise
    return Granted(network, lease, (Put(lease),))


def plan_held(
    state: State, books: Allocator, node_id: str, held: Sequence[Lease], *, full: bool = False,
    asking: Collection[str] = (), released: Collection[str] = (),
) -> Stated:
    """Records follow what the node holds (full: and nothing else but what it is asking for).

    A lease whose record is gone (its node was down for too long) has its address again, unless somebody else got it.
    """
    ops: list[Op] = []
    lost: list[str] = []
    for lease in held:
        known = state.leases.get(lease.id)
        if known is None:
            regained = _regain(state, books, replace(lease, node_id=node_id, version=0))
            ops += [Put(regained)] if regained is not None else []
            lost += [lease.id] if regained is None else []
        elif not _is_sound(lease) or _identity(known) != _identity(replace(lease, node_id=node_id)):
            lost.append(lease.id)
        else:
            ops += _renamed(known, lease)
    kept = {lease.id for lease in held}
    gone = set(released) - kept
    kept.update(asking)
    ops += [
        Delete(lease) for lease in state.leases_on_node(node_id)
        if lease.id in gone or (full and lease.id not in kept)
    ]
    return Stated(tuple(ops), tuple(lost))


def _attachable(state: State, ref: str) -> Network:
    try:
        network = state.find_network(ref)
    except NotFound as err:
        raise NotFound("network", ref, f"rpc error: code = NotFound desc = network {ref} not found") from err
    if not network.spec.attachable:
        raise Forbidden(f"rpc error: code = PermissionDenied desc = network {ref} not manually attachable")
    return network


def _address(books: Allocator, network: Network, owner: str, wanted: str, prefer: str, version: int = 4) -> str:
    if wanted or prefer:
        pool = books.pool(network.id, version)
        if pool is None:
            raise Unavailable(f"network {network.name} is not ready yet")
        if wanted:
            return pool.claim(wanted, owner)
        with contextlib.suppress(AddressInUse, InvalidArgument):
            return pool.claim(prefer, owner)
    return books.take(network.id, owner, version)


def _address6(books: Allocator, network: Network, wanted: Lease, prefer: str) -> str:
    """"" in a network without IPv6."""
    if network.v6.subnet:
        return _address(books, network, wanted.id, wanted.address6, prefer, version=6)
    if wanted.address6:
        raise InvalidArgument(f"no configured subnet or ip-range contain the IP address {wanted.address6}")
    return ""


def _regain(state: State, books: Allocator, lease: Lease) -> Lease | None:
    network, pool = state.networks.get(lease.network_id), books.pool(lease.network_id)
    if network is None or pool is None or network.pending_delete:
        return None
    if lease.node_id not in state.nodes or not _is_sound(lease):
        return None
    address, address6 = (text.partition("/")[0] for text in (lease.address, lease.address6))
    regained = None
    try:
        regained = replace(lease, address=pool.claim(address, lease.id), address6="")
        if (pool6 := books.pool(network.id, 6)) is not None:
            regained = replace(regained, address6=pool6.claim(address6, lease.id))
    except (AddressInUse, InvalidArgument):
        if regained is not None:
            books.free(regained.place, lease.id)
        return None
    return regained


def _is_sound(lease: Lease) -> bool:
    """Whether it can be stored, and told to other nodes, as it came from an agent."""
    ids = _ID.fullmatch(lease.id) and _ID.fullmatch(lease.container_id)
    return bool(ids) and sum(map(len, (lease.container_name, *lease.names))) + len(lease.names) <= MOST_OF_NAMES


def _renamed(known: Lease, now: Lease) -> list[Op]:
    changed = replace(known, container_name=now.container_name, names=now.names)
    return [Put(changed)] if changed != known else []


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise InvalidArgument(f"invalid MAC address: {text}")
    return text.lower()


def _place(lease: Lease) -> tuple[str, str, str]:
    return lease.node_id, lease.network_id, lease.container_id


def _identity(lease: Lease) -> tuple[str, ...]:
    return (*_place(lease), lease.address, lease.address6)
