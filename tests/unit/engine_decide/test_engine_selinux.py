"""Which labels of SELinux containers get, and their mounts."""

from __future__ import annotations

from itertools import cycle
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.decide import selinux
from swarmlet_agent.decide.selinux import (
    UNCONFINED_LEVEL,
    Context,
    Labels,
    LabelWishes,
    Policy,
    choose_labels,
    free_level,
    label_of_source,
    level_of,
    options_for,
    parse_context,
    parse_policy,
    read_wishes,
    shared,
)

POLICY = Policy(
    Context("system_u", "system_r", "container_t", "s0"), Context("system_u", "object_r", "container_file_t", "s0")
)
OWN = "s0:c12,c300"
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
levels = st.from_regex(r"s[0-9](-s1[0-5])?(:c[0-9]{1,3}([.,]c[0-9]{1,3})?)?", fullmatch=True)
contexts = st.builds(Context, names, names, names, st.one_of(st.just(""), levels))


@given(context=contexts)
def test_labels_are_read_as_they_are_written(context: Context) -> None:
    assert parse_context(str(context)) == context


@pytest.mark.parametrize("text", ["", "a", "a:b", "a:b:", ":b:c", 'a:b:c",x=', "a:b:c d", "a:b:c:s0\n"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not an SELinux label"):
        parse_context(text)


def test_the_policys_file_says_what_containers_are() -> None:
    text = """
        # of containers
        ; an old comment
        process = "a_u:a_r:a_t:s0"
        content = "x:y:z:s0"
        file = "b_u:b_r:b_t"
        ro_file="c:d:e"
        nonsense
    """
    assert parse_policy(text) == Policy(Context("a_u", "a_r", "a_t", "s0"), Context("b_u", "b_r", "b_t"))
    assert parse_policy("") == parse_policy('#process = "a:b:c"') == POLICY
    with pytest.raises(InvalidArgument, match="not an SELinux label"):
        parse_policy("process = broken")


def test_words_are_read_and_the_last_one_holds() -> None:
    words = ("type:a_t", "user:u", "role:r", "level:s0:c1,c2", "filetype:f_t", "type:b_t", "disable")
    assert read_wishes(words) == LabelWishes(
        disable=True, user="u", role="r", type="b_t", level="s0:c1,c2", filetype="f_t"
    )
    assert read_wishes(()) == LabelWishes()


@pytest.mark.parametrize(
    "word",
    ["enable", "nested", "type", "type:", "types:x", "Type:x", "disable:", ':x', 'type:x",upperdir=/', "level:s0 c1"],
)
def test_a_word_that_is_not_known_is_refused(word: str) -> None:
    with pytest.raises(InvalidArgument, match="bad label option"):
        read_wishes((word,))


@given(taken=st.sets(st.integers(0, 1023), max_size=40), seed=st.integers())
def test_a_level_is_free_and_has_two_categories_in_order(taken: set[int], seed: int) -> None:
    """taken: all pairs of these categories."""
    used = {f"s0:c{low},c{high}" for low in taken for high in taken if low < high}
    level = free_level(used, Random(seed).randrange)

    assert level not in used | {UNCONFINED_LEVEL}
    low, high = (int(word.removeprefix("c")) for word in level.removeprefix("s0:").split(","))
    assert 0 <= low < high < 1024


def test_every_container_of_many_has_a_level_of_its_own() -> None:
    taken: set[str] = set()
    for _ in range(5000):
        taken.add(free_level(taken, Random(len(taken)).randrange))

    assert len(taken) == 5000


def test_a_level_that_is_taken_reserved_or_none_is_passed_over() -> None:
    picks = iter([1023, 1022, 7, 7, 2, 1, 3, 1])
    assert free_level({"s0:c1,c2"}, lambda _: next(picks)) == "s0:c1,c3"
    always = cycle([0, 1])
    with pytest.raises(Internal, match="no SELinux level is left"):
        free_level({"s0:c0,c1"}, lambda _: next(always))


def label(wishes: LabelWishes | None = None, *, privileged: bool = False, policy: Policy = POLICY) -> Labels:
    return choose_labels(policy, wishes or LabelWishes(), OWN, privileged=privileged)


def test_a_plain_container_has_the_policys_types_and_its_own_level() -> None:
    assert label() == Labels(
        process=f"system_u:system_r:container_t:{OWN}", mount=f"system_u:object_r:container_file_t:{OWN}"
    )


def test_what_a_user_asks_for_goes_where_docker_puts_it() -> None:
    wishes = LabelWishes(user="u", role="r", type="t", level="s1:c9", filetype="f")
    assert label(wishes) == Labels(process="u:r:t:s1:c9", mount="u:object_r:f:s1:c9")
    assert label(LabelWishes(type="spc_t")).mount == label().mount
    assert label(LabelWishes(filetype="f")).process == label().process


def test_without_labels_a_containers_files_still_have_one() -> None:
    disabled = label(LabelWishes(disable=True, type="t"))
    assert disabled == Labels(mount=f"system_u:object_r:container_file_t:{UNCONFINED_LEVEL}")
    assert label(privileged=True).process == label(LabelWishes(type="t"), privileged=True).process == ""


def test_a_policy_without_levels_gives_none() -> None:
    bare = Policy(Context("u", "r", "p"), Context("u", "o", "f"))
    assert label(policy=bare) == Labels(process="u:r:p", mount="u:o:f")
    assert label(LabelWishes(disable=True), policy=bare) == Labels(mount="u:o:f")
    assert shared("u:o:f") == "u:o:f" and level_of("u:o:f") == ""


@given(context=contexts)
def test_another_container_gets_the_same_label_by_the_options_for_it(context: Context) -> None:
    wishes = read_wishes([option.removeprefix("label=") for option in options_for(str(context))])
    bare = Policy(Context("x", "x", "x"), POLICY.file)

    assert choose_labels(bare, wishes, OWN, privileged=False).process == str(context)


@given(context=contexts)
def test_what_is_shared_has_no_categories(context: Context) -> None:
    once = shared(str(context))
    assert level_of(once) in ("", "s0") and shared(once) == once


@pytest.mark.parametrize(
    ("kind", "mode", "own", "wanted"),
    [
        ("bind", "", False, ""),
        ("bind", "ro", False, ""),
        ("bind", "z", False, "u:o:f:s0"),
        ("bind", "ro,z", False, "u:o:f:s0"),
        ("bind", "Z,rslave", False, "u:o:f:s0:c1,c2"),
        ("bind", "", True, "u:o:f:s0"),
        ("volume", "z", False, "u:o:f:s0"),
        ("volume", "", False, "u:o:f:s0"),
        ("volume", "ro,Z", False, "u:o:f:s0:c1,c2"),
        ("tmpfs", "", False, ""),
        ("image", "", True, ""),
    ],
)
def test_what_is_mounted_is_labelled_for_its_users(kind: str, mode: str, own: bool, wanted: str) -> None:
    assert label_of_source(kind, mode, "u:o:f:s0:c1,c2", own=own) == wanted
    assert label_of_source(kind, mode, "", own=own) == ""


def test_mount_options_have_the_label_in_quotes() -> None:
    assert selinux.with_option("size=1", "u:o:f:s0:c1,c2") == 'size=1,context="u:o:f:s0:c1,c2"'
    assert selinux.with_option("size=1", "") == "size=1"
