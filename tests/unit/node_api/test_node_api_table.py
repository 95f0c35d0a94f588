"""docs/api.md tells of every call what the routers really do with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from api_table import View, row, rows, state, views

from swarmlet.engine_api.guard import for_managers
from swarmlet.engine_api.router import Router
from swarmlet_agent.api.routes.swarm import SwarmRoutes

PAGE = Path(__file__).parents[3] / "docs/api.md"
#: The Engine API's definition 1.50 has 107 operations; checkpoints, build/cancel and grpc are not in it.
OPERATIONS = 107 + 5


@pytest.fixture(scope="module")
def both() -> tuple[View, View]:
    return views()


def test_every_call_is_in_the_table_once() -> None:
    calls = [(method, path) for method, path, *_ in rows(PAGE.read_text())]

    assert len(calls) == len(set(calls)) == OPERATIONS


def test_the_table_says_what_the_routers_do(both: tuple[View, View]) -> None:
    told = rows(PAGE.read_text())

    wrong = [
        row(method, path, operation, *both) for method, path, operation, *states in told
        if states != [state(view, method, path) for view in both]
    ]  # fmt: skip
    assert not wrong, "bring the page up to date: python tests/unit/node_api/api_table.py"


@pytest.mark.parametrize("number", [0, 1], ids=["node", "cluster"])
def test_no_route_is_left_out_of_the_table(both: tuple[View, View], number: int) -> None:
    router = Router(both[number])
    found = {
        hit[0] for method, path, *_ in rows(PAGE.read_text())
        if (hit := router.find(method, re.sub(r"\{\w+\}", "x", path))) is not None
    }  # fmt: skip

    untold = [f"{each.method} {each.template}" for each in both[number] if each.handler not in found]
    assert not untold


def test_calls_that_change_the_cluster_are_the_managers(both: tuple[View, View]) -> None:
    router = Router(both[0])
    for path in ("/services/create", "/swarm/update", "/secrets/create"):
        hit = router.find("POST", path)
        assert hit is not None and getattr(hit[0], "__func__", None) is SwarmRoutes.pass_on


def test_what_is_open_to_managers_only_has_no_way_round_the_check(both: tuple[View, View]) -> None:
    assert any(each.quick for each in both[1])
    assert not any(each.quick for each in for_managers(both[1]))
