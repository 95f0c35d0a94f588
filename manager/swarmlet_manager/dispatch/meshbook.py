"""The routing mesh as of now, kept for all sessions: what has changed since any of them heard last.

Every node is told the same, so it is worked out once, and only for the services that a change concerns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from swarmlet.model.defaults import ingress_ports
from swarmlet.model.network import Network
from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.task import Task
from swarmlet.wire.networking import MeshNews, MeshNodeInfo, MeshPort, PortName
from swarmlet_manager.dispatch.meshfeed import data_path_port, mesh_nodes, ports_of
from swarmlet_manager.state import Change, State

#: Parts that are gone and are remembered, for sessions that have not heard of it. One that heard last before the oldest
#: of them is told everything.
GONE_KEPT = 10_000
#: Sums of stamps are modulo this.
STAMPS = 1 << 64

#: A port, or the id of a node.
_Key = PortName | str


@dataclass(frozen=True, slots=True)
class _Part:
    told: MeshPort | MeshNodeInfo
    stamp: int


class MeshBook:
    """`note` every change that the state takes in, then ask for news as of that state."""

    def __init__(self) -> None:
        self._parts: dict[_Key, _Part] = {}
        #: Version in which each part was last written, or went; the newest last.
        self._written: dict[_Key, int] = {}
        self._gone: dict[_Key, int] = {}
        self._version = 0
        self._forgotten = 0
        self._total = 0
        self._ports_of: dict[str, frozenset[PortName]] = {}
        self._services_at: dict[PortName, set[str]] = {}
        self._dirty: set[str] = set()
        self._dirty_nodes: set[str] = set()
        self._all_dirty = True
        #: The last answer, and the version it was given to: sessions ask for the same one after another.
        self._answer: tuple[int, int, MeshNews] | None = None

    def note(self, changes: Iterable[Change]) -> bool:
        """Whether there may be news."""
        for change in changes:
            self._note(change)
        return bool(self._all_dirty or self._dirty or self._dirty_nodes)

    def _note(self, change: Change) -> None:
        before, after = change.before, change.after
        if isinstance(before, Node) and isinstance(after, Node) and _as_part(before) == _as_part(after):
            return
        for record in (before, after):
            match record:
                case Task():
                    if ingress_ports(record.ports) or record.service_id in self._ports_of:
                        self._dirty.add(record.service_id)
                case Service():
                    if ingress_ports(record.ports) or record.id in self._ports_of:
                        self._dirty.add(record.id)
                case Node():
                    self._dirty_nodes.add(record.id)
                case Network() if record.spec.ingress:
                    self._all_dirty = True
                case _:
                    pass

    def news(self, state: State, since: int | None) -> tuple[MeshNews | None, int | None]:
        """What has changed since that version, and the version of now. since None: nothing was told yet.

        None for the news: nothing has changed; who has not been told anything is not, until a port is published.
        """
        self._look(state)
        if since == self._version:
            return None, since
        if since is None and not any(isinstance(part.told, MeshPort) for part in self._parts.values()):
            return None, None
        start = since if since is not None and since >= self._forgotten else -1
        if self._answer is None or self._answer[:2] != (start, self._version):
            self._answer = start, self._version, self._since(state, start)
        news = self._answer[2]
        is_news = news.whole or news.nodes or news.ports or news.gone_nodes or news.gone_ports
        return news if is_news else None, self._version

    def _since(self, state: State, version: int) -> MeshNews:
        written = [self._parts[key] for key in _after(self._written, version)]
        nodes = [part for part in written if isinstance(part.told, MeshNodeInfo)]
        ports = [part for part in written if isinstance(part.told, MeshPort)]
        gone = _after(self._gone, version) if version >= 0 else []
        return MeshNews(
            whole=version < 0, data_path_port=data_path_port(state), total=self._total,
            nodes=tuple(part.told for part in nodes if isinstance(part.told, MeshNodeInfo)),
            ports=tuple(part.told for part in ports if isinstance(part.told, MeshPort)),
            stamps=tuple(part.stamp for part in (*nodes, *ports)),
            gone_nodes=tuple(key for key in gone if isinstance(key, str)),
            gone_ports=tuple(key for key in gone if not isinstance(key, str)),
        )

    # Keeping up

    def _look(self, state: State) -> None:
        if not (self._all_dirty or self._dirty or self._dirty_nodes):
            return
        self._version += 1
        if self._all_dirty:
            self._dirty = {*self._ports_of, *state.services}
        elif self._dirty_nodes:
            self._dirty |= {task.service_id for ident in self._dirty_nodes for task in state.tasks_on_node(ident)}
        if self._all_dirty or self._dirty_nodes:
            self._look_at_nodes(state)
        affected: set[PortName] = set()
        for ident in self._dirty:
            affected |= self._index(state, ident)
        for key in affected:
            services = [state.services[ident] for ident in self._services_at.get(key, ())]
            self._put(key, ports_of(state, services).get(key))
        self._all_dirty = False
        self._dirty, self._dirty_nodes = set(), set()
        while len(self._gone) > GONE_KEPT:
            self._forgotten = self._gone.pop(next(iter(self._gone)))

    def _look_at_nodes(self, state: State) -> None:
        nodes = {node.id: node for node in mesh_nodes(state)}
        for key in [key for key in self._parts if isinstance(key, str) and key not in nodes]:
            self._put(key, None)
        for ident, node in nodes.items():
            self._put(ident, node)

    def _index(self, state: State, service_id: str) -> frozenset[PortName]:
        """Every port that the service has, or had."""
        service = state.services.get(service_id)
        before = self._ports_of.pop(service_id, frozenset())
        now = frozenset(
            (port.protocol, port.published_port, port.host_ip)
            for port in (ingress_ports(service.ports) if service is not None else ())
        )
        if now:
            self._ports_of[service_id] = now
        for key in before - now:
            self._services_at[key].discard(service_id)
            if not self._services_at[key]:
                del self._services_at[key]
        for key in now:
            self._services_at.setdefault(key, set()).add(service_id)
        return before | now

    def _put(self, key: _Key, told: MeshPort | MeshNodeInfo | None) -> None:
        known = self._parts.get(key)
        if told is None:
            if known is not None:
                self._total = (self._total - known.stamp) % STAMPS
                del self._parts[key], self._written[key]
                self._gone[key] = self._version
            return
        if known is not None and known.told == told:
            return
        stamp = _stamp(told)
        self._total = (self._total + stamp - (known.stamp if known is not None else 0)) % STAMPS
        self._parts[key] = _Part(told, stamp)
        self._gone.pop(key, None)
        self._written.pop(key, None)
        self._written[key] = self._version


def _after(versions: dict[_Key, int], version: int) -> list[_Key]:
    """The keys written after a version; costs as much as there are."""
    found = []
    for key in reversed(versions):
        if versions[key] <= version:
            break
        found.append(key)
    return found


def _as_part(node: Node) -> tuple[object, ...]:
    """What the mesh has of a node."""
    return node.number, node.data_path, node.addr, node.others, node.state


def _stamp(told: MeshPort | MeshNodeInfo) -> int:
    return int.from_bytes(blake2b(msgspec.msgpack.encode(told), digest_size=8).digest(), "big")
