"""The dispatcher's pieces by themselves: feeds, liveness, inventories, sealing, names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, NotFound
from swarmlet.model.service import TaskSpec
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task, TaskStatus
from swarmlet.wire.messages import Assignments, ContainerRef, Inventory
from swarmlet_manager.ca.seal import new_key, seal, unseal
from swarmlet_manager.control.naming import new_name
from swarmlet_manager.dispatch.feed import Feed, belongs
from swarmlet_manager.dispatch.inventory import Inventories
from swarmlet_manager.dispatch.liveness import Liveness
from swarmlet_manager.state import Delete, Put, State

SPEC = TaskSpec()


def task(ident: str, state: TaskState, desired: TaskState = TaskState.RUNNING, node: str = "n") -> Task:
    return Task(
        id=ident, service_id="s", node_id=node, spec=SPEC, desired_state=desired, status=TaskStatus(state=state)
    )


ops = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none() | st.sampled_from(list(TaskState)),
        st.sampled_from([TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]),
        st.sampled_from(["n", "other", ""]),
        st.booleans(),
    )
)


@given(ops)
def test_an_agent_that_follows_its_feed_always_knows_what_the_store_says(
    steps: list[tuple[str, TaskState | None, TaskState, str, bool]],
) -> None:
    state, feed = State(), Feed("n")
    known: dict[str, TaskState] = {}
    for ident, observed, desired, node, send in [*steps, ("a", None, TaskState.RUNNING, "n", True)]:
        if observed is None:
            if ident in state.tasks:
                state.apply(Delete(state.tasks[ident]))
        else:
            state.apply(Put(task(ident, observed, desired, node)))
        feed.note(ident)
        if send:
            full, tasks, removed = feed.take(state)
            known = {} if full else {key: value for key, value in known.items() if key not in removed}
            known.update({one.id: one.desired_state for one in tasks})
    wanted = {one.id: one.desired_state for one in state.tasks.values() if belongs(one, "n")}
    assert known == wanted
    assert feed.take(state) == (False, [], [])


def test_an_agents_own_reports_are_not_sent_back_to_it() -> None:
    state, feed = State(), Feed("n")
    state.apply(Put(task("a", TaskState.ASSIGNED)))
    assert feed.take(state)[0] is True
    state.apply(Put(task("a", TaskState.RUNNING)))
    feed.note("a")
    assert feed.take(state) == (False, [], [])


def test_assignments_never_show_credentials_when_printed() -> None:
    assert "secret" not in repr(Assignments(term=1, seq=1, full=True, registry_auth={"s": "secret"}))


def test_a_node_is_silent_after_the_grace_and_one_never_heard_of_gets_it_first() -> None:
    alive = Liveness()
    alive.beat("a", 10, 3)
    assert alive.silent(["a", "b"], 12, 3) == []
    assert alive.silent(["a", "b"], 13.5, 3) == ["a"]
    assert alive.silent(["a", "b"], 15.5, 3) == ["a", "b"]
    alive.grant(["a", "b"], 20)
    assert alive.silent(["a", "b"], 22.9, 3) == []


@given(st.floats(0, 100), st.floats(0.1, 20), st.floats(0.1, 20), st.floats(0, 100))
def test_a_silence_is_measured_by_the_longer_of_what_held_then_and_what_holds_now(
    heard: float, then: float, now: float, later: float
) -> None:
    alive = Liveness()
    alive.beat("a", heard, then)
    silent = alive.silent(["a"], heard + later, now)
    assert silent == (["a"] if heard + later - heard > max(then, now) else [])


def refs(*names: str) -> tuple[ContainerRef, ...]:
    return tuple(ContainerRef(id=f"{name}-id", name=name) for name in names)


def test_a_container_is_found_by_name_id_and_unambiguous_prefix() -> None:
    inventories = Inventories()
    inventories.apply("n1", Inventory(full=True, containers=refs("web", "db")))
    inventories.apply("n2", Inventory(full=True, containers=refs("cache", "web2")))
    assert [inventories.locate(ref) for ref in ("web", "/db", "cache-id", "cach")] == ["n1", "n1", "n2", "n2"]
    with pytest.raises(Conflict, match="multiple IDs"):
        inventories.locate("we")
    for nobody in ("nope", "", "/"):
        with pytest.raises(NotFound):
            inventories.locate(nobody)


def test_a_name_on_two_nodes_needs_an_id() -> None:
    inventories = Inventories()
    inventories.apply("n1", Inventory(full=True, containers=(ContainerRef(id="1", name="x"),)))
    inventories.apply("n2", Inventory(full=True, containers=(ContainerRef(id="2", name="x"),)))
    with pytest.raises(Conflict, match="2 nodes"):
        inventories.locate("x")
    assert inventories.locate("2") == "n2"


def test_an_increment_adds_renames_and_removes_and_a_full_set_replaces() -> None:
    inventories = Inventories()
    inventories.apply("n", Inventory(full=True, containers=refs("a", "b")))
    inventories.apply("n", Inventory(full=False, containers=(ContainerRef(id="a-id", name="c"),), removed=("b-id",)))
    assert dict(inventories.of_node("n")) == {"a-id": "c"}
    inventories.apply("n", Inventory(full=True))
    assert not inventories.of_node("n")


@given(st.text(), st.text())
def test_what_was_sealed_opens_only_in_its_own_place(text: str, about: str) -> None:
    key = new_key()
    sealed = seal(key, text, about)
    assert unseal(key, sealed, about) == text
    if text:
        with pytest.raises(Internal):
            unseal(key, sealed, about + "x")
        with pytest.raises(Internal):
            unseal(new_key(), sealed, about)


def test_made_up_names_are_free_and_valid() -> None:
    taken: set[str] = set()
    rng = random.Random(1)
    for _ in range(3000):
        name = new_name(taken.__contains__, rng)
        assert name not in taken and name.replace("_", "").isalnum()
        taken.add(name)


def test_orphaned_tasks_are_no_longer_the_nodes() -> None:
    one = task("a", TaskState.ORPHANED)
    assert not belongs(one, "n")
    assert belongs(replace(one, status=TaskStatus(state=TaskState.FAILED)), "n")
