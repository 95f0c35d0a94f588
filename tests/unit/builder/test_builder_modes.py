"""--chmod, octal and symbolic; checked against chmod(1) itself where that knows the same rules."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.modes import parse_mode

modes = st.integers(0, 0o7777)
who = st.text("ugoa", max_size=3)
# chmod(1) judges "X" by what its earlier clauses have left, BuildKit by what was there: so only in the first.
clause = st.builds(
    lambda who, operator, letters: who + operator + letters, who, st.sampled_from("+-="),
    st.one_of(st.text("rwx", max_size=3), st.sampled_from("ugo")),
)


def of(text: str, before: int, *, is_folder: bool = False) -> int:
    mode = parse_mode(text)
    assert mode is not None
    return mode.of(before, is_folder=is_folder)


@pytest.mark.parametrize(("text", "before", "after"), [
    ("644", 0o4755, 0o644), ("0755", 0, 0o755), ("7777", 0, 0o7777),
    ("u=rwX,go=rX", 0o600, 0o644), ("u=rwX,go=rX", 0o700, 0o755), ("a+x", 0o644, 0o755), ("go-w", 0o666, 0o644),
    ("+x", 0o600, 0o711), ("+w", 0o444, 0o644), ("=", 0o777, 0), ("go=", 0o755, 0o700), ("go=u-w", 0o750, 0o755),
    ("u+s,+t", 0o755, 0o5755), ("o+t", 0o755, 0o755), ("u+x-w", 0o600, 0o500), ("a-x,a+X", 0o755, 0o755),
])
def test_modes_of_files(text: str, before: int, after: int) -> None:
    assert oct(of(text, before)) == oct(after)


def test_a_folder_can_be_searched_whatever_it_had() -> None:
    assert of("u=rwX,go=rX", 0o600, is_folder=True) == 0o755


@pytest.mark.parametrize("text", ["8", "77777", "u", "u=rwz", "u+x,", ",u+x", "rwx", "-", "+-8", "u=x go=r", "0o755"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    if text == "-":
        assert of(text, 0o755) == 0o755  # takes away nothing
        return
    with pytest.raises(InvalidArgument, match="invalid chmod parameter"):
        parse_mode(text)


def test_no_mode_is_none() -> None:
    assert parse_mode("") is None


@settings(max_examples=40, deadline=None)
@given(before=modes, clauses=st.lists(clause, min_size=1, max_size=3), folder=st.booleans(), first=st.booleans())
def test_chmod_would_do_the_same(before: int, clauses: list[str], folder: bool, first: bool) -> None:
    text = ",".join([*(["u=rwX,go=rX"] if first and not clauses[0].startswith("-") else []), *clauses])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "x"
        place.mkdir() if folder else place.touch()
        # chmod(1) keeps a folder's set-id bits against "=", and counts the sticky bit to "o"; BuildKit does neither.
        before &= 0o777 if folder else 0o6777
        os.chmod(place, before)
        subprocess.run(["chmod", "--", text, str(place)], check=True, umask=0o022)
        after = stat.S_IMODE(os.stat(place).st_mode)
    assert oct(of(text, before, is_folder=folder)) == oct(after)


@given(before=modes, text=st.lists(clause, min_size=1, max_size=4).map(",".join), folder=st.booleans())
def test_a_mode_stays_a_mode_and_a_set_one_is_reached_at_once(before: int, text: str, folder: bool) -> None:
    after = of(text, before, is_folder=folder)
    assert 0 <= after <= 0o7777
    if not set(text) & set("-+") and not any(set(each.partition("=")[2]) & set("ugo") for each in text.split(",")):
        assert of(text, after, is_folder=folder) == after
