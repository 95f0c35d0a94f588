"""Published ports that the kernel's address translation cannot serve: copied, both ways.

Two kinds: a host address of one family that leads to a container with only the other (a container without IPv6 is
published on [::] too), and the host's own ::1, since Linux does not route packets with a loopback source for IPv6.
Docker has its docker-proxy for the same. The container sees the bridge's address as the peer. The agent accepts TCP
connections, which a process of their own then carries, so that they outlive the agent; datagrams it copies itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.log import get_logger
from swarmlet_agent.net.records import PortRecord
from swarmlet_agent.net.relay_helper import RelayHelper

log = get_logger(__name__)

#: UDP flows of one published port; more take the place of the longest idle one.
MAX_FLOWS = 256
FLOW_IDLE_S = 90.0
_CHUNK = 65536
_BURST = 32
_UDP_BUFFER = 212992  # the kernel's default; a port that is only held has the least there is


def needs_relay(port: PortRecord) -> bool:
    """True if something must be copied. SCTP cannot be: it is only published where the kernel leads."""
    return port.host_port > 0 and port.protocol in ("tcp", "udp") and (not port.direct or port.host_ip in ("::", "::1"))


@dataclass(slots=True)
class _Served:
    """What serves one container."""

    ports: tuple[PortRecord, ...]
    parts: list[_Tcp | _Udp] = field(default_factory=list)


class Relays:
    """Serves ports on the running event loop. find_socket: the socket that holds a port, None if nothing does."""

    def __init__(self, find_socket: Callable[[PortRecord], socket.socket | None], folder: Path) -> None:
        """folder: for the relay process's socket."""
        self._find_socket = find_socket
        self._helper = RelayHelper(folder)
        self._served: dict[str, _Served] = {}

    def serve(self, container_id: str, ports: Iterable[PortRecord]) -> None:
        """Serve exactly these of a container's ports; what is served already goes on."""
        wanted = tuple(port for port in ports if needs_relay(port))
        known = self._served.get(container_id)
        if known is not None and known.ports == wanted:
            return
        self.stop(container_id)
        if not wanted:
            return
        served = self._served[container_id] = _Served(wanted)
        for port in wanted:
            if (holder := self._find_socket(port)) is not None:
                target = port.target_ip, port.port
                if port.protocol == "tcp":
                    served.parts.append(_Tcp(holder.dup(), target, container_id, self._helper))
                else:
                    served.parts.append(_Udp(holder.dup(), target))

    async def adopt(self, container_ids: Collection[str]) -> None:
        """At start: connections that an agent before this one accepted for other containers end."""
        await self._helper.adopt(container_ids)

    def stop(self, container_id: str) -> None:
        """End its connections too: there is nobody at their other end any more. Not served is fine."""
        if self._unserve(container_id):
            self._helper.end(container_id)

    async def close(self) -> None:
        """Accept no more; TCP connections go on."""
        for container_id in list(self._served):
            self._unserve(container_id)
        await self._helper.close()

    def _unserve(self, container_id: str) -> bool:
        served = self._served.pop(container_id, None)
        for part in served.parts if served is not None else ():
            part.close()
        return served is not None


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Tcp:
    """One listening socket."""

    def __init__(
        self, listener: socket.socket, target: tuple[str, int], container_id: str, helper: RelayHelper
    ) -> None:
        self._listener = listener
        self._target = target
        self._container_id, self._helper = container_id, helper
        listener.setblocking(False)
        listener.listen(128)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_BURST):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as err:
                log.warning("relayed connection not accepted", reason=str(err))
                return
            host, number, *_ = self._listener.getsockname()
            self._helper.hand_over(client, self._container_id, f"{host} {number}", self._target)


@dataclass(slots=True)
class _Flow:
    channel: socket.socket
    used_at: float


class _Udp:
    """One bound socket; each peer has a socket of its own towards the container."""

    def __init__(self, bound: socket.socket, target: tuple[str, int]) -> None:
        self._bound = bound
        self._target = target
        #: By peer, the longest idle first.
        self._flows: OrderedDict[tuple[object, ...], _Flow] = OrderedDict()
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound.fileno(), self._on_query)
        self._sweeper = self._loop.call_later(FLOW_IDLE_S, self._sweep)

    def close(self) -> None:
        self._sweeper.cancel()
        self._loop.remove_reader(self._bound.fileno())
        self._bound.close()
        for flow in self._flows.values():
            self._end(flow)
        self._flows.clear()

    def _on_query(self) -> None:
        for _ in range(_BURST):
            try:
                data, peer = self._bound.recvfrom(_CHUNK)
            except OSError:  # nothing more, or an ICMP error of an earlier answer
                return
            # What cannot be sent is lost, as datagrams may be.
            with contextlib.suppress(OSError):
                self._flow(peer).channel.send(data)

    def _flow(self, peer: tuple[object, ...]) -> _Flow:
        flow = self._flows.get(peer)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._end(self._flows.popitem(last=False)[1])
            channel = socket.socket(_family(self._target[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                channel.connect(self._target)
            except OSError:
                channel.close()
                raise
            flow = self._flows[peer] = _Flow(channel, 0.0)
            self._loop.add_reader(channel.fileno(), self._on_answer, peer, flow)
        flow.used_at = self._loop.time()
        self._flows.move_to_end(peer)
        return flow

    def _on_answer(self, peer: tuple[object, ...], flow: _Flow) -> None:
        flow.used_at = self._loop.time()
        for _ in range(_BURST):
            try:
                data = flow.channel.recv(_CHUNK)
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._bound.sendto(data, peer)

    def _sweep(self) -> None:
        old = self._loop.time() - FLOW_IDLE_S
        for peer in [peer for peer, flow in self._flows.items() if flow.used_at < old]:
            self._end(self._flows.pop(peer))
        self._sweeper = self._loop.call_later(FLOW_IDLE_S, self._sweep)

    def _end(self, flow: _Flow) -> None:
        self._loop.remove_reader(flow.channel.fileno())
        flow.channel.close()
