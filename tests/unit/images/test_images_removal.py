"""What removing and pruning do to an image, its names, and the images that it was made on: dockerd's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import Conflict
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.removal import Removal, User, plan_parent, plan_pruning, plan_removal

_ID = "sha256:" + "12" * 32
_DIGEST = "sha256:" + "ab" * 32
_RUNNING, _STOPPED = User("c" * 64, True), User("d" * 64, False)


def names(*written: str) -> list[Reference]:
    return [parse_reference(name) for name in written]


def test_the_last_name_takes_the_image_along_and_others_do_not() -> None:
    two = names("a:1", "b:1")

    assert not plan_removal(_ID, two, two[0], [], force=False, has_children=False).delete
    assert plan_removal(_ID, two[:1], two[0], [], force=False, has_children=False).delete
    with_digest = names("a:1", f"a@{_DIGEST}")
    assert plan_removal(_ID, with_digest, with_digest[0], [], force=False, has_children=False) == plan_removal(
        _ID, with_digest, None, [], force=False, has_children=False
    )
    assert plan_removal(_ID, two, None, [], force=True, has_children=False).untag == tuple(two)


@pytest.mark.parametrize(
    ("named", "users", "force", "words"),
    [
        (
            "a:1",
            [_STOPPED],
            False,
            'unable to remove repository reference "a:1" (must force) - container dddddddddddd is using '
            "its referenced image 121212121212",
        ),
        (
            "",
            [_STOPPED],
            False,
            "unable to delete 121212121212 (must be forced) - image is being used by stopped container dddddddddddd",
        ),
        ("", [_STOPPED, _RUNNING], False, "(cannot be forced) - image is being used by running container cccccccccccc"),
        (
            "",
            [_RUNNING],
            True,
            "unable to delete 121212121212 (cannot be forced) - image is being used by running container",
        ),
    ],
)
def test_images_in_use_are_kept_with_dockers_words(named: str, users: list[User], force: bool, words: str) -> None:
    ref = parse_reference(named) if named else None
    with pytest.raises(Conflict) as refused:
        plan_removal(_ID, names("a:1"), ref, users, force=force, has_children=False)
    assert words in str(refused.value)


def test_several_repositories_need_force() -> None:
    with pytest.raises(Conflict, match=r"\(must be forced\) - image is referenced in multiple repositories"):
        plan_removal(_ID, names("a:1", "b:1"), None, [], force=False, has_children=False)


_name_sets = st.lists(
    st.sampled_from(names("a:1", "a:2", "b:1", f"a@{_DIGEST}", f"b@{_DIGEST}")), unique=True, max_size=5
)


@given(
    known=_name_sets,
    pick=st.integers(0, 9),
    users=st.lists(st.sampled_from([_RUNNING, _STOPPED]), max_size=2),
    force=st.booleans(), has_children=st.booleans(),
)
def test_a_removal_takes_no_image_from_a_running_container_or_from_another_image(
    known: list[Reference], pick: int, users: list[User], force: bool, has_children: bool
) -> None:
    named = known[pick] if pick < len(known) else None
    try:
        plan = plan_removal(_ID, known, named, users, force=force, has_children=has_children)
    except Conflict:
        return
    assert set(plan.untag) <= set(known)
    if plan.delete:
        assert set(plan.untag) == set(known)
        assert not any(user.running for user in users)
        assert not has_children
        assert force or not users


# images made on others


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("users", [[], [_STOPPED], [_RUNNING]])
@pytest.mark.parametrize("known", [[], ["a:1"], ["a:1", "b:1"]])
def test_no_force_helps_against_children_of_an_image_named_by_its_id(
    known: list[str], users: list[User], force: bool
) -> None:
    with pytest.raises(Conflict) as refused:
        plan_removal(_ID, names(*known), None, users, force=force, has_children=True)

    assert str(refused.value) == (
        "conflict: unable to delete 121212121212 (cannot be forced) - image has dependent child images"
    )


@pytest.mark.parametrize("force", [False, True])
def test_the_last_name_of_an_image_with_children_goes_and_the_image_stays(force: bool) -> None:
    last = names("a:1")

    assert plan_removal(_ID, last, last[0], [], force=force, has_children=True) == Removal(tuple(last), delete=False)


def test_an_image_in_use_tells_what_no_force_helps_against_first() -> None:
    with pytest.raises(Conflict, match="running container"):
        plan_removal(_ID, names("a:1", "b:1"), None, [_RUNNING], force=False, has_children=False)
    with pytest.raises(Conflict, match="multiple repositories"):
        plan_removal(_ID, names("a:1", "b:1"), None, [_STOPPED], force=False, has_children=False)


def test_what_an_image_was_made_on_goes_with_it_if_it_is_there_for_nothing_else() -> None:
    assert plan_parent([], [], has_children=False) == Removal((), delete=True)
    assert plan_parent(names("a:1"), [], has_children=False) is None
    assert plan_parent(names(f"a@{_DIGEST}"), [], has_children=False) is None
    assert plan_parent([], [_STOPPED], has_children=False) is None
    assert plan_parent([], [], has_children=True) is None


def test_pruning_takes_names_from_what_others_were_made_on_and_leaves_what_is_used() -> None:
    two = names("a:1", "b:1")

    assert plan_pruning(two, [], has_children=False) == Removal(tuple(two), delete=True)
    assert plan_pruning([], [], has_children=False) == Removal((), delete=True)
    assert plan_pruning(two, [], has_children=True) == Removal(tuple(two), delete=False)
    assert plan_pruning([], [], has_children=True) is None
    assert plan_pruning(two, [_STOPPED], has_children=False) is None
