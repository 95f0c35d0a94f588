"""Templates in a service's specification: `{{.Service.Name}}` and the like, resolved per task on its node.

The fields are SwarmKit's (template/context.go): .Service.ID .Service.Name, .Node.ID .Node.Hostname
.Node.Platform.OS .Node.Platform.Architecture, .Task.ID .Task.Name .Task.Slot; they are honoured in env, hostname
and mounts. Anything else a Go template could do is refused by name rather than copied into the container as text.

The content of secrets and configs may be a template too: there, `env "NAME"`, `secret "target"` and `config "target"`
are functions, and `{{-`, `-}}` take the space around them away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import Mount
from swarmlet.model.task import Task

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
#: Words of Go templates that a value may contain without being one: quoted strings print themselves.
#: The longest content that a template may become.
MAX_EXPANDED_BYTES = 4 << 20
#: From behind "{{" to "}}": possessive, so that content that is no template costs one look.
_INSIDE = re.compile(rb"((?:\"(?:[^\"\\]|\\.)*+\"|`[^`]*+`|[^\"`}]|\}(?!\}))*+)\}\}", re.DOTALL)
_COMMENT = re.compile(rb"((?:-\s)?\s*/\*.*?\*/\s*-?)\}\}", re.DOTALL)
_SPACE = re.compile(rb"\s*+")
_CALL = re.compile(r"""(env|secret|config)\s+(?:"([^"\\]*)"|`([^`]*)`)""")
_WORD = re.compile(r"[.$]?[A-Za-z_][A-Za-z0-9_.]*")
_QUOTED = re.compile(r'"([^"\\]*)"|`([^`]*)`')


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What templates and labels may say of the node a task runs on."""

    id: str
    hostname: str
    os: str = "linux"
    architecture: str = "x86_64"


FIELDS = (
    ".Service.ID", ".Service.Name", ".Node.ID", ".Node.Hostname", ".Node.Platform.OS", ".Node.Platform.Architecture",
    ".Task.ID", ".Task.Name", ".Task.Slot",
)


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
    if "{{" in _ACTION.sub("", text):
        raise InvalidArgument(f"expanding {where} failed: an action of its template is not closed")
    return _ACTION.sub(lambda match: _value(match[1], fields, where), text)


def expand_mount(mount: Mount, fields: Mapping[str, str]) -> Mount:
    """Templates in source, target, and a volume's labels and driver options. InvalidArgument."""
    volume = mount.volume_options
    if volume is not None:
        driver = volume.driver_config
        if driver is not None:
            options = {key: expand(value, fields, "mounts") for key, value in driver.options.items()}
            driver = replace(driver, options=options)
        labels = {key: expand(value, fields, "mounts") for key, value in volume.labels.items()}
        volume = replace(volume, labels=labels, driver_config=driver)
    return replace(
        mount,
        source=expand(mount.source, fields, "mounts"),
        target=expand(mount.target, fields, "mounts"),
        volume_options=volume,
    )


Functions = Mapping[str, Callable[[str], bytes]]
_NO_FUNCTIONS: Functions = {name: lambda argument: b"" for name in ("env", "secret", "config")}


def check_payload(data: bytes, what: str) -> None:
    """InvalidArgument names what a template of a secret or config asks for and cannot have."""
    expand_payload(data, dict.fromkeys(FIELDS, ""), _NO_FUNCTIONS, what)


def expand_payload(data: bytes, fields: Mapping[str, str], functions: Functions, what: str) -> bytes:
    """The content of a secret or config with its templates resolved; what it brings in is not looked at again.

    functions: env, secret and config, by their argument. InvalidArgument tells as little of the content as it can: the
    first word of what is not known.
    """
    parts: list[bytes] = []
    at = size = 0
    while (start := data.find(b"{{", at)) >= 0:
        match = _COMMENT.match(data, start + 2) or _INSIDE.match(data, start + 2)
        if match is None:
            raise InvalidArgument(f"expanding {what} failed: an action of its template is not closed")
        text, inside, at = data[at:start], match[1], match.end()
        if inside[:1] == b"-" and inside[1:2].isspace():
            text, inside = text.rstrip(), inside[1:]
        if inside[-1:] == b"-" and inside[-2:-1].isspace():
            inside = inside[:-1]
            at = _behind_space(data, at)
        parts += [text, _payload(inside.decode(errors="replace").strip(), fields, functions, what)]
        size += len(parts[-2]) + len(parts[-1])
        if size > MAX_EXPANDED_BYTES:
            raise InvalidArgument(f"expanding {what} failed: more than {MAX_EXPANDED_BYTES} bytes come of it")
    return b"".join([*parts, data[at:]])


def _behind_space(data: bytes, at: int) -> int:
    match = _SPACE.match(data, at)
    return at if match is None else match.end()


def _payload(expression: str, fields: Mapping[str, str], functions: Functions, what: str) -> bytes:
    if (call := _CALL.fullmatch(expression)) is not None:
        return functions[call[1]](call[2] if call[2] is not None else call[3])
    if expression in fields:
        return fields[expression].encode()
    if (quoted := _QUOTED.fullmatch(expression)) is not None:
        return (quoted[1] if quoted[1] is not None else quoted[2]).encode()
    if expression.startswith("/*") and expression.endswith("*/"):
        return b""
    found = _WORD.match(expression)
    raise InvalidArgument(
        f"expanding {what} failed: {found[0] if found else 'an action of its template'} is not supported here: known "
        f"are {', '.join(sorted(functions))} with a quoted argument, and {', '.join(sorted(fields))}"
    )


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
