"""Answers about names of ours, as one container sees them, and those given before, kept ready. No input or output."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from swarmlet_agent.net import dns_codec
from swarmlet_agent.net.dns_codec import Extra, Query
from swarmlet_agent.net.names import Found, NameTable, Target

_T = TypeVar("_T")
#: Bytes of questions and answers that are kept for one container, some 4,000 of them.
MAX_READY_BYTES = 1 << 20
#: Of one question and its answers; and what Python needs to keep them.
_MAX_ONE_BYTES, _OVERHEAD_BYTES = 8192, 200
#: Orders of an answer's addresses that are kept: clients that take the first one spread over all.
_ORDERS = 8


@dataclass(frozen=True, slots=True)
class Asker:
    """What a container may ask. networks: ids, in order of precedence. servers (): the host's resolvers.

    private: its links, alias -> name. forward: names that are not ours leave the host.
    """

    container_id: str
    networks: tuple[str, ...]
    private: dict[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    forward: bool = True


class Answers:
    """One container's."""

    def __init__(self, names: NameTable, asker: Asker) -> None:
        self._names = names
        self._asker = asker
        self._ready: dict[bytes, list[bytes]] = {}
        self._ready_bytes = 0
        self._version = names.version
        self._turn = 0

    def ready(self, data: bytes) -> bytes | None:
        """The answer to a datagram that is but for its id one that was asked before; None if there is none."""
        if self._version != self._names.version:
            self._forget()
            return None
        if (found := self._ready.get(data[2:])) is None:
            return None
        self._turn += 1
        return data[:2] + found[self._turn % len(found)]

    def answer(self, data: bytes, *, udp: bool) -> bytes | None:
        """The answer to a query about names of ours; None for what must be asked of others."""
        try:
            query = dns_codec.parse(data)
        except dns_codec.Malformed:
            return dns_codec.failure(data, dns_codec.FORMERR)
        if query.opcode:
            return dns_codec.answer(query, (), code=dns_codec.NOTIMP)
        if query.klass not in (dns_codec.IN, dns_codec.ANY):
            return dns_codec.answer(query, (), code=dns_codec.REFUSED)
        try:
            answers = self._of_ours(query, query.udp_size if udp else None)
        except dns_codec.Malformed:  # a container's name that no name of the DNS can be
            return dns_codec.answer(query, (), code=dns_codec.SERVFAIL)
        if answers is None:
            return None if self._asker.forward else dns_codec.answer(query, (), code=dns_codec.SERVFAIL)
        if udp:
            self._keep(data, answers)
        return random.choice(answers)

    def _keep(self, data: bytes, answers: list[bytes]) -> None:
        size = len(data) + sum(map(len, answers)) + _OVERHEAD_BYTES
        if size > _MAX_ONE_BYTES:
            return
        if self._version != self._names.version or self._ready_bytes + size > MAX_READY_BYTES:
            self._forget()
        self._ready[data[2:]] = [answer[2:] for answer in answers]
        self._ready_bytes += size

    def _forget(self) -> None:
        self._ready.clear()
        self._ready_bytes = 0
        self._version = self._names.version

    def _of_ours(self, query: Query, limit: int | None) -> list[bytes] | None:
        """The same answer in several orders."""
        networks = self._asker.networks
        if query.kind == dns_codec.PTR and (address := dns_codec.reverse_address(query.name)):
            if name := self._names.name_of(address, networks):
                return [dns_codec.answer(query, [dns_codec.encode_name(name)], limit=limit)]
            return None
        found = self._names.find(query.name, networks, self._asker.private)
        if found is None:
            return None
        if found.missing:
            return [dns_codec.answer(query, (), code=dns_codec.NXDOMAIN)]
        # Ours, so never asked of others: a type we have none of is an empty answer, not a missing name.
        if query.kind == dns_codec.SRV:
            return [
                dns_codec.answer(query, _locations(targets, found), limit=limit, extra=_places(targets, found))
                for targets in _orders(found.targets)
            ]
        kind = dns_codec.A if query.kind == dns_codec.ANY else query.kind
        return [dns_codec.answer(query, order, limit=limit) for order in _orders(_records(found.addresses, kind))]


def _orders(items: Sequence[_T]) -> list[list[_T]]:
    """The items in some of their rotations, in random order: each is first as often as any other."""
    mixed = random.sample(list(items), len(items))
    return [mixed[at:] + mixed[:at] for at in range(min(len(mixed), _ORDERS))] or [[]]


def _records(addresses: Sequence[str], kind: int) -> list[bytes]:
    """The rdata of those addresses that are of the asked type; [] for a type that addresses do not have."""
    if kind == dns_codec.A:
        return [socket.inet_aton(address) for address in addresses if ":" not in address]
    if kind == dns_codec.AAAA:
        return [socket.inet_pton(socket.AF_INET6, address) for address in addresses if ":" in address]
    return []


def _locations(targets: Sequence[Target], found: Found) -> list[bytes]:
    return [dns_codec.service_location(target.port, _wire(target, found)) for target in targets]


def _places(targets: Sequence[Target], found: Found) -> list[Extra]:
    """The addresses of the targets, to spare the asker a question."""
    return [
        Extra(_wire(target, found), kind, rdata)
        for target in targets
        for kind in (dns_codec.A, dns_codec.AAAA)
        for rdata in _records(target.addresses, kind)
    ]


def _wire(target: Target, found: Found) -> bytes:
    """A target's whole name: it is not looked for in search domains."""
    return dns_codec.encode_name(f"{target.name}.{found.network}")
