"""docs/flags.md tells of every field of a container's configuration that the model has."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from swarmlet.model.container import ContainerConfig, HostConfig

PAGE = Path(__file__).parents[3] / "docs/flags.md"
STATES = {"works", "kernel", "refused", "client"}


def rows() -> list[list[str]]:
    """Rows of the tables of four columns (flag, field, state, remarks), or of three (flag or field, state, remarks)."""
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (`--|Config\.|HostConfig\.)", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("kind", [ContainerConfig, HostConfig])
def test_every_field_has_its_place(kind: type[msgspec.Struct]) -> None:
    told = set(re.findall(r"\w+", " ".join(cell for row in rows() for cell in row[:2])))
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    short = {"AttachStdin", "AttachStdout", "AttachStderr"}  # written as one
    assert fields - told - short == set()


def test_every_row_says_one_of_four_states() -> None:
    for row in rows():
        assert row[-2] in STATES, row
