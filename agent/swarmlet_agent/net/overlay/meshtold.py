"""What a manager has told of the routing mesh: all of it, by increments. Pure.

Costs as much as what is new, but for a few passes over the ports in the simplest of steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from swarmlet.errors import Unavailable
from swarmlet.model.base import Record
from swarmlet.model.cluster import DATA_PATH_PORT
from swarmlet.wire.networking import MeshInfo, MeshNews, MeshNodeInfo, MeshPort, PortName
from swarmlet_agent.net.mesh.plan import Published
from swarmlet_agent.net.overlay.published import addresses_of, published_of

#: Sums of stamps are modulo this.
STAMPS = 1 << 64


class MeshHead(Record, frozen=True, kw_only=True):
    """node_id: this node's. mtu: what the way to other nodes carries, 0 = not known."""

    node_id: str
    mtu: int = 0
    data_path_port: int = DATA_PATH_PORT


class _Whole(Record, frozen=True, kw_only=True):
    """The one row of agents that were told the whole mesh each time."""

    node_id: str
    mesh: MeshInfo
    mtu: int = 0


#: Rows of the journal, by key; None: it goes.
Rows = dict[str, bytes | None]
_HEAD, _WHOLE = "head", "told"


@dataclass(slots=True)
class MeshTold:
    """head None: nothing was told."""

    head: MeshHead | None = None
    nodes: dict[str, MeshNodeInfo] = field(default_factory=dict)
    ports: dict[PortName, MeshPort] = field(default_factory=dict)
    #: Of the ports, as the kernel's side has them.
    published: dict[PortName, Published] = field(default_factory=dict)
    _stamps: dict[str | PortName, int] = field(default_factory=dict)
    _total: int = 0

    def take(self, news: MeshNews, head: MeshHead) -> tuple[Rows, set[str]]:
        """What to write into the journal, and the addresses that answer no more. Unavailable, and nothing is taken, if
        something is missing that was told before: the next session tells everything."""
        told: list[str | PortName] = [node.id for node in news.nodes]
        told += [port.called for port in news.ports]
        stamps = dict(zip(told, news.stamps, strict=False))  # managers of an earlier version have none
        total = sum(stamps.values())
        if not news.whole:
            replaced: set[str | PortName] = {*told, *news.gone_nodes, *news.gone_ports}
            total += self._total - sum(self._stamps.get(key, 0) for key in replaced)
        if total % STAMPS != news.total:
            raise Unavailable("some of what managers said of the routing mesh was not heard: asking for all of it")
        gone_ports, gone_nodes = set(news.gone_ports), set(news.gone_nodes)
        if news.whole:
            gone_ports = self.ports.keys() - {port.called for port in news.ports}
            gone_nodes = self.nodes.keys() - {node.id for node in news.nodes}
            self._stamps = {}
        rows: Rows = {_HEAD: msgspec.msgpack.encode(head)} if head != self.head else {}
        rows |= {_node_key(ident): None for ident in gone_nodes} | {_port_key(name): None for name in gone_ports}
        rows |= {_node_key(node.id): msgspec.msgpack.encode(node) for node in news.nodes}
        rows |= {_port_key(port.called): msgspec.msgpack.encode(port) for port in news.ports}
        silent = self._silent(gone_ports, news.ports)
        self.head = head
        for ident in gone_nodes:
            self.nodes.pop(ident, None)
            self._stamps.pop(ident, None)
        for name in gone_ports:
            self.ports.pop(name, None)
            self.published.pop(name, None)
            self._stamps.pop(name, None)
        self.nodes |= {node.id: node for node in news.nodes}
        self._put(news.ports)
        self._stamps |= stamps
        self._total = news.total
        return rows, silent

    def clear(self) -> Rows:
        """Nothing is published anywhere: what to write into the journal."""
        keys = [_HEAD, _WHOLE, *map(_node_key, self.nodes), *map(_port_key, self.ports)]
        self.head = None
        self.nodes, self.ports, self.published, self._stamps, self._total = {}, {}, {}, {}, 0
        return dict.fromkeys(keys)

    def restore(self, rows: Iterable[tuple[str, bytes]]) -> Rows:
        """From the journal. The answer: what is to be written, so that it has the rows of now."""
        found = dict(rows)
        if (row := found.pop(_WHOLE, None)) is not None:
            whole = msgspec.msgpack.decode(row, type=_Whole)
            head = MeshHead(node_id=whole.node_id, mtu=whole.mtu, data_path_port=whole.mesh.data_path_port)
            return {**self.take(whole_news(whole.mesh), head)[0], _WHOLE: None}
        if (row := found.pop(_HEAD, None)) is not None:
            self.head = msgspec.msgpack.decode(row, type=MeshHead)
        for key, value in found.items():
            if key.startswith("n/"):
                node = msgspec.msgpack.decode(value, type=MeshNodeInfo)
                self.nodes[node.id] = node
            else:
                self._put([msgspec.msgpack.decode(value, type=MeshPort)])
        return {}

    def _put(self, ports: Iterable[MeshPort]) -> None:
        for port in ports:
            self.ports[port.called] = port
            self.published[port.called] = published_of(port)

    def _silent(self, gone: set[PortName], changed: Iterable[MeshPort]) -> set[str]:
        """Addresses that a port led to, and that answer by none any more."""
        new = {port.called: port for port in changed}
        touched = [self.ports[name] for name in {*gone, *new} if name in self.ports]
        if not (lost := addresses_of(touched) - addresses_of(new.values())):
            return set()
        # A task with several ports: another of them may say that it answers.
        return lost - addresses_of(port for name, port in self.ports.items() if name not in new and name not in gone)


def whole_news(mesh: MeshInfo) -> MeshNews:
    """What a manager of an earlier version tells."""
    return MeshNews(whole=True, data_path_port=mesh.data_path_port, nodes=mesh.nodes, ports=mesh.ports)


def _node_key(ident: str) -> str:
    return f"n/{ident}"


def _port_key(name: PortName) -> str:
    protocol, port, host_ip = name
    return f"p/{protocol}/{port}/{host_ip}"
