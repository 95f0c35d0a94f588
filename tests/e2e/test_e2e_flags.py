"""docs/flags.md has every flag that the stock client knows."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/flags.md"


def flags_of(command: str) -> set[str]:
    """`--flag` of each line of the client's help; without an engine it shows those for every system."""
    env = os.environ | {"DOCKER_HOST": "unix:///nonexistent"}
    text = subprocess.run(["docker", command, "--help"], capture_output=True, text=True, check=True, env=env).stdout
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", text, re.MULTILINE))


def table_of(title: str) -> set[str]:
    """The flags in the first column of a section."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {flag for row in rows for flag in re.findall(r"--[a-z0-9-]+", row)}


@pytest.mark.parametrize(
    ("command", "title"),
    [
        ("run", "docker run, docker create"), ("create", "docker run, docker create"), ("update", "docker update"),
        ("exec", "docker exec"),
    ],
)  # fmt: skip
def test_every_flag_of_the_client_is_in_the_table(command: str, title: str) -> None:
    known = flags_of(command)
    assert len(known) > 8, known
    assert known - table_of(title) == set()
    if command != "create":  # which lacks what only a run has
        assert table_of(title) - known - {"--help"} == set()
