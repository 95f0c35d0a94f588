"""What a manager does with a request that the leader must serve."""

from __future__ import annotations

from typing import assert_never

from hypothesis import given
from hypothesis import strategies as st

from swarmlet_manager.decide.passing import (
    PATIENCE_S,
    PassOn,
    Refuse,
    Serve,
    Standing,
    Step,
    Wait,
    next_step,
)

LEADER = Standing(leading=True)
FOLLOWER = Standing(leading=False, leader="10.0.0.1:2377")
ALONE = Standing(leading=False)
addresses = st.sampled_from(["10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377"])


def step(standing: Standing, *, passed_on: bool = False, failure: str = "", waited_s: float = 0) -> Step:
    return next_step(standing, passed_on=passed_on, failure=failure, waited_s=waited_s)


def test_the_leader_serves_whoever_asks_and_however_late() -> None:
    for passed_on in (False, True):
        assert step(LEADER, passed_on=passed_on, waited_s=PATIENCE_S * 2) == Serve()


def test_a_follower_passes_on_to_the_leader_it_knows_and_waits_for_one_it_does_not() -> None:
    assert step(FOLLOWER) == PassOn("10.0.0.1:2377")
    assert step(ALONE) == Wait()


def test_what_was_passed_on_is_not_passed_on_again() -> None:
    for standing in (FOLLOWER, ALONE):
        assert isinstance(step(standing, passed_on=True), Refuse)


def test_patience_ends_with_a_reason() -> None:
    def said(standing: Standing, failure: str = "") -> str:
        refusal = step(standing, failure=failure, waited_s=PATIENCE_S)
        assert isinstance(refusal, Refuse)
        assert "no leader" in refusal.reason and "Nothing was changed" in refusal.reason
        return refusal.reason

    assert "10.0.0.1:2377" in said(FOLLOWER) and "connection refused" in said(FOLLOWER, "connection refused")
    assert "none has been elected" in said(ALONE)
    assert "etcd" in said(Standing(leading=False, etcd_answers=False))


@given(st.lists(addresses, min_size=3, max_size=3), st.integers(0, 2), st.integers(0, 2))
def test_no_request_goes_in_circles_whatever_managers_believe(beliefs: list[str], asked: int, leading: int) -> None:
    """Any manager may believe any to lead, itself too; one really does, or another, or none that is believed in."""
    names = ["10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377"]
    at, hops = asked, 0
    while True:
        believed = beliefs[at] if beliefs[at] != names[at] else ""
        decided = step(Standing(leading=at == leading, leader=believed), passed_on=hops > 0)
        match decided:
            case PassOn(leader):
                at, hops = names.index(leader), hops + 1
                assert hops == 1
            case Serve():
                assert at == leading
                return
            case Wait() | Refuse():
                return
            case _:
                assert_never(decided)
