from __future__ import annotations

import pytest
from decide_make import make_node
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_manager.decide.constraints import Constraint, matches, matches_all, parse

NODE = make_node("abc", labels={"zone": "East", "Zone": "other"}, addr="10.1.2.3")
words = st.from_regex(r"\A[a-z][a-z0-9_.]{1,12}\Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node.id == abc", True),
        ("node.id==ABC", True),
        ("node.id != abc", False),
        ("node.hostname == host-abc", True),
        ("node.role == worker", True),
        ("node.role==manager", False),
        ("NODE.ROLE == Worker", True),
        ("node.platform.os == linux", True),
        ("node.platform.arch == x86_64", True),
        ("node.platform.arch == amd64", False),
        ("node.labels.zone == east", True),
        ("Node.Labels.Zone == other", True),
        ("node.labels.none != x", True),
        ("node.labels.none == x", False),
        ("engine.labels.storage != ssd", True),
        ("node.ip == 10.1.2.3", True),
        ("node.ip == 10.1.0.0/16", True),
        ("node.ip != 10.1.0.0/16", False),
        ("node.ip == not-an-address", False),
        ("node.ip != not-an-address", False),
        ("unknown.key == x", False),
        ("unknown.key != x", False),
    ],
)
def test_a_constraint_says_of_a_node_what_swarmkit_says(text: str, expected: bool) -> None:
    assert matches(parse(text), NODE) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node.role", "constraint expected one operator from ==, !="),
        ("node.role = worker", "constraint expected one operator from ==, !="),
        ("node role == x", "key 'node role' is invalid"),
        ("== x", "key '' is invalid"),
        ("node.role ==", "value '' is invalid"),
        ("node.role == w;rker", "value 'w;rker' is invalid"),
    ],
)
def test_an_unreadable_constraint_is_refused_in_swarmkits_words(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as err:
        parse(text)
    assert str(err.value) == f"rpc error: code = Unknown desc = {message}"


@given(key=words, value=words, equal=st.booleans())
def test_a_written_constraint_reads_back(key: str, value: str, equal: bool) -> None:
    text = f"node.labels.{key} {'==' if equal else '!='} {value}"

    assert parse(text) == Constraint(f"node.labels.{key}", equal, value)


@given(key=words, value=words, actual=words)
def test_equal_and_unequal_are_opposites_on_labels(key: str, value: str, actual: str) -> None:
    node = make_node(labels={key: actual})
    equal, unequal = parse(f"node.labels.{key}=={value}"), parse(f"node.labels.{key}!={value}")

    assert matches(equal, node) != matches(unequal, node)
    assert not matches_all((equal, unequal), node)
