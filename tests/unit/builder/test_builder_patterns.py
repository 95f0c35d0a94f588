""".dockerignore and the wildcards of COPY."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.patterns import has_wildcards, parse_ignore
from swarmlet_agent.images.globs import compile_pattern


@pytest.mark.parametrize(("rules", "out", "kept"), [
    ("*.log", ["a.log"], ["sub/a.log", "log"]),
    ("**/*.log", ["a.log", "a/b/c.log"], ["a.logs"]),
    ("docs", ["docs", "docs/a/b"], ["mydocs", "a/docs"]),
    ("/docs/", ["docs/x"], ["x/docs"]),
    ("**", ["a", "a/b"], []),
    ("*\n!keep", ["a"], ["keep", "keep/below"]),
    ("docs\n!docs/*.md\ndocs/secret.md", ["docs/x", "docs/secret.md"], ["docs/a.md"]),
    ("a?c\n[x-z]1\n[^a]2", ["abc", "y1", "b2"], ["a/c", "w1", "a2"]),
    ("# comment\n\n  spaced  ", ["spaced"], ["# comment", ""]),
    ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "b/a/z"]),
    ("a/../b", ["b"], ["a"]),
    (r"a\*b", ["a*b"], ["axb"]),
    (".", [], ["a"]),
    ("**/temp*", ["temp", "x/temporary/file"], ["x/atemp"]),
])
def test_rules_say_what_is_out(rules: str, out: list[str], kept: list[str]) -> None:
    ignore = parse_ignore(rules)
    assert [path for path in out if not ignore.matches(path)] == []
    assert [path for path in kept if ignore.matches(path)] == []


@pytest.mark.parametrize("rules", ["[", "[a", "a\\", "[]", "[-a]", "!"])
def test_a_pattern_that_is_none_is_refused(rules: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_ignore(rules)


NAMES = st.text(st.sampled_from("ab.*?"), min_size=1, max_size=6)


@given(pattern=NAMES, name=st.text(st.sampled_from("ab."), min_size=1, max_size=6))
def test_simple_wildcards_are_those_of_the_shell(pattern: str, name: str) -> None:
    assert bool(compile_pattern(pattern).fullmatch(name)) == fnmatch.fnmatchcase(name, pattern)
    assert has_wildcards(pattern) == any(character in pattern for character in "*?")


@given(st.lists(st.text(st.sampled_from("ab*!/?.[]-^\\ #"), max_size=8), max_size=6), NAMES)
def test_any_rules_are_rules_or_refused(rows: list[str], path: str) -> None:
    try:
        ignore = parse_ignore("\n".join(rows))
    except InvalidArgument:
        return
    if not ignore.has_exceptions and ignore.matches(path):
        assert ignore.matches(f"{path}/below")


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_an_exception_for_everything_at_the_end_lets_everything_in(rows: list[str]) -> None:
    ignore = parse_ignore("\n".join([*rows, "!**"]))
    assert not any(ignore.matches(path) for path in ("a", "b/a", "a.b/a/b"))
