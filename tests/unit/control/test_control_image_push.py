"""Which node of a cluster pushes which tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_manager.api.routes.images import merged_names, share_out, split_tag, tags_of


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("busybox", ("busybox", "")),
        ("busybox:1", ("busybox", ":1")),
        ("reg:5000/team/app", ("reg:5000/team/app", "")),
        ("reg:5000/team/app:1", ("reg:5000/team/app", ":1")),
        ("reg:5000/app@sha256:00", ("reg:5000/app", "@sha256:00")),
        ("reg:5000/app:1@sha256:00", ("reg:5000/app", ":1@sha256:00")),
    ],
)
def test_a_registrys_port_is_not_a_tag(name: str, parts: tuple[str, str]) -> None:
    assert split_tag(name) == parts


def test_tags_are_those_of_the_repository_however_it_is_written() -> None:
    listed = [{"RepoTags": ["app:1", "reg:5000/app:2"]}, {"RepoTags": None}, {"RepoTags": ["app:3", "apple:4"]}]
    assert tags_of(listed, "app") == tags_of(listed, "docker.io/library/app") == {"1", "3"}
    assert tags_of(listed, "reg:5000/app") == {"2"}


@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(1, 9).map(str)), max_size=4))
def test_every_tag_is_pushed_once_by_a_node_that_has_it(tags: dict[str, set[str]]) -> None:
    shares = share_out(tags)
    pushed = [tag for share in shares.values() for tag in share]
    assert sorted(pushed) == sorted(set().union(*tags.values()))
    assert all(set(share) <= tags[node] and share for node, share in shares.items())


def test_a_node_that_has_all_pushes_all() -> None:
    assert share_out({"a": {"1"}, "b": {"1", "2"}, "c": {"2"}}) == {"b": ["1", "2"]}


def test_an_image_that_is_nameless_on_one_node_has_the_names_of_the_others() -> None:
    none = ["<none>:<none>"]
    assert merged_names(none, ["app:1"]) == merged_names(["app:1"], none) == merged_names(None, ["app:1"]) == ["app:1"]
    assert merged_names(none, none) == none and merged_names(None, []) == []
