"""SELinux labels of containers: which processes, root file systems, binds and volumes get. Pure.

As dockerd with `--selinux-enabled` has it. Every container has the same type and a level of its own, two categories
that no other container of this engine has: the policy keeps types apart from the host's, levels keep containers apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.base import Record

#: Of the policies that have containers at all.
DEFAULT_PROCESS, DEFAULT_FILE = "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"
CATEGORIES = 1024
#: What files have whose container's processes have no label; no container is given it for its processes.
UNCONFINED_LEVEL = f"s0:c{CATEGORIES - 2},c{CATEGORIES - 1}"
SHARED_LEVEL = "s0"
#: Folders of the host that other programs would no longer find their own in, were they a container's.
NEVER_RELABELLED = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64",
    "/media", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log",
})  # fmt: skip
_FIELDS = ("user", "role", "type", "level", "filetype")
#: Labels become mount options, in quotes.
_VALUE = re.compile(r"[A-Za-z0-9_.,:-]+")
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Context:
    """user:role:type, and :level where the policy has levels."""

    user: str
    role: str
    type: str
    level: str = ""

    def __str__(self) -> str:
        return ":".join(filter(None, (self.user, self.role, self.type, self.level)))


@dataclass(frozen=True, slots=True)
class Policy:
    """What the host's policy says of containers: their processes, and their files."""

    process: Context
    file: Context


@dataclass(frozen=True, slots=True)
class LabelWishes:
    """The words of `--security-opt label=…`; "" is nothing said. disable: no label for the processes."""

    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""
    filetype: str = ""


class Labels(Record, frozen=True, kw_only=True):
    """Of one container, for its whole life. "": none. mount: of its root and of every file system made for it."""

    process: str = ""
    mount: str = ""


NO_LABELS = Labels()


def parse_context(text: str) -> Context:
    """InvalidArgument for what is no label."""
    words = text.split(":", 3)
    if len(words) < 3 or not all(words) or not _VALUE.fullmatch(text):
        raise InvalidArgument(f'"{text}" is not an SELinux label')
    return Context(*words)


def parse_policy(text: str) -> Policy:
    """Of the file lxc_contexts; what it does not say is as usual. InvalidArgument for labels that are none."""
    found = {"process": DEFAULT_PROCESS, "file": DEFAULT_FILE}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", ";")):
            found[key.strip()] = value.strip().strip('"')
    return Policy(parse_context(found["process"]), parse_context(found["file"]))


def read_wishes(words: Sequence[str]) -> LabelWishes:
    """words: what stands behind `label=`; of two that say the same the later one holds. InvalidArgument."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition(":")
        if word == "disable":
            found["disable"] = True
        elif key in _FIELDS and _VALUE.fullmatch(value):
            found[key] = value
        else:
            raise InvalidArgument(
                f'bad label option "{word}": valid are disable, and {", ".join(_FIELDS)}, each with a colon and a value'
            )
    return LabelWishes(**found)


def choose_labels(policy: Policy, wishes: LabelWishes, level: str, *, privileged: bool) -> Labels:
    """level: one that is free, for who asks for none. privileged: its processes are not confined, whatever it asks."""
    own = level if policy.process.level else ""
    if wishes.disable:
        return Labels(mount=str(replace(policy.file, level=UNCONFINED_LEVEL if own else "")))
    process = Context(
        wishes.user or policy.process.user, wishes.role or policy.process.role, wishes.type or policy.process.type,
        wishes.level or own,
    )
    mount = Context(
        wishes.user or policy.file.user, policy.file.role, wishes.filetype or policy.file.type, wishes.level or own
    )
    return Labels(process="" if privileged else str(process), mount=str(mount))


def free_level(taken: Collection[str], pick: Callable[[int], int]) -> str:
    """Two categories, the lower one first, that nobody has together. pick: a random number below its argument.

    Internal if there is hardly one left, with half a million containers."""
    for _ in range(_TRIES):
        low, high = sorted((pick(CATEGORIES), pick(CATEGORIES)))
        level = f"{SHARED_LEVEL}:c{low},c{high}"
        if low != high and level != UNCONFINED_LEVEL and level not in taken:
            return level
    raise Internal("no SELinux level is left: too many containers")


def level_of(label: str) -> str:
    return parse_context(label).level


def shared(label: str) -> str:
    """The label for what several containers may use: without categories."""
    context = parse_context(label)
    return str(replace(context, level=SHARED_LEVEL if context.level else ""))


def options_for(label: str) -> tuple[str, ...]:
    """The `--security-opt` by which another container has this process label too."""
    context = parse_context(label)
    fields = {name: getattr(context, name) for name in ("user", "role", "type", "level")}
    return tuple(f"label={name}:{value}" for name, value in fields.items() if value)


def mount_option(label: str) -> str:
    """mount(8); in quotes, since levels have commas."""
    return f'context="{label}"'


def with_option(options: str, label: str) -> str:
    """Mount options with the label behind them; none for ""."""
    return f"{options},{mount_option(label)}" if label else options


def label_of_source(kind: str, mode: str, label: str, *, own: bool) -> str:
    """What a bind's or volume's files are to be labelled with, "" to leave them.

    label: the container's mount label. own: the folder is this engine's, made for containers (of a build).
    """
    words = mode.split(",")
    if not label or kind not in ("bind", "volume"):
        return ""
    if "Z" in words:
        return label
    return shared(label) if "z" in words or kind == "volume" or own else ""
