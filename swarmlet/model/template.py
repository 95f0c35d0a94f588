"""Templates in a service's specification: `{{.Service.Name}}` and the like, resolved per task on its node.

The fields are SwarmKit's (template/context.go): .Service.ID .Service.Name, .Node.ID .Node.Hostname
.Node.Platform.OS .Node.Platform.Architecture, .Task.ID .Task.Name .Task.Slot; they are honoured in env, hostname
and mounts. Anything else a Go template could do is refused by name rather than copied into the container as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet.model.task import Task

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
#: Words of Go templates that a value may contain without being one: quoted strings print themselves.
_QUOTED = re.compile(r'"([^"\\]*)"|`([^`]*)`')


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What templates and labels may say of the node a task runs on."""

    id: str
    hostname: str
    os: str = "linux"
    architecture: str = "x86_64"


def fields_of(task: Task, node: NodeFacts) -> dict[str, str]:
    """Template field -> value. `.Task.Slot` is the node's id for global services, as in SwarmKit."""
    return {
        ".Service.ID": task.service_id,
        ".Service.Name": task.service_name,
        ".Node.ID": node.id,
        ".Node.Hostname": node.hostname,
        ".Node.Platform.OS": node.os,
        ".Node.Platform.Architecture": node.architecture,
        ".Task.ID": task.id,
        ".Task.Name": task.name,
        ".Task.Slot": str(task.slot) if task.slot else task.node_id,
    }


def expand(text: str, fields: Mapping[str, str], where: str) -> str:
    """The text with its templates resolved. InvalidArgument ("expanding env failed: …") names what cannot be."""
    if "{{" not in text:
        return text
    return _ACTION.sub(lambda match: _value(match[1], fields, where), text)


def own_hostname(task: Task, node: NodeFacts) -> str:
    """The host name that a task's container is given on this node; "" for none of its own."""
    spec = task.spec.container_spec
    if spec is None or "{{" not in spec.hostname:
        return "" if spec is None else spec.hostname
    try:
        return expand(spec.hostname, fields_of(task, node), "hostname")
    except InvalidArgument:
        return ""  # such a task fails on its node, and says why


def _value(expression: str, fields: Mapping[str, str], where: str) -> str:
    if expression in fields:
        return fields[expression]
    if (quoted := _QUOTED.fullmatch(expression)) is not None:
        return quoted[1] if quoted[1] is not None else quoted[2]
    if expression.startswith("/*") and expression.endswith("*/"):
        return ""
    raise InvalidArgument(
        f"expanding {where} failed: {{{{{expression}}}}} is not supported here: known are {', '.join(sorted(fields))}"
    )
