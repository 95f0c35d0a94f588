"""The tests themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_modules_of_tests_have_names_of_their_own() -> None:
    """Folders of tests are on the import path side by side: of two modules of one name only the first is ever found."""
    names = Counter(file.stem for file in Path(__file__).parent.rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= {"__init__", "conftest"}
