"""Placement constraints: `key == value` and `key != value` over what is known of a node.

Rules and words are SwarmKit's (manager/constraint): keys and values compare without regard to case, an absent
label is the empty string, an unknown key matches no node.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument, rpc_words
from swarmlet.model.node import Node

_OPERATORS = ("==", "!=")
_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE)
NODE_LABELS = "node.labels."
ENGINE_LABELS = "engine.labels."
#: Keys whose value differs on (almost) every node: of no use for grouping nodes.
PER_NODE_KEYS = frozenset({"node.id", "node.hostname", "node.ip"})


@dataclass(frozen=True, slots=True)
class Constraint:
    """key is folded to lower case except for the label's own name; `equal` is False for `!=`."""

    key: str
    equal: bool
    value: str


def parse(text: str) -> Constraint:
    """One expression. InvalidArgument names the part that is wrong."""
    for operator in _OPERATORS:
        key, found, value = text.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise InvalidArgument(rpc_words(f"key '{key}' is invalid", "Unknown"))
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(rpc_words(f"value '{value}' is invalid", "Unknown"))
        return Constraint(_fold(key), operator == "==", value)
    raise InvalidArgument(rpc_words(f"constraint expected one operator from {', '.join(_OPERATORS)}", "Unknown"))


def parse_all(texts: Iterable[str]) -> tuple[Constraint, ...]:
    return tuple(parse(text) for text in texts)


def matches(constraint: Constraint, node: Node) -> bool:
    """Does this node satisfy the constraint?"""
    if constraint.key == "node.ip":
        return _matches_ip(constraint, node.addr)
    actual = value_of(constraint.key, node)
    if actual is None:
        return False
    return (actual.casefold() == constraint.value.casefold()) == constraint.equal


def matches_all(constraints: Iterable[Constraint], node: Node) -> bool:
    return all(matches(constraint, node) for constraint in constraints)


def value_of(key: str, node: Node) -> str | None:
    """What a (folded) key stands for on a node; "" for an absent label, None for a key that does not exist."""
    if key.startswith(NODE_LABELS):
        return node.spec.labels.get(key.removeprefix(NODE_LABELS), "")
    if key.startswith(ENGINE_LABELS):
        return node.description.engine.labels.get(key.removeprefix(ENGINE_LABELS), "")
    match key:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.description.hostname
        case "node.ip":
            return node.addr
        case "node.role":
            return node.spec.role.value
        case "node.platform.os":
            return node.description.platform.os
        case "node.platform.arch":
            return node.description.platform.architecture
    return None


def _fold(key: str) -> str:
    """Lower case, save for a label's name: labels are told apart by case."""
    lowered = key.lower()
    for prefix in (NODE_LABELS, ENGINE_LABELS):
        if lowered.startswith(prefix) and len(key) > len(prefix):
            return prefix + key[len(prefix) :]
    return lowered


def _matches_ip(constraint: Constraint, addr: str) -> bool:
    """value is an address or a network; anything else matches no node, nor does a node without an address."""
    try:
        wanted = ipaddress.ip_network(constraint.value, strict=False)
        actual = ipaddress.ip_address(addr)
    except ValueError:
        return False
    return (actual in wanted) == constraint.equal
