"""Where a plain container goes that was created through the cluster view. Pure.

As classic Swarm did: constraints come with the container, as `-e constraint:node.labels.zone==a` or in the label
`com.docker.swarm.constraints` (a JSON array of expressions); a container that shares something with others goes where
they are; among the nodes that fit, the one that has fewest containers wins, and of equals the one whose name comes
first. Where a named volume is, its data are: nodes that have it come before all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from swarmlet.engine_api.router import convert
from swarmlet.errors import InvalidArgument, Unavailable
from swarmlet.model.base import without_nulls
from swarmlet.model.container import HostConfig, NetworkingConfig
from swarmlet.model.node import Node
from swarmlet_manager.decide import constraints

ENV_PREFIX = "constraint:"
LABEL = "com.docker.swarm.constraints"
#: A mode of a namespace that is another container's, by name or id.
SHARED = "container:"


def split_constraints(body: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The constraints in a ContainerCreate body, and the body without those that stood in its environment.

    InvalidArgument for a label that is not a JSON array of strings. A body of wrong types is left as it is.
    """
    env = body.get("Env") or []
    if not isinstance(env, list) or not all(isinstance(entry, str) for entry in env):
        return [], dict(body)  # the node's engine refuses it, naming the very field
    found = [entry.removeprefix(ENV_PREFIX) for entry in env if entry.startswith(ENV_PREFIX)]
    rest = [entry for entry in env if not entry.startswith(ENV_PREFIX)]
    labels = body.get("Labels") or {}
    if isinstance(labels, dict) and (text := labels.get(LABEL)):
        try:
            found += msgspec.json.decode(str(text), type=list[str])
        except msgspec.DecodeError as err:
            raise InvalidArgument(f"invalid label {LABEL}: {err}") from err
    return found, {**body, "Env": rest}


@dataclass(frozen=True, slots=True)
class Needs:
    """What ties a container to a node."""

    #: Names or ids of the containers whose namespaces, volumes or links it uses: it must be where they are.
    companions: tuple[str, ...] = ()
    #: Volumes by the names that the user gave.
    volumes: tuple[str, ...] = ()


def needs_of(body: Mapping[str, Any]) -> Needs:
    """Of a ContainerCreate body. A body of wrong types needs nothing: a node's engine refuses it, naming the field."""
    try:
        host = convert(without_nulls(body.get("HostConfig") or {}), HostConfig)
        network = convert(without_nulls(body.get("NetworkingConfig") or {}), NetworkingConfig)
    except InvalidArgument:
        return Needs()
    modes = (host.network_mode, host.pid_mode, host.ipc_mode)
    shared = [mode.removeprefix(SHARED) for mode in modes if mode.startswith(SHARED)]
    ends = [end for end in network.endpoints_config.values() if end is not None]
    named = [*host.volumes_from, *host.links, *(link for end in ends for link in end.links)]
    binds = (text.split(":") for text in host.binds)
    bound = [parts[0] for parts in binds if len(parts) > 1 and not parts[0].startswith("/")]
    mounted = [mount.source for mount in host.mounts if mount.type == "volume"]
    return Needs(
        companions=_distinct([*shared, *(text.partition(":")[0] for text in named)]),
        volumes=_distinct([*bound, *mounted]),
    )


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.removeprefix("/") for name in names if name))


def where_companions_are(holders: Mapping[str, Node]) -> Node | None:
    """The one node of all companions (name -> node); Unavailable if there are several."""
    nodes = {node.id: node for node in holders.values()}
    if len(nodes) > 1:
        places = ", ".join(f"{name} on {node.description.hostname}" for name, node in holders.items())
        raise Unavailable(f"no node can take the container: it goes with containers of different nodes: {places}")
    return next(iter(nodes.values()), None)


def with_most(nodes: Sequence[Node], held: Mapping[str, int]) -> list[Node]:
    """Those of the nodes that hold most (node id -> how many), in their order; all of them if none holds anything."""
    most = max((held.get(node.id, 0) for node in nodes), default=0)
    return [node for node in nodes if held.get(node.id, 0) == most]


def candidates(
    nodes: Iterable[Node], expressions: Iterable[str], containers_on: Callable[[str], int], *, what: str = "container"
) -> list[Node]:
    """Nodes that fit, best first. Unavailable tells what refused them, InvalidArgument names a bad expression."""
    parsed = [constraints.parse(expression) for expression in expressions]
    every = list(nodes)
    if not every:
        raise Unavailable(f"no node can take the {what}: none is ready and active")
    fitting = [node for node in every if all(constraints.matches(constraint, node) for constraint in parsed)]
    if not fitting:
        raise Unavailable(
            f"no node can take the {what}: scheduling constraints not satisfied on "
            f"{len(every)} {'node' if len(every) == 1 else 'nodes'}"
        )
    return sorted(fitting, key=lambda node: (containers_on(node.id), node.description.hostname, node.id))
