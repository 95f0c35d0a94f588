"""`docker import --change`: Dockerfile instructions that only alter an image's configuration. Pure."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence

import msgspec

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import ImageConfig
from swarmlet_agent.images.durations import parse_duration

_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """The configuration after these instructions, in order. InvalidArgument names the line and what is wrong."""
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        apply = _INSTRUCTIONS.get(word.upper())
        if apply is None:
            raise InvalidArgument(f"{word.upper()} is not a valid change command")
        try:
            config = apply(config, rest.strip())
        except ValueError as err:
            raise InvalidArgument(f"invalid change {line.strip()!r}: {err}") from err
    return config


def _command(rest: str) -> tuple[str, ...]:
    """JSON form as it is, anything else through the shell."""
    listed = _json_list(rest)
    return listed if listed is not None else (*_SHELL, rest)


def _json_list(rest: str) -> tuple[str, ...] | None:
    if not rest.startswith("["):
        return None
    try:
        return tuple(msgspec.json.decode(rest, type=list[str]))
    except msgspec.DecodeError:
        return None


def _cmd(config: ImageConfig, rest: str) -> ImageConfig:
    return msgspec.structs.replace(config, cmd=_command(rest) if rest else None)


def _entrypoint(config: ImageConfig, rest: str) -> ImageConfig:
    return msgspec.structs.replace(config, entrypoint=_command(rest) if rest else None)


def _pairs(rest: str, what: str) -> list[tuple[str, str]]:
    """`a=b c="d e"`, or the old form `a b c` that gives a the value "b c"."""
    words = shlex.split(rest)
    if not words:
        raise ValueError(f"{what} requires at least one argument")
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise ValueError(f"{what} must have two arguments")
        return [(name, value.strip())]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"can't find = in {word!r}: must be of the form name=value")
        pairs.append((name, value))
    return pairs


def _env(config: ImageConfig, rest: str) -> ImageConfig:
    env = dict(entry.partition("=")[::2] for entry in config.env)
    env.update(_pairs(rest, "ENV"))
    return msgspec.structs.replace(config, env=tuple(f"{name}={value}" for name, value in env.items()))


def _label(config: ImageConfig, rest: str) -> ImageConfig:
    return msgspec.structs.replace(config, labels={**config.labels, **dict(_pairs(rest, "LABEL"))})


def _expose(config: ImageConfig, rest: str) -> ImageConfig:
    ports = dict(config.exposed_ports)
    for word in rest.split():
        match = _PORT.fullmatch(word)
        if match is None:
            raise ValueError(f"invalid port {word!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= last <= 65535:
            raise ValueError(f"invalid port range {word!r}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    return msgspec.structs.replace(config, exposed_ports=ports)


def _onbuild(config: ImageConfig, rest: str) -> ImageConfig:
    word = rest.partition(" ")[0].upper()
    if not word:
        raise ValueError("ONBUILD requires at least one argument")
    if word in ("ONBUILD", "FROM", "MAINTAINER"):
        raise ValueError(f"{word} isn't allowed as an ONBUILD trigger")
    return msgspec.structs.replace(config, on_build=(*config.on_build, rest))


def _user(config: ImageConfig, rest: str) -> ImageConfig:
    if len(rest.split()) != 1:
        raise ValueError("USER requires exactly one argument")
    return msgspec.structs.replace(config, user=rest)


def _volume(config: ImageConfig, rest: str) -> ImageConfig:
    listed = _json_list(rest)
    volumes = listed if listed is not None else tuple(shlex.split(rest))
    if not volumes or not all(volume.strip() for volume in volumes):
        raise ValueError("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**config.volumes, **{volume: {} for volume in volumes}})


def _workdir(config: ImageConfig, rest: str) -> ImageConfig:
    if not rest:
        raise ValueError("WORKDIR requires exactly one argument")
    return msgspec.structs.replace(
        config, working_dir=posixpath.normpath(posixpath.join("/", config.working_dir, rest))
    )


def _stopsignal(config: ImageConfig, rest: str) -> ImageConfig:
    if len(rest.split()) != 1:
        raise ValueError("STOPSIGNAL requires exactly one argument")
    return msgspec.structs.replace(config, stop_signal=rest)


def _healthcheck(config: ImageConfig, rest: str) -> ImageConfig:
    options: dict[str, int] = {}
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        name, equals, value = option[2:].partition("=")
        if not equals or name not in ("interval", "timeout", "start-period", "start-interval", "retries"):
            raise ValueError(f"unknown flag: {option}")
        options[name.replace("-", "_")] = int(value) if name == "retries" else parse_duration(value)
        rest = rest.strip()
    word, _, command = rest.partition(" ")
    if word.upper() == "NONE" and not command and not options:
        return msgspec.structs.replace(config, healthcheck=HealthConfig(test=("NONE",)))
    if word.upper() != "CMD" or not command.strip():
        raise ValueError("HEALTHCHECK needs CMD with a command, or NONE")
    listed = _json_list(command.strip())
    test = ("CMD", *listed) if listed is not None else ("CMD-SHELL", command.strip())
    return msgspec.structs.replace(config, healthcheck=HealthConfig(test=test, **options))


_INSTRUCTIONS: dict[str, Callable[[ImageConfig, str], ImageConfig]] = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "LABEL": _label, "EXPOSE": _expose, "ONBUILD": _onbuild,
    "USER": _user, "VOLUME": _volume, "WORKDIR": _workdir, "STOPSIGNAL": _stopsignal, "HEALTHCHECK": _healthcheck,
}
