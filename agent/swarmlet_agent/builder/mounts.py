"""RUN --mount: what one says. Pure."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite",
}
_KEYS = {
    "bind": {"from", "source", "target", "readonly", "readwrite"},
    "cache": {"from", "source", "target", "readonly", "readwrite", "id", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"source", "target", "id", "required", "mode", "uid", "gid", "env", "readonly", "readwrite"},
    "ssh": {"target", "id", "required", "mode", "uid", "gid"},
}
_MODES = {"bind": "755", "cache": "755", "tmpfs": "755", "secret": "400", "ssh": "600"}
_VARIABLE = re.compile(r"\$.")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class RunMount:
    """source: a path in the stage or image `stage`; "" = the build context, or of a cache nothing. size in bytes, 0 =
    no limit of its own."""

    type: str
    target: str = ""
    source: str = ""
    stage: str = ""
    id: str = ""
    sharing: str = "shared"
    read_only: bool = False
    required: bool = False
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class MountFlag:
    """The value of one --mount, as it stands there: variables have their values only when the step's turn comes.

    stage: what `from` names, which cannot have any.
    """

    text: str
    stage: str = ""


def read_mount(text: str) -> MountFlag:
    """When the file is read. ValueError for what is wrong whatever the variables are."""
    for name, value, _ in _fields(text):
        if name == "from":
            if _VARIABLE.search(value):
                raise ValueError("'from' doesn't support variable expansion, define alias stage instead")
            stage = value
            break
    else:
        stage = ""
    if not _VARIABLE.search(text):
        parse_mount(text)
    return MountFlag(text, stage)


def parse_mount(text: str, expand: Callable[[str], str] = str) -> RunMount:
    """What it means, its values being `expand`ed. ValueError."""
    values: dict[str, str] = {}
    for name, value, given in _fields(text):
        if not given and name not in ("readonly", "readwrite", "required"):
            raise ValueError(f"invalid field {value!r} must be a key=value pair")
        values[name] = expand(value) if given else "true"
    kind = values.pop("type", "bind").lower()
    if kind not in _TYPES:
        raise ValueError(f"unsupported mount type {kind!r}")
    for name in values:
        if name not in _KEYS[kind]:
            raise ValueError(f"unexpected key {name!r} for mount type {kind!r}")
    target, source = values.get("target", ""), values.get("source", "")
    mode, uid, gid = _octal(values.get("mode", _MODES[kind])), _number(values, "uid"), _number(values, "gid")
    if kind in ("secret", "ssh"):
        ident = values.get("id", "")
        if kind == "secret":
            if not (ident or source or target):
                raise ValueError("invalid secret mount. one of source, target required")
            if ident and source:
                raise ValueError("both source and id can't be set")
            ident = ident or source or posixpath.basename(target)
        required = _flag(values.get("required", "false"), "required")
        return RunMount(kind, target, id=ident or "default", required=required, mode=mode, uid=uid, gid=gid)
    if not target:
        raise ValueError(f"invalid mount config for type {kind!r}: a target is missing")
    if kind == "cache" and source and not values.get("from"):
        raise ValueError("invalid cache mount: source is a folder of what from names, and there is no from")
    read_only = kind == "bind"
    if "readonly" in values:
        read_only = _flag(values["readonly"], "readonly")
    if "readwrite" in values:
        read_only = not _flag(values["readwrite"], "readwrite")
    sharing = values.get("sharing", "shared").lower()
    if sharing not in _SHARING:
        raise ValueError(f"unsupported sharing value {sharing!r}")
    return RunMount(
        kind, target, source, values.get("from", ""), values.get("id", "") or posixpath.normpath(target), sharing,
        read_only, False, mode, uid, gid, _size(values.get("size", "0")),
    )


def unprovided(mount: RunMount) -> str:
    """What BuildKit says of a secret or an SSH agent that must be there: a client of this protocol has no way to give
    any, so that there never is one. "": it need not be there, and is left out."""
    if not mount.required:
        return ""
    if mount.type == "ssh":
        return f'no SSH key "{mount.id}" forwarded from the client'
    return f"secret {mount.id}: not found"


def _fields(text: str) -> list[tuple[str, str, bool]]:
    """(key, value, whether there is one) of each; without a value: the field itself."""
    found = []
    for field in next(csv.reader([text]), []):
        name, equals, value = field.strip().partition("=")
        name = name.lower()
        found.append((_ALIASES.get(name, name), value if equals else field, bool(equals)))
    return found


def _flag(text: str, name: str) -> bool:
    if text.lower() in ("true", "1", ""):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(f"invalid value for {name}: {text}")


def _octal(text: str) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise ValueError(f"invalid value {text!r} for mode")
    return value


def _number(values: dict[str, str], name: str) -> int:
    text = values.get(name, "0")
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise ValueError(f"invalid value {text!r} for {name}")
    return int(text)


def _size(text: str) -> int:
    number = text.lower().removesuffix("b").rstrip("kmg")
    unit = text.lower().removesuffix("b")[len(number) :]
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS:
        raise ValueError(f"invalid value {text!r} for size")
    return int(number) * _UNITS[unit]
