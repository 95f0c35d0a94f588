"""Why a node cannot take a task: SwarmKit's filters in its order, and its words for those that refused.

A node is refused by the first filter it fails, and counted there only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import Mount, Platform
from swarmlet.model.node import Node
from swarmlet.model.service import Placement
from swarmlet.model.task import Task
from swarmlet_manager.decide import constraints
from swarmlet_manager.decide.constraints import PER_NODE_KEYS, Constraint
from swarmlet_manager.decide.resources import Demand, HostPort, demand_of, host_ports

#: What a plugin must be on a node: (type as the engine reports it, name).
Plugin = tuple[str, str]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}


class Filter(IntEnum):
    """In the order of checking."""

    READY = 0
    RESOURCE = 1
    PLUGIN = 2
    CONSTRAINT = 3
    PLATFORM = 4
    HOST_PORT = 5
    MAX_REPLICAS = 6
    ENCRYPTION = 7  # ours


_WORDS = {
    Filter.READY: ("1 node not available for new tasks", "{} nodes not available for new tasks"),
    Filter.RESOURCE: ("insufficient resources on 1 node", "insufficient resources on {} nodes"),
    Filter.PLUGIN: ("missing plugin on 1 node", "missing plugin on {} nodes"),
    Filter.CONSTRAINT: (
        "scheduling constraints not satisfied on 1 node",
        "scheduling constraints not satisfied on {} nodes",
    ),
    Filter.PLATFORM: ("unsupported platform on 1 node", "unsupported platform on {} nodes"),
    Filter.HOST_PORT: ("host-mode port already in use on 1 node", "host-mode port already in use on {} nodes"),
    Filter.ENCRYPTION: ("encrypted networks not possible on 1 node", "encrypted networks not possible on {} nodes"),
    Filter.MAX_REPLICAS: ("max replicas per node limit exceed", "max replicas per node limit exceed"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """Compared by identity, so that it is a cheap key. What the tasks of one service and spec version ask of a node.

    constraints is None if they cannot be read (they were refused at create): then no node will do.
    """

    service_id: str
    demand: Demand
    constraints: tuple[Constraint, ...] | None
    platforms: tuple[Platform, ...]
    plugins: tuple[Plugin, ...]
    ports: tuple[HostPort, ...]
    max_replicas: int
    spread: tuple[str, ...]
    #: What the constraints look at, and whether the answer may differ between nodes that look alike.
    keys: frozenset[str]
    is_per_node: bool
    #: It is on an encrypted network.
    encrypted: bool = False


def wish_of(task: Task, *, encrypted: bool = False) -> Wish:
    """encrypted: one of its networks is."""
    placement = task.spec.placement or Placement()
    try:
        parsed: tuple[Constraint, ...] | None = constraints.parse_all(placement.constraints)
    except InvalidArgument:
        parsed = None
    keys = frozenset(constraint.key for constraint in parsed or ())
    return Wish(
        service_id=task.service_id,
        demand=demand_of(task.spec),
        constraints=parsed,
        platforms=tuple(map(_normal, placement.platforms)),
        plugins=tuple(_plugins(task)),
        ports=tuple(host_ports(task.ports)),
        max_replicas=placement.max_replicas,
        spread=tuple(one.spread.spread_descriptor for one in placement.preferences if one.spread is not None),
        keys=keys,
        is_per_node=not keys.isdisjoint(PER_NODE_KEYS),
        encrypted=encrypted,
    )


def static_refusal(wish: Wish, node: Node) -> Filter | None:
    """What speaks against the node whatever runs on it; readiness is left to the caller."""
    if any(not _has_plugin(plugin, node) for plugin in wish.plugins):
        return Filter.PLUGIN
    if wish.constraints is None or not constraints.matches_all(wish.constraints, node):
        return Filter.CONSTRAINT
    if wish.platforms and not any(_platform_matches(one, node) for one in wish.platforms):
        return Filter.PLATFORM
    if wish.encrypted and node.ways.lacking:
        return Filter.ENCRYPTION
    return None


def explain(refusals: Iterable[Filter]) -> str:
    """One phrase per filter, those that refused most nodes first; "" if nothing was refused."""
    counted = Counter(refusals)
    phrases = []
    for refusing, nodes in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        one, many = _WORDS[refusing]
        phrases.append(one if nodes == 1 else many.format(nodes))
    return "; ".join(phrases)


def normal_architecture(name: str) -> str:
    """One name per architecture: kernels and images use different ones."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _normal(platform: Platform) -> Platform:
    return Platform(os=platform.os.lower(), architecture=normal_architecture(platform.architecture))


def _platform_matches(wanted: Platform, node: Node) -> bool:
    """wanted is normalised; what it leaves empty matches anything."""
    actual = _normal(node.description.platform)
    return wanted.os in ("", actual.os) and wanted.architecture in ("", actual.architecture)


def _plugins(task: Task) -> Iterable[Plugin]:
    mounts: tuple[Mount, ...] = () if task.spec.container_spec is None else task.spec.container_spec.mounts
    for mount in mounts:
        options = mount.volume_options if mount.type == "volume" else None
        driver = "" if options is None or options.driver_config is None else options.driver_config.name
        if driver not in ("", "local"):
            yield ("Volume", driver)
    logs = task.spec.log_driver
    if logs is not None and logs.name not in ("", "none"):
        yield ("Log", logs.name)


def _has_plugin(plugin: Plugin, node: Node) -> bool:
    """A node that names no log drivers at all is taken to have the one asked for (SwarmKit's rule)."""
    kind, name = plugin
    names = {known.name for known in node.description.engine.plugins if known.type == kind}
    return name in names or (kind == "Log" and not names)
