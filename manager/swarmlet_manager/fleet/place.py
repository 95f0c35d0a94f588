"""Where a plain container goes that was created through the cluster view. Pure.

As classic Swarm did: constraints come with the container, as `-e constraint:node.labels.zone==a` or in the label
`com.docker.swarm.constraints` (a JSON array of expressions); among the nodes that fit, the one that has fewest
containers wins, and of equals the one whose name comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from swarmlet.errors import InvalidArgument, Unavailable
from swarmlet.model.node import Node
from swarmlet_manager.decide import constraints

ENV_PREFIX = "constraint:"
LABEL = "com.docker.swarm.constraints"


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


def candidates(
    nodes: Iterable[Node], expressions: Iterable[str], containers_on: Callable[[str], int]
) -> list[Node]:
    """Nodes that fit, best first. Unavailable tells what refused them, InvalidArgument names a bad expression."""
    parsed = [constraints.parse(expression) for expression in expressions]
    every = list(nodes)
    if not every:
        raise Unavailable("no node can take the container: none is ready and active")
    fitting = [node for node in every if all(constraints.matches(constraint, node) for constraint in parsed)]
    if not fitting:
        raise Unavailable(
            "no node can take the container: scheduling constraints not satisfied on "
            f"{len(every)} {'node' if len(every) == 1 else 'nodes'}"
        )
    return sorted(fitting, key=lambda node: (containers_on(node.id), node.description.hostname, node.id))
