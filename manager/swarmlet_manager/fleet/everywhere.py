"""Changes that are made on every node, or on none."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any
from urllib.parse import quote

from swarmlet.errors import Unavailable
from swarmlet_manager.fleet.client import Answer, Fleet, NodeError

#: A node may take so long for a change.
CHANGE_S = 60.0


async def create_everywhere(
    fleet: Fleet, kind: str, path_qs: str, body: Any, *, already: Container[str] = ()
) -> Any:
    """Create an object on every node that takes work; if one refuses, the others are undone and its refusal is the
    answer. kind: "networks" or "volumes"; already: ids of the nodes where it was before, and stays. The first node's
    answer. NodeError, Unavailable."""
    answers = await fleet.ask_all(fleet.schedulable(), "POST", path_qs, json=body, timeout_s=CHANGE_S)
    refused = [answer for answer in answers if answer.status >= 400]
    made = [answer for answer in answers if answer.status < 400]
    if refused:
        for answer in (answer for answer in made if answer.node.id not in already):
            ident = quote(str(answer.body.get("Id") or answer.body.get("Name")), safe="")
            await fleet.ask_all([answer.node], "DELETE", f"/{kind}/{ident}")
        raise NodeError(refused[0].status, f"{refused[0].node.description.hostname}: {refused[0].body}")
    if not made:
        raise Unavailable("no node is ready and active")
    return made[0].body


def raise_refusal(answers: Iterable[Answer]) -> None:
    """NodeError for the first that refuses, other than because it has no such thing (404)."""
    for answer in answers:
        if answer.status >= 400 and answer.status != 404:
            raise NodeError(answer.status, f"{answer.node.description.hostname}: {answer.body}")
