"""Which of the build cache `docker builder prune` takes, and how `docker system df` shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.pruning import CACHE_MOUNT, REGULAR, Budget, Item, plan_pruning, shown

HOUR = 3600 * 10**9
NOW = 100 * HOUR
OLD = Item("0ld", REGULAR, "RUN old", 100, 1, NOW - 50 * HOUR, 1, parent="aaa")
NEW = Item("1new", REGULAR, "RUN new", 100, 1, NOW - HOUR, 2, shared=True)
KEPT = Item("2kept", REGULAR, "COPY", 100, 1, NOW - 60 * HOUR, 3, needed=True)
MOUNT = Item("3mount", CACHE_MOUNT, "cached mount /root/.cache", 300, 1, NOW - 2 * HOUR, 4)
BUSY = Item("4busy", CACHE_MOUNT, "cached mount /busy", 300, 1, NOW - 70 * HOUR, 4, in_use=True)
ALL = (OLD, NEW, KEPT, MOUNT, BUSY)


def chosen(everything: bool = False, keep: int = 0, **filters: str) -> set[str]:
    given = Filters({name.replace("_", "-"): (value,) for name, value in filters.items()})
    return {item.key for item in plan_pruning(ALL, given, everything=everything, keep_bytes=keep, now=NOW)}


def test_what_images_need_stays_unless_everything_is_to_go_and_what_runs_always() -> None:
    assert chosen() == {"0ld", "1new", "3mount"}
    assert chosen(everything=True) == {"0ld", "1new", "2kept", "3mount"}


def test_filters_choose() -> None:
    assert chosen(until="24h") == {"0ld"} == chosen(unused_for="24h")
    assert chosen(type="exec.cachemount") == {"3mount"} and chosen(type="frontend") == set()
    assert chosen(id="1n") == {"1new"} and chosen(description="cached mount") == {"3mount"}
    assert chosen(parent="aa") == {"0ld"}
    assert chosen(shared="true") == {"1new"} and chosen(private="true") == {"0ld", "3mount"}
    assert chosen(inuse="true") == set()
    assert chosen(label="a=b") == set()
    with pytest.raises(InvalidArgument, match="invalid filter 'frob'"):
        chosen(frob="x")


def test_what_may_stay_is_what_was_used_last() -> None:
    assert chosen(keep=100) == {"0ld", "3mount"}
    assert chosen(keep=400) == {"0ld"}
    assert chosen(keep=500) == set()


def steps(*used_at: int) -> list[Item]:
    """Each built on the one before, and a last one without a layer of its own."""
    made = [
        Item(f"s{number}", REGULAR, "RUN", 100, 1, at, 1, layer=f"l{number}",
             chain=frozenset(f"l{each}" for each in range(number + 1)))
        for number, at in enumerate(used_at)
    ]
    return [*made, replace(made[-1], key="label", size_bytes=0, layer="")]


def test_a_step_stays_as_long_as_one_that_is_built_on_it() -> None:
    old_first = steps(NOW - 50 * HOUR, NOW - HOUR)
    until = Filters({"until": ("24h",)})
    assert plan_pruning(old_first, until, everything=True, keep_bytes=0, now=NOW) == []
    new_first = steps(NOW - HOUR, NOW - 50 * HOUR)
    gone = {item.key for item in plan_pruning(new_first, until, everything=True, keep_bytes=0, now=NOW)}
    assert gone == {"s1", "label"}
    gone = {item.key for item in plan_pruning(old_first, Filters(), everything=True, keep_bytes=150, now=NOW)}
    assert gone == {"s1", "label"}


@given(st.lists(st.integers(1, NOW), min_size=1, max_size=5), st.integers(0, 600))
def test_what_is_shown_after_pruning_is_what_the_disk_has(used_at: list[int], keep: int) -> None:
    items = steps(*used_at)
    gone = set(plan_pruning(items, Filters(), everything=True, keep_bytes=keep, now=NOW))
    left = [item for item in items if item not in gone]
    on_disk = set().union(*(item.chain for item in left))
    assert {item.layer for item in left if item.layer} == on_disk
    assert sum(item.size_bytes for item in left) <= keep


@given(st.permutations(ALL), st.integers(0, 800), st.booleans())
def test_no_more_than_asked_for_stays(items: list[Item], keep: int, everything: bool) -> None:
    gone = plan_pruning(items, Filters(), everything=everything, keep_bytes=keep, now=NOW)
    free = [item for item in items if not item.in_use and (everything or not item.needed)]
    assert sum(item.size_bytes for item in free) - sum(item.size_bytes for item in gone) <= keep
    assert set(gone) <= set(free)


@pytest.mark.parametrize(("budget", "keep"), [
    (Budget(), 0), (Budget(reserved=300), 300), (Budget(max_used=300), 300), (Budget(reserved=400, max_used=300), 400),
    # 1,000 bytes of cache, 500 free on its disk
    (Budget(min_free=400), 1000), (Budget(min_free=700), 800), (Budget(min_free=9000), 0),
    (Budget(max_used=600, min_free=700), 600), (Budget(max_used=900, min_free=700), 800),
    (Budget(reserved=850, max_used=900, min_free=700), 850),
])
def test_a_budget_says_how_much_may_stay(budget: Budget, keep: int) -> None:
    assert budget.keep_bytes(1000, 500) == keep


def test_an_entry_is_shown_as_the_api_has_it() -> None:
    assert shown(replace(OLD, created_at=10**9)) == {
        "ID": "0ld", "Parents": ["aaa"], "Type": "regular", "Description": "RUN old", "InUse": False, "Shared": False,
        "Size": 100, "CreatedAt": "1970-01-01T00:00:01.000000000Z", "LastUsedAt": "1970-01-03T02:00:00.000000000Z",
        "UsageCount": 1,
    }
