"""VIPs in the kernel, one namespace at a time. Runs in the "net" thread only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet.log import get_logger
from swarmlet_agent.net import conntrack, netns
from swarmlet_agent.net.balance.plan import (
    FORMER,
    TABLE,
    Programmed,
    Services,
    advance,
    difference,
    plan,
    replacement,
    ruleset,
    ruleset_anew,
)
from swarmlet_agent.net.dns_sockets import change_rules_here
from swarmlet_agent.net.nftset import ElementsError, ElementSocket
from swarmlet_agent.net.slots import NFPROTO, in_turn, no_table

log = get_logger(__name__)


class Balancer:
    """The VIPs of one network namespace. Made by a thread that is inside it; usable from outside afterwards.

    What an earlier agent left there is replaced by the first `apply`, whether it changes anything or not. Tables of
    other names, of an earlier release, lead connections until ours do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = ElementSocket()
        self._programmed: Programmed | None = None
        self._families = _families_with(self._socket, TABLE)
        self._former = [(family, name) for name in FORMER for family in _families_with(self._socket, name)]

    def close(self) -> None:
        self._socket.close()

    def apply(self, services: Services) -> None:
        """Make these all the VIPs there are. ElementsError, NftError, OSError: try again, nothing is half done."""
        self._move(plan(self._programmed or Programmed(), services), None)

    def change(self, changed: Mapping[str, Sequence[str] | None]) -> None:
        """Make some VIPs lead to other backends (None: this one is gone). Errors as `apply`'s.

        Internal if nothing was applied yet, or the last try failed: `apply` all.
        """
        if self._programmed is None:
            raise Internal("the services of this container are to be applied first")
        self._move(advance(self._programmed, changed), changed)

    def _move(self, after: Programmed, vips: Iterable[str] | None) -> None:
        before, self._programmed = self._programmed, None
        families = {6 if ":" in vip else 4 for vip in (after.slots if vips is None else vips)}
        if missing := sorted(families - self._families):
            with netns.inside(self._path):
                change_rules_here("".join(ruleset(family) for family in missing))
            self._families.update(missing)
        if before is None:
            self._replace(after)
        else:
            try:
                for changes in in_turn(difference(before, after, vips)):
                    self._socket.apply(changes)
            except ElementsError as err:
                log.warning("VIP maps changed by someone else; loading them again", reason=str(err))
                self._replace(after)
        if self._former:
            with netns.inside(self._path):
                change_rules_here("".join(no_table(*table) for table in self._former))
            self._former.clear()
        self._programmed = after

    def cut(self, addresses: Iterable[str]) -> None:
        """Forget UDP flows that are translated to these backends."""
        conntrack.cut_udp(self._socket.channel, [ip_address(address).packed for address in addresses])

    def _replace(self, after: Programmed) -> None:
        try:
            self._socket.apply(replacement(after, self._families))
        except ElementsError:
            # The tables are not as we made them: from here on as in a new namespace.
            broken, self._families = self._families, set()
            with netns.inside(self._path):
                change_rules_here("".join(ruleset_anew(family) for family in sorted(broken)))
            self._families = broken
            self._socket.apply(replacement(after, self._families))


class Balancers:
    """The balancers of this node's containers, by container id. folder: where their namespaces are mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Balancer] = {}

    def apply(self, container_id: str, services: Services) -> None:
        """All VIPs of a container. FileNotFoundError if it has no namespace; else as `Balancer.apply`."""
        balancer = self._open.get(container_id)
        if balancer is None:
            if not services and not self._had_any(container_id):
                return  # most containers use no service: they pay nothing
            path = self._folder / container_id
            with netns.inside(path):
                balancer = self._open[container_id] = Balancer(path)
        balancer.apply(services)

    def has(self, container_id: str) -> bool:
        """Whether something was applied to the container by this agent."""
        return container_id in self._open

    def change(self, container_id: str, changed: Mapping[str, Sequence[str] | None]) -> None:
        """Some VIPs of a container, as `Balancer.change`. Internal for a container that nothing was applied to."""
        if (balancer := self._open.get(container_id)) is None:
            raise Internal("the services of this container are to be applied first")
        balancer.change(changed)

    def cut(self, container_ids: Iterable[str], addresses: Iterable[str]) -> None:
        """These backends are gone: UDP flows of these containers that lead there are forgotten."""
        gone = frozenset(addresses)
        for container_id in container_ids:
            if (balancer := self._open.get(container_id)) is not None:
                balancer.cut(gone)

    def forget(self, container_id: str) -> None:
        """Before the namespace goes. Not known is fine."""
        if (balancer := self._open.pop(container_id, None)) is not None:
            balancer.close()

    def close(self) -> None:
        """At the agent's end: what is programmed stays, and goes on without us."""
        for balancer in self._open.values():
            balancer.close()
        self._open.clear()

    def _had_any(self, container_id: str) -> bool:
        """Whether an earlier agent gave the container VIPs."""
        with netns.inside(self._folder / container_id), ElementSocket() as channel:
            return any(_families_with(channel, name) for name in (TABLE, *FORMER))


def _families_with(channel: ElementSocket, table: str) -> set[int]:
    return {family for family, number in NFPROTO.items() if channel.has_table(number, table)}
