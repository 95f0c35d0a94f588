"""Reports reach the manager at least once, newest last, whatever is lost on the way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmlet.model.states import TaskState
from swarmlet.model.task import TaskStatus
from swarmlet_agent.session.buffer import MAX_REPORTS, StatusBuffer

STATES = [TaskState.ACCEPTED, TaskState.READY, TaskState.RUNNING, TaskState.FAILED]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from("abc")),
        st.tuples(st.sampled_from(["send", "ack", "lose session", "lose frame"]), st.just("")),
    )
)


@given(actions)
def test_after_the_last_session_the_manager_knows_the_newest_of_every_task(steps: list[tuple[str, str]]) -> None:
    buffer = StatusBuffer()
    newest: dict[str, TaskState] = {}
    stored: dict[str, TaskState] = {}
    unacknowledged = 0

    def send(*, arrives: bool) -> int:
        update = buffer.take()
        if update is None:
            return 0
        if arrives:
            for report in update.reports:
                stored[report.task_id] = max(stored.get(report.task_id, TaskState.NEW), report.status.state)
        return update.seq if arrives else 0

    for action, ident in steps:
        match action:
            case "report":
                state = next((one for one in STATES if one > newest.get(ident, TaskState.NEW)), None)
                if state is not None:
                    newest[ident] = state
                    buffer.report(ident, TaskStatus(state=state))
            case "send":
                unacknowledged = send(arrives=True) or unacknowledged
            case "ack":
                buffer.acknowledge(unacknowledged)
            case "lose session":
                buffer.session_lost()
                unacknowledged = 0
            case "lose frame":  # a frame that does not arrive ends its session
                send(arrives=False)
                buffer.session_lost()
                unacknowledged = 0
    buffer.session_lost()
    while (last := send(arrives=True)) != 0:
        buffer.acknowledge(last)
    assert stored == newest
    assert len(buffer) == 0


def test_one_frame_holds_a_bounded_number_of_reports() -> None:
    buffer = StatusBuffer()
    for number in range(MAX_REPORTS + 1):
        buffer.report(str(number), TaskStatus())
    first, second = buffer.take(), buffer.take()
    assert first is not None and second is not None
    assert (len(first.reports), len(second.reports)) == (MAX_REPORTS, 1)


def test_a_forgotten_task_is_told_of_no_more() -> None:
    buffer = StatusBuffer()
    buffer.report("a", TaskStatus())
    buffer.take()
    buffer.report("b", TaskStatus())
    buffer.forget("a")
    buffer.forget("b")
    buffer.session_lost()
    assert buffer.take() is None
