"""RUN --mount: what one says. Pure."""

from __future__ import annotations

import csv
import posixpath
from dataclasses import dataclass

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite",
}
_KEYS = {
    "bind": {"from", "source", "target", "readonly", "readwrite"},
    "cache": {"target", "readonly", "readwrite", "id", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"target", "id", "required", "mode", "uid", "gid", "env"},
    "ssh": {"target", "id", "required", "mode", "uid", "gid"},
}
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class RunMount:
    """source: a path in the stage or image `stage`, "" = the build context. size in bytes, 0 = no limit of its own."""

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


def parse_mount(text: str) -> RunMount:
    """The value of one --mount. ValueError."""
    values: dict[str, str] = {}
    for field in next(csv.reader([text]), []):
        name, equals, value = field.strip().partition("=")
        name = _ALIASES.get(name.lower(), name.lower())
        if not equals and name not in ("readonly", "readwrite", "required"):
            raise ValueError(f"invalid field {field!r} must be a key=value pair")
        values[name] = value if equals else "true"
    kind = values.pop("type", "bind")
    if kind not in _TYPES:
        raise ValueError(f"unsupported mount type {kind!r}")
    for name in values:
        if name not in _KEYS[kind]:
            raise ValueError(f"unexpected key {name!r} for mount type {kind!r}")
    required = _flag(values.get("required", "false"), "required")
    if kind == "ssh":
        raise ValueError("RUN --mount=type=ssh is not supported: the classic build protocol forwards no SSH agent")
    if kind == "secret":
        if required:
            raise ValueError(
                "RUN --mount=type=secret with required=true is not supported: "
                "the classic build protocol has no way to hand over a secret"
            )
        return RunMount(kind, id=values.get("id", ""))
    target = values.get("target", "")
    if not target:
        raise ValueError(f"invalid mount config for type {kind!r}: a target is missing")
    read_only = kind == "bind"
    if "readonly" in values:
        read_only = _flag(values["readonly"], "readonly")
    if "readwrite" in values:
        read_only = not _flag(values["readwrite"], "readwrite")
    sharing = values.get("sharing", "shared")
    if sharing not in _SHARING:
        raise ValueError(f"unsupported sharing value {sharing!r}")
    return RunMount(
        kind, target, values.get("source", ""), values.get("from", ""),
        values.get("id", "") or posixpath.normpath(target), sharing, read_only, False,
        _octal(values.get("mode", "755")), _number(values, "uid"), _number(values, "gid"),
        _size(values.get("size", "0")),
    )


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
