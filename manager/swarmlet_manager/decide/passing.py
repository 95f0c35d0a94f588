"""What a manager does with a request that only the leader can serve: serve it, pass it on, wait, or refuse. Pure.

A request is passed on once: the manager that gets it serves it or says that it has not taken it, and the one that
passed it on looks again who leads. So no request goes in circles, however wrong two managers are about each other.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How long a request waits for a leader that can take it: a lease (3 s), an election, and the new leader's first steps.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What this manager knows of the leadership.

    leading: it may write. leader: "host:port" of the manager that may instead, "" if there is none. etcd_answers:
    whether etcd, through which one is elected, has given a sign of life lately.
    """

    leading: bool
    leader: str = ""
    etcd_answers: bool = True


@dataclass(frozen=True, slots=True)
class Serve:
    """Here and now."""


@dataclass(frozen=True, slots=True)
class PassOn:
    leader: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A moment, or until somebody else leads."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing was done. reason: for the client."""

    reason: str


Step = Serve | PassOn | Wait | Refuse


def next_step(standing: Standing, *, passed_on: bool, failure: str, waited_s: float) -> Step:
    """passed_on: another manager has passed the request on to this one. failure: why the last attempt of passing it on
    came to nothing, "" before the first. waited_s: since the request came."""
    if standing.leading:
        return Serve()
    if passed_on:
        return Refuse("this manager is not the leader")
    if waited_s >= PATIENCE_S:
        return Refuse(no_leader(standing, failure, waited_s))
    return PassOn(standing.leader) if standing.leader else Wait()


def no_leader(standing: Standing, failure: str, waited_s: float) -> str:
    """For the client: that nobody leads who could be asked, and why, as far as this manager knows."""
    if standing.leader:
        why = f"the manager at {standing.leader} was elected but does not take requests ({failure or 'not tried'})"
    elif standing.etcd_answers:
        why = "none has been elected; look whether the other managers run, and at this one's log"
    else:
        why = "etcd, which elects it, does not answer; look whether a majority of its members runs"
    return f"The swarm has no leader: {why}. Nothing was changed. Waited {waited_s:.0f} s; try again"
