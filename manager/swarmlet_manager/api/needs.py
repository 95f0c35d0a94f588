"""Which manager may serve which call: one table, apart from the routes, so that it can be read as a whole (ADR 22)."""

from __future__ import annotations

from enum import Enum, auto

from swarmlet.wire import joining


class Need(Enum):
    """What a request needs of the manager that serves it."""

    HERE = auto()  # any manager, as it is: the nodes are asked
    CURRENT = auto()  # any manager that knows all that was acknowledged before
    LEADER = auto()  # the leader alone


#: First words of the paths of the cluster's records: read of a state that is current, written by the leader.
_RECORDS = frozenset({"swarm", "nodes", "services", "tasks", "networks", "secrets", "configs"})
_OTHERS = {
    # Names and places of containers: what is unique in the cluster is known to the leader, whom agents tell.
    ("POST", "/containers/create"): Need.LEADER,
    ("POST", "/containers/{id}/rename"): Need.LEADER,
    # A node does it; which network is meant stands in the records.
    ("POST", "/networks/{id}/connect"): Need.CURRENT,
    ("POST", "/networks/{id}/disconnect"): Need.CURRENT,
    # Refused by every manager alike.
    ("POST", "/swarm/init"): Need.HERE,
    ("POST", "/swarm/join"): Need.HERE,
    ("POST", "/swarm/leave"): Need.HERE,
    ("POST", "/swarm/unlock"): Need.HERE,
    ("GET", "/swarm/unlockkey"): Need.HERE,
    ("POST", joining.JOIN_PATH): Need.LEADER,
    ("POST", joining.LOCAL_JOIN_PATH): Need.LEADER,
    ("POST", joining.RENEW_PATH): Need.CURRENT,
    ("GET", "/info"): Need.CURRENT,
    ("GET", "/events"): Need.CURRENT,
}


def need_of(method: str, template: str) -> Need:
    """Of a route of a manager's."""
    if (known := _OTHERS.get((method, template))) is not None:
        return known
    if template.split("/")[1] not in _RECORDS:
        return Need.HERE
    return Need.CURRENT if method == "GET" else Need.LEADER
