"""The exit codes of containers that have removed themselves are told to those who ask a little too late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.engine.container import WaitResult
from swarmlet_agent.engine.waiters import LATE_NS, LATE_RESULTS, LateResults


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, LATE_NS)), max_size=400))
def test_what_is_told_is_young_and_never_another_containers(ends: list[tuple[int, int]]) -> None:
    late, now, last = LateResults(), 0, dict[str, tuple[int, int]]()
    for code, pause in ends:
        now += pause
        late.note(f"c{code}", WaitResult(exit_code=code), now)
        last[f"c{code}"] = (code, now)
    told = {ident: found for ident in last if (found := late.find(ident, now)) is not None}
    assert all(found.exit_code == last[ident][0] and now - last[ident][1] <= LATE_NS for ident, found in told.items())
    assert len(told) <= LATE_RESULTS
    assert not ends or f"c{ends[-1][0]}" in told
    assert all(late.find(ident, now + LATE_NS + 1) is None for ident in last)
