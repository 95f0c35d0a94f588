"""Host ports of published containers: each is held by a socket, so that no process of the host can take it.

Traffic never reaches these sockets, the rules lead it to the container before; they are there for the others.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from swarmlet.model.node import unpublished
from swarmlet_agent.net.plan_ports import ANY6, ANY_OF_ALL, EPHEMERAL, HostPort, PortWish, aim, blocker, candidates
from swarmlet_agent.net.records import NetworkFailure, PortRecord, PortTaken

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_Held = socket.socket | None
Holder = Callable[[HostPort], _Held]


def hold(port: HostPort) -> socket.socket | None:
    """Bind, and listen where that is known, on a host port. OSError (EADDRINUSE, EADDRNOTAVAIL …).

    None for a protocol the kernel has no sockets for: no process can take such a port either.
    """
    kind, protocol = _KINDS[port.protocol]
    try:
        holder = socket.socket(socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET, kind, protocol)
    except OSError as err:
        if err.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if ":" in port.host_ip:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "udp":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            holder.bind((port.host_ip, port.port))
        else:
            # Connections of an earlier life that still wait for their end must not be in the way; others'
            # attempts to bind fail all the same, because this socket listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((port.host_ip, port.port))
            holder.listen(1)
    except BaseException:  # of any kind: undo, and pass it on
        holder.close()
        raise
    return holder


class PortBook:
    """Who has which host ports: containers, and the routing mesh. Owned by the networks.

    freed: set when a container has let go of ports.
    """

    def __init__(self, holder: Holder = hold) -> None:
        self._hold = holder
        self._sockets: dict[HostPort, socket.socket | None] = {}
        self._numbers: defaultdict[tuple[str, int], set[HostPort]] = defaultdict(set)  # of _sockets, by number
        self._owners: dict[str, list[HostPort]] = {}
        self._names: dict[HostPort, str] = {}
        self._mesh: set[HostPort] = set()
        self._next = EPHEMERAL.start
        self.freed = asyncio.Event()

    def take(
        self, container_id: str, wishes: Iterable[PortWish], targets: tuple[str, str],
        before: Iterable[PortRecord] = (), name: str = "",
    ) -> tuple[PortRecord, ...]:
        """A host port for every wish, all or none. targets: the container's IPv4 and IPv6 address, "" for none.

        before: earlier ports of the same container, kept if free. name: what it is called in others' refusals.
        PortTaken, NetworkFailure.
        """
        earlier = list(before)
        records: list[PortRecord] = []
        try:
            for wish in wishes:
                number = self._take(container_id, wish, earlier)
                records += [
                    PortRecord(
                        port=wish.port, protocol=wish.protocol, host_ip=host_ip, host_port=number, target_ip=target
                    )
                    for host_ip, target in aim(wish.host_ips, *targets).items()
                ]
        except BaseException:  # of any kind: undo, and pass it on
            self.release(container_id)
            raise
        self._call(container_id, name)
        return tuple(records)

    def take_for_mesh(self, wanted: Mapping[HostPort, str]) -> dict[HostPort, str]:
        """These, and no others, are the routing mesh's. wanted: whose service each is, for refusals.

        The answer: those that it cannot have, and why. They are tried again by the next call.
        """
        for port in self._mesh - wanted.keys():
            self._let_go(port)
        self._mesh &= wanted.keys()
        troubles: dict[HostPort, str] = {}
        for port, name in wanted.items():
            if port in self._mesh:
                self._names[port] = f"service {name}, on every node"
                continue
            where = unpublished(port.port, port.protocol, name)
            if (other := self._blocker(port)) is not None and other not in self._mesh:
                troubles[port] = where + f"{self._names.get(other) or 'a container'} has it"
                continue
            try:
                holder = self._hold(port)
            except OSError as err:
                if err.errno == errno.EADDRINUSE:
                    troubles[port] = where + "a process of this host has it"
                    continue
                holder = None  # another node's address, or no more sockets: nobody is kept off, but it is served
            self._keep(port, holder)
            self._names[port] = f"service {name}, on every node"
            self._mesh.add(port)
        return troubles

    def socket(self, record: PortRecord) -> socket.socket | None:
        """What holds a port, to be duplicated by who serves it."""
        return self._sockets.get(HostPort(record.host_ip, record.protocol, record.host_port))

    def adopt(self, container_id: str, records: Iterable[PortRecord], name: str = "") -> list[OSError]:
        """Hold again the ports of a container that outlived the agent; the rules are in place in any case.

        Returns why some could not be held.
        """
        troubles = []
        for record in records:
            if not record.host_port:
                continue
            port = HostPort(record.host_ip, record.protocol, record.host_port)
            holder = None
            try:
                holder = self._hold(port)
            except OSError as err:
                troubles.append(err)
            self._keep(port, holder)
            self._owners.setdefault(container_id, []).append(port)
        self._call(container_id, name)
        return troubles

    def release(self, container_id: str) -> None:
        """Let go of all ports of a container."""
        ports = self._owners.pop(container_id, ())
        for port in ports:
            self._let_go(port)
        if ports:
            self.freed.set()

    def close(self) -> None:
        for container_id in list(self._owners):
            self.release(container_id)
        self.take_for_mesh({})

    def _call(self, container_id: str, name: str) -> None:
        if name:
            for port in self._owners.get(container_id, ()):
                self._names[port] = f"container {name}"

    def _blocker(self, port: HostPort) -> HostPort | None:
        return blocker(port, self._numbers.get((port.protocol, port.port), ()))

    def _keep(self, port: HostPort, holder: _Held) -> None:
        self._sockets[port] = holder
        self._numbers[port.protocol, port.port].add(port)

    def _let_go(self, port: HostPort) -> None:
        self._names.pop(port, None)
        number = port.protocol, port.port
        self._numbers[number].discard(port)
        if not self._numbers[number]:
            del self._numbers[number]
        if (holder := self._sockets.pop(port, None)) is not None:
            holder.close()

    def _take(self, container_id: str, wish: PortWish, earlier: list[PortRecord]) -> int:
        """One number that is free on every address of the wish."""
        previous = [
            record.host_port for record in earlier
            if record.host_port and (record.port, record.protocol) == (wish.port, wish.protocol)
            and record.host_ip in wish.host_ips and (wish.first == 0 or wish.first <= record.host_port <= wish.last)
        ]
        reason: Exception | None = None
        for number in chain(previous, candidates(wish, self._next)):
            ports = [HostPort(host_ip, wish.protocol, number) for host_ip in wish.host_ips]
            others = ((port, other) for port in ports if (other := self._blocker(port)) is not None)
            if (taken := next(others, None)) is not None:
                port, other = taken
                whose = f" ({self._names[other]})" if other in self._names else ""
                reason = PortTaken(f"Bind for {_shown(port)} failed: port is already allocated{whose}")
                continue
            refused = self._hold_all(ports)
            if refused is not None:
                reason = _refusal(*refused)
                if refused[1].errno != errno.EADDRINUSE:
                    break
                continue
            self._owners.setdefault(container_id, []).extend(ports)
            if wish.first == 0:
                self._next = number + 1 if number + 1 in EPHEMERAL else EPHEMERAL.start
            return number
        if wish.first == 0 and isinstance(reason, PortTaken):
            raise PortTaken(f"Bind for {wish.host_ips[0]} failed: all ports are allocated")
        raise reason or PortTaken(f"Bind for {wish.host_ips[0]}:{wish.first} failed: port is already allocated")

    def _hold_all(self, ports: Iterable[HostPort]) -> tuple[HostPort, OSError] | None:
        """All or none; what stands in the way."""
        held: list[HostPort] = []
        for port in ports:
            try:
                self._keep(port, self._hold(port))
            except OSError as err:
                for other in held:
                    self._let_go(other)
                return port, err
            held.append(port)
        return None


def host_has_ipv6() -> bool:
    """True if ports can be published on [::]."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((ANY6, 0))
    except OSError:
        return False
    return True


def _shown(port: HostPort) -> str:
    return f"[{port.host_ip}]:{port.port}" if ":" in port.host_ip else f"{port.host_ip}:{port.port}"


def _refusal(port: HostPort, err: OSError) -> Exception:
    text = f"failed to bind host port {_shown(port)}/{port.protocol}: "
    if err.errno == errno.EADDRINUSE:
        return PortTaken(text + "address already in use")
    if err.errno == errno.EADDRNOTAVAIL and port.host_ip not in ANY_OF_ALL:
        return NetworkFailure(text + "cannot assign requested address")
    return NetworkFailure(text + os.strerror(err.errno or 0).lower())
