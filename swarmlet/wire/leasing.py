"""Addresses of plain containers in attachable networks: what an agent asks for and states, what a manager answers.

An agent chooses a lease's id, the endpoint's. What it says is taken in the order in which it was said. It states all
it holds at the start of each session, and again from time to time: of its leases the manager then keeps those stated
and no others, so that whatever was lost on the way is neither held for ever nor given twice.
"""

from __future__ import annotations

from swarmlet.model.base import Record
from swarmlet.model.network import Lease


class LeaseAsk(Record, frozen=True, kw_only=True, tag="lease"):
    """Agent: a container wants to be on a network. container_id "": only tell whether it may.

    network: name, id or id prefix. address: this one or none, "" for any. prefer: what it had before, given if it is
    free; those with a 6 are IPv6's, where the network has that. mac "": as it follows from the address.
    """

    id: str
    network: str
    container_id: str = ""
    container_name: str = ""
    names: tuple[str, ...] = ()
    address: str = ""
    prefer: str = ""
    address6: str = ""
    prefer6: str = ""
    mac: str = ""


class LeasesHeld(Record, frozen=True, kw_only=True, tag="leases"):
    """Agent: what it holds (full: and nothing else but what it is still asking for), and what it holds no more."""

    full: bool = False
    held: tuple[Lease, ...] = ()
    asking: tuple[str, ...] = ()
    released: tuple[str, ...] = ()


class LeaseAnswer(Record, frozen=True, kw_only=True, tag="leased"):
    """Manager: to the ask with this id. The network has been told of before; status 0: granted, else as HTTP has it.

    lease without an address where nothing was to be given.
    """

    id: str
    lease: Lease | None = None
    network: str = ""
    status: int = 0
    message: str = ""


class LeasesLost(Record, frozen=True, kw_only=True, tag="lost"):
    """Manager: leases that were stated and are not the node's any more: their containers must leave the network."""

    ids: tuple[str, ...]
