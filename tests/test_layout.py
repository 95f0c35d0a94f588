"""The tests themselves, and what the documentation says of the files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Folders of the repository that documents name paths below.
FOLDERS = ("agent/swarmlet_agent", "manager/swarmlet_manager", "swarmlet", "tests", "benchmarks", "ansible", "docs")


def test_modules_of_tests_have_names_of_their_own() -> None:
    """Folders of tests are on the import path side by side: of two modules of one name only the first is ever found."""
    names = Counter(file.stem for file in Path(__file__).parent.rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= {"__init__", "conftest"}


def test_documents_name_only_files_that_are_there() -> None:
    """Paths in back quotes: from a folder of the repository, or the end of a Python file's path."""
    modules = [str(file) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    wrong = []
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for named in re.findall(r"`([\w./{},-]+)`", document.read_text()):
            for path in _spelled_out(named):
                if path.endswith(".py"):
                    there = any(module.endswith(f"/{path}") for module in modules)
                else:
                    there = not path.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or any(ROOT.glob(f"{path}*"))
                if not there:
                    wrong.append(f"{document.relative_to(ROOT)}: {path}")
    assert wrong == []


def _spelled_out(path: str) -> list[str]:
    """`{a,b}/c` names a/c and b/c."""
    found = re.search(r"\{([^{}]*)\}", path)
    if found is None:
        return [path]
    ends = (path[: found.start()] + part + path[found.end() :] for part in found[1].split(","))
    return [each for end in ends for each in _spelled_out(end)]
