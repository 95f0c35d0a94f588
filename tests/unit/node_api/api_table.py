"""What both views' routers say of a call of the Engine API, in the words of docs/api.md."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import MagicMock

from swarmlet.engine_api.router import Route, Router
from swarmlet.engine_api.unsupported import Refusal, UnsupportedRoutes
from swarmlet_agent.api.routes.swarm import SwarmRoutes
from swarmlet_agent.api.routes.system import SystemRoutes
from swarmlet_agent.app import view_routes
from swarmlet_manager.api.app import cluster_routes

#: What a call meets, in the table's words.
WORKS = "works"
PASSED_ON = "the manager's, on a manager; else 503"
UNKNOWN = "there are none"
NONE = "404 page not found"

View = list[Route]


def views() -> tuple[View, View]:
    """The routes of the node view and of the cluster view, as the daemons register them."""
    anything = MagicMock()
    system = SystemRoutes(
        anything, anything, anything, anything, anything, anything, host=anything, node=anything,
    )  # fmt: skip
    node = view_routes(anything, system, SwarmRoutes(anything, Path("/run/none.sock")))
    return node, cluster_routes(anything, anything, anything, anything, anything, anything)


def state(view: View, method: str, template: str) -> str:
    """How the view answers `method template` of the API's definition."""
    found = Router(view).find(method, re.sub(r"\{\w+\}", "x", template))
    if found is None:
        return NONE
    handler, _ = found
    if isinstance(handler, Refusal):
        return f"refused: {handler.message}"
    if getattr(handler, "__func__", None) is UnsupportedRoutes.unknown_plugin:
        return UNKNOWN
    if getattr(handler, "__func__", None) is SwarmRoutes.pass_on:
        return PASSED_ON
    return WORKS


def rows(page: str) -> list[tuple[str, str, str, str, str]]:
    """(method, path, operation, node view, cluster view) of each line of the table."""
    return re.findall(r"^\| `([A-Z]+) (\S+)` \| ([^|]*) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)


def row(method: str, template: str, operation: str, node: View, cluster: View) -> str:
    shown = f"| `{method} {template}` | {operation} |"
    return f"{shown} {state(node, method, template)} | {state(cluster, method, template)} |"


if __name__ == "__main__":  # bring docs/api.md up to date: python tests/unit/node_api/api_table.py
    file = Path(__file__).parents[3] / "docs/api.md"
    page, (node, cluster) = file.read_text(), views()
    for old in rows(page):
        method, template, operation, *states = old
        before = f"| `{method} {template}` | {operation} | {states[0]} | {states[1]} |"
        page = page.replace(before, row(method, template, operation, node, cluster))
    file.write_text(page)
