"""What is answered of many nodes' answers."""

from __future__ import annotations

import pytest

from swarmlet.errors import NotFound
from swarmlet.model.node import Node
from swarmlet_manager.fleet.client import Answer, NodeError, first_found

NODE = Node(id="n")


def answers(*said: tuple[int, str]) -> list[Answer]:
    return [Answer(NODE, status, body) for status, body in said]


def test_the_refusal_of_the_node_that_knows_most_is_shown() -> None:
    unknown = "No such image: web:latest"
    assert first_found(answers((404, unknown), (200, "found")), "image", "web").body == "found"
    with pytest.raises(NodeError, match="in use"):
        first_found(answers((404, unknown), (404, "network app not found"), (409, "in use")), "image", "web")
    for said in ([unknown, "network app not found"], ["network app not found", unknown]):
        with pytest.raises(NotFound, match=r"^network app not found$"):
            first_found(answers(*((404, text) for text in said)), "image", "web")
    with pytest.raises(NotFound, match=r"^No such image: web:latest$"):
        first_found(answers((404, unknown), (404, unknown)), "image", "web")
    with pytest.raises(NotFound, match=r"^No such image: web$"):
        first_found([], "image", "web")
