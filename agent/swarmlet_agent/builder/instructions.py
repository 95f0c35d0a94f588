"""What each instruction of a Dockerfile says, as a value; variables are not replaced yet. Pure.

Errors are BadDockerfile with the line, in the words of Docker's builder where it has words for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from swarmlet.model.common import HealthConfig
from swarmlet_agent.builder.dockerfile import BadDockerfile, Heredoc, Line, parse_one
from swarmlet_agent.builder.mounts import MountFlag, read_mount
from swarmlet_agent.builder.words import split_words
from swarmlet_agent.images.durations import parse_duration

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """Where it stands, and its text for "Step n/m"."""

    line: int
    code: str


@dataclass(frozen=True, slots=True)
class Arg(Instruction):
    """(name, default or None) of each."""

    args: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class From(Instruction):
    image: str
    platform: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Env(Instruction):
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Label(Instruction):
    """literal: keys and values are as given (`docker build --label`), with nothing to replace."""

    pairs: Pairs
    literal: bool = False


@dataclass(frozen=True, slots=True)
class Copy(Instruction):
    """COPY and ADD. source: the stage or image given with --from."""

    add: bool
    sources: tuple[str, ...]
    target: str
    heredocs: tuple[Heredoc, ...] = ()
    source: str = ""
    chown: str = ""
    chmod: str = ""
    checksum: str = ""
    exclude: tuple[str, ...] = ()
    parents: bool = False
    unpack: bool | None = None
    keep_git_dir: bool = False


@dataclass(frozen=True, slots=True)
class Command(Instruction):
    """CMD or ENTRYPOINT. shell: the one word is for the shell."""

    words: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, slots=True)
class Cmd(Command):
    pass


@dataclass(frozen=True, slots=True)
class Entrypoint(Command):
    pass


@dataclass(frozen=True, slots=True)
class Run(Command):
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[MountFlag, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True)
class Expose(Instruction):
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Volume(Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shell(Instruction):
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User(Instruction):
    user: str


@dataclass(frozen=True, slots=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True, slots=True)
class Stopsignal(Instruction):
    signal: str


@dataclass(frozen=True, slots=True)
class Maintainer(Instruction):
    name: str


@dataclass(frozen=True, slots=True)
class Onbuild(Instruction):
    trigger: str


@dataclass(frozen=True, slots=True)
class Healthcheck(Instruction):
    health: HealthConfig


def parse_instruction(line: Line) -> Instruction:
    """The value of a line. BadDockerfile."""
    parse = _PARSERS.get(line.keyword)
    if parse is None:
        raise BadDockerfile(f"unknown instruction: {line.keyword.upper()}", line.number)
    try:
        return parse(line)
    except BadDockerfile:
        raise
    except ValueError as err:
        raise BadDockerfile(str(err), line.number) from err


class _Flags:
    """An instruction's flags, taken by name; what is left at the end is unknown."""

    def __init__(self, line: Line, *, many: Sequence[str] = ()) -> None:
        self._values: dict[str, list[str | None]] = {}
        for flag in line.flags:
            name, equals, value = flag[2:].partition("=")
            known = self._values.setdefault(name, [])
            if known and name not in many:
                raise ValueError(f"duplicate flag specified: {name}")
            known.append(value if equals else None)

    def text(self, name: str) -> str:
        return (self.texts(name) or ("",))[0]

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._values.pop(name, [])
        given = tuple(value for value in values if value is not None)
        if len(given) != len(values):
            raise ValueError(f"missing a value on flag: {name}")
        return given

    def boolean(self, name: str) -> bool | None:
        values = self._values.pop(name, [])
        if not values:
            return None
        value = values[0]
        if value is None or value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise ValueError(f"expecting boolean value for flag {name}, not: {value}")

    def end(self) -> None:
        if self._values:
            raise ValueError(f"unknown flag: --{next(iter(self._values))}")


def json_words(rest: str) -> tuple[str, ...] | None:
    """The JSON form; None if it is not that."""
    if not rest.startswith("["):
        return None
    try:
        return tuple(msgspec.json.decode(rest, type=list[str]))
    except (msgspec.DecodeError, UnicodeError):
        return None


def _words(line: Line) -> tuple[str, ...]:
    listed = json_words(line.rest)
    return listed if listed is not None else tuple(line.rest.split())


def _no_flags(line: Line) -> None:
    _Flags(line).end()


def _one(line: Line) -> str:
    _no_flags(line)
    if not line.rest:
        raise ValueError(f"{line.keyword.upper()} requires exactly one argument")
    return line.rest


def _pairs(line: Line) -> Pairs:
    """`a=b c="d"`, or the old form `a b c` that gives a the value "b c"."""
    _no_flags(line)
    what = line.keyword.upper()
    words = split_words(line.rest, line.escape)
    if not words:
        raise ValueError(f"{what} requires at least one argument")
    if "=" not in words[0]:
        value = line.rest[len(words[0]) :].strip()
        if not value:
            raise ValueError(f"{what} must have two arguments")
        return ((words[0], value),)
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value')
        if not name:
            raise ValueError(f"{what} names can not be blank")
        pairs.append((name, value))
    return tuple(pairs)


def _arg(line: Line) -> Arg:
    _no_flags(line)
    words = split_words(line.rest, line.escape)
    if not words:
        raise ValueError("ARG requires at least one argument")
    args: list[tuple[str, str | None]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise ValueError("ARG names can not be blank")
        args.append((name, value if equals else None))
    return Arg(line.number, line.original, tuple(args))


def _from(line: Line) -> From:
    flags = _Flags(line)
    platform = flags.text("platform")
    flags.end()
    words = line.rest.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
        raise ValueError("FROM requires either one or three arguments")
    name = words[2].lower() if len(words) == 3 else ""
    if name and _STAGE_NAME.fullmatch(name) is None:
        raise ValueError(
            f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
        )
    return From(line.number, line.original, words[0], platform, name)


def _env(line: Line) -> Env:
    return Env(line.number, line.original, _pairs(line))


def _label(line: Line) -> Label:
    return Label(line.number, line.original, _pairs(line))


def _copy(line: Line) -> Copy:
    add = line.keyword == "add"
    flags = _Flags(line, many=("exclude",))
    chown, chmod = flags.text("chown"), flags.text("chmod")
    source = "" if add else flags.text("from")
    checksum, unpack = (flags.text("checksum"), flags.boolean("unpack")) if add else ("", None)
    exclude = flags.texts("exclude")
    parents = bool(not add and flags.boolean("parents"))
    # What --link promises beyond an ordinary copy is how often it must be made again, never what is made.
    flags.boolean("link")
    keep_git_dir = bool(add and flags.boolean("keep-git-dir"))
    flags.end()
    words = list(_words(line))
    begins = {heredoc.name: heredoc for heredoc in line.heredocs}
    if len(words) < 2:
        one = "but only one was provided. Destination could not be determined" if words else "but none was provided"
        raise ValueError(f"{line.keyword.upper()} requires at least two arguments, {one}")
    target = words.pop()
    if begins:
        words = [word for word in words if word.partition("<<")[2].lstrip("-").strip("'\"") not in begins]
        if source:
            raise ValueError(f"{line.keyword.upper()} --from cannot be used with here-documents")
    return Copy(
        line.number, line.original, add, tuple(words), target, line.heredocs, source, chown, chmod, checksum, exclude,
        parents, unpack, keep_git_dir,
    )


def _command(line: Line) -> tuple[tuple[str, ...], bool]:
    listed = json_words(line.rest)
    return (listed, False) if listed is not None else ((line.rest,) if line.rest else (), True)


def _cmd(line: Line) -> Cmd:
    _no_flags(line)
    return Cmd(line.number, line.original, *_command(line))


def _entrypoint(line: Line) -> Entrypoint:
    _no_flags(line)
    return Entrypoint(line.number, line.original, *_command(line))


def _run(line: Line) -> Run:
    flags = _Flags(line, many=("mount",))
    mounts = tuple(read_mount(text) for text in flags.texts("mount"))
    network, security = flags.text("network"), flags.text("security")
    flags.end()
    if network not in ("", "default", "none", "host"):
        raise ValueError(f'invalid network mode "{network}": RUN --network takes default, none or host')
    if security not in ("", "sandbox"):
        raise ValueError("RUN --security=insecure is not supported: builds run without extended privileges")
    words, shell = _command(line)
    if not words:
        raise ValueError("RUN requires at least one argument")
    network = "" if network == "default" else network
    return Run(line.number, line.original, words, shell, line.heredocs, mounts, network)


def _expose(line: Line) -> Expose:
    _no_flags(line)
    ports = tuple(sorted(line.rest.split()))
    if not ports:
        raise ValueError("EXPOSE requires at least one argument")
    return Expose(line.number, line.original, ports)


def _volume(line: Line) -> Volume:
    _no_flags(line)
    paths = tuple(path.strip() for path in _words(line))
    if not paths:
        raise ValueError("VOLUME requires at least one argument")
    if not all(paths):
        raise ValueError("VOLUME specified can not be an empty string")
    return Volume(line.number, line.original, paths)


def _shell(line: Line) -> Shell:
    _no_flags(line)
    words = json_words(line.rest)
    if words is None:
        raise ValueError("SHELL requires the arguments to be in JSON form")
    if not words:
        raise ValueError("SHELL requires at least one argument")
    return Shell(line.number, line.original, words)


def _user(line: Line) -> User:
    return User(line.number, line.original, _one(line))


def _workdir(line: Line) -> Workdir:
    return Workdir(line.number, line.original, _one(line))


def _stopsignal(line: Line) -> Stopsignal:
    text = _one(line)
    if len(text.split()) != 1:
        raise ValueError("STOPSIGNAL requires exactly one argument")
    return Stopsignal(line.number, line.original, text)


def _maintainer(line: Line) -> Maintainer:
    return Maintainer(line.number, line.original, _one(line))


def _onbuild(line: Line) -> Onbuild:
    _no_flags(line)
    word = line.rest.split(None, 1)[0].upper() if line.rest else ""
    if not word:
        raise ValueError("ONBUILD requires at least one argument")
    if word == "ONBUILD":
        raise ValueError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if word in ("FROM", "MAINTAINER"):
        raise ValueError(f"{word} isn't allowed as an ONBUILD trigger")
    trigger = "\n".join([line.rest, *(heredoc.raw.rstrip("\n") for heredoc in line.heredocs)])
    parse_instruction(replace(parse_one(trigger), number=line.number))
    return Onbuild(line.number, line.original, trigger)


def _healthcheck(line: Line) -> Healthcheck:
    flags = _Flags(line)
    word, _, command = line.rest.partition(" ")
    kind, command = word.upper(), command.strip()
    if not kind:
        raise ValueError("HEALTHCHECK requires at least one argument")
    if kind == "NONE":
        flags.end()
        if command:
            raise ValueError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(line.number, line.original, HealthConfig(test=("NONE",)))
    if kind != "CMD":
        raise ValueError(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    if not command:
        raise ValueError("Missing command after HEALTHCHECK CMD")
    times = {name: _time(flags.text(name), name) for name in ("interval", "timeout", "start-period", "start-interval")}
    retries = flags.text("retries")
    flags.end()
    if retries and (not retries.isdigit() or int(retries) < 1):
        raise ValueError(f"--retries must be at least 1 (not {retries})")
    listed = json_words(command)
    health = HealthConfig(
        test=("CMD", *listed) if listed is not None else ("CMD-SHELL", command), interval=times["interval"],
        timeout=times["timeout"], start_period=times["start-period"], start_interval=times["start-interval"],
        retries=int(retries or 0),
    )
    return Healthcheck(line.number, line.original, health)


def _time(text: str, name: str) -> int:
    if not text:
        return 0
    value = parse_duration(text)
    if value < 0 or (value and value < 1_000_000):
        raise ValueError(f'Interval "{name}" cannot be less than 1ms')
    return value


_PARSERS: dict[str, Callable[[Line], Instruction]] = {
    "add": _copy, "arg": _arg, "cmd": _cmd, "copy": _copy, "entrypoint": _entrypoint, "env": _env, "expose": _expose,
    "from": _from, "healthcheck": _healthcheck, "label": _label, "maintainer": _maintainer, "onbuild": _onbuild,
    "run": _run, "shell": _shell, "stopsignal": _stopsignal, "user": _user, "volume": _volume, "workdir": _workdir,
}
