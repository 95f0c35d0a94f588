"""What an image is after each step, and what an instruction makes of its configuration. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.base import to_api
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import rfc3339
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.words import BadWord, expand, expand_words
from swarmlet_agent.decide.signals import parse_signal
from swarmlet_agent.images.durations import show_duration
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import Configuration, HistoryEntry, parse_config
from swarmlet_agent.images.platforms import Platform

T = TypeVar("T")
DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HEALTH_NUMBERS = ("interval", "timeout", "start_period", "start_interval", "retries")
#: Numbers that Go's %q prints in a way of its own.
_RUNES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 39: "\\'", 92: "\\\\"}
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class State:
    """An image in the making."""

    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...]
    chains: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    author: str
    id: str
    raw: bytes

    @property
    def short_id(self) -> str:
        """As the builder shows it."""
        return self.id.removeprefix("sha256:")[:12] if self.history or self.chains else ""

    @property
    def configuration(self) -> Configuration:
        return parse_config(self.raw)


def empty_state(platform: Platform) -> State:
    """FROM scratch: nothing at all, which has an id only so that steps can name what they follow."""
    document = {
        "architecture": platform.architecture, "config": {}, "os": platform.os or "linux",
        "rootfs": {"type": "layers", "diff_ids": []}, **({"variant": platform.variant} if platform.variant else {}),
    }
    return state_of(parse_config(msgspec.json.encode(document, order="deterministic")))


def state_of(configuration: Configuration) -> State:
    """Of an image that exists."""
    return State(
        configuration.config, configuration.platform, configuration.diff_ids, configuration.chain_ids,
        configuration.history, configuration.author, configuration.id, configuration.raw,
    )


def advance(
    before: State, config: ImageConfig, created_by: str, *, now: int, layer: Layer | None = None,
    author: str | None = None, ran: Sequence[str] = (),
) -> State:
    """The state after a step: its configuration, and its layer if it has one. ran: the command of a step that ran one.
    """
    author = before.author if author is None else author
    created = rfc3339(now)
    entry = HistoryEntry(created=created, created_by=created_by, author=author, empty_layer=layer is None)
    history = (*before.history, entry)
    diff_ids = before.diff_ids if layer is None else (*before.diff_ids, layer.diff_id)
    document: dict[str, Any] = {
        "architecture": before.platform.architecture, "config": to_api(config), "created": created,
        # The step's container was created with it (Docker's addition): that of a step that runs nothing never ran.
        "container_config": to_api(config) | {"Cmd": list(ran) or _told(created_by)},
        "history": msgspec.to_builtins(history), "os": before.platform.os or "linux",
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    if before.platform.variant:
        document["variant"] = before.platform.variant
    if author:
        document["author"] = author
    return state_of(parse_config(msgspec.json.encode(document, order="deterministic")))


@dataclass(frozen=True, slots=True)
class Scope:
    """What an instruction is read with. args: build arguments in force, which ENV hides."""

    config: ImageConfig
    args: Mapping[str, str]
    escape: str

    @property
    def variables(self) -> dict[str, str]:
        return {**self.args, **env_of(self.config)}

    def text(self, text: str) -> str:
        """Variables replaced, quotes gone. InvalidArgument."""
        return self._replaced(expand, text)

    def words(self, text: str) -> list[str]:
        return self._replaced(expand_words, text)

    def _replaced(self, replaced: Callable[[str, Mapping[str, str], str], T], text: str) -> T:
        try:
            return replaced(text, self.variables, self.escape)
        except BadWord as err:
            raise InvalidArgument(f'failed to process "{text}": {err}') from err


def env_of(config: ImageConfig) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in config.env)}


def shell_of(config: ImageConfig) -> tuple[str, ...]:
    return config.shell or DEFAULT_SHELL


def _told(created_by: str) -> list[str]:
    """The words of a `noted` line."""
    shell, _, text = created_by.partition(" #(nop) ")
    return [*shell.split(" "), "#(nop) ", text[1:]] if text[:1] == " " else [*shell.split(" "), f"#(nop) {text}"]


def noted(config: ImageConfig, text: str) -> str:
    """A step's line in the history, as Docker writes it for those that run nothing."""
    return f"{' '.join(shell_of(config))} #(nop) {text}"


def begin_stage(config: ImageConfig) -> ImageConfig:
    """A base's configuration as a stage starts with it: its triggers are taken out, and there is a PATH."""
    env = config.env if "PATH" in env_of(config) else (*config.env, DEFAULT_PATH)
    return replace(config, env=env, on_build=())


def argv_of(command: kinds.Command, config: ImageConfig) -> tuple[str, ...]:
    return (*shell_of(config), *command.words) if command.shell and command.words else command.words


@dataclass(frozen=True, slots=True)
class Change:
    """What a step without files does: the new configuration, and its instruction with variables replaced."""

    config: ImageConfig
    said: str
    author: str | None = None
    #: Said before.
    note: str = ""

    @property
    def created_by(self) -> str:
        return noted(self.config, f" {self.said}")


def change_of(step: kinds.Instruction, scope: Scope, *, own_cmd: bool) -> Change | None:
    """Of an instruction that only alters the configuration; None for the others. ValueError, InvalidArgument.

    own_cmd: this stage has set CMD already, so ENTRYPOINT leaves it alone (else it is the base's, which would be
    the arguments of another program).
    """
    if isinstance(step, kinds.Entrypoint):
        return _entrypoint(step, scope, own_cmd)
    apply = _CHANGES.get(type(step))
    return apply(step, scope) if apply is not None else None


def _env(step: Any, scope: Scope) -> Change:
    env = env_of(scope.config)
    # All of one instruction see the values from before it.
    pairs = [(scope.text(name), scope.text(value)) for name, value in step.pairs]
    env.update(pairs)
    shown = " ".join(f"{name}={value}" for name, value in pairs)
    config = replace(scope.config, env=tuple(f"{name}={value}" for name, value in env.items()))
    return Change(config, f"ENV {shown}")


def _label(step: Any, scope: Scope) -> Change:
    pairs = step.pairs if step.literal else [(scope.text(name), scope.text(value)) for name, value in step.pairs]
    shown = " ".join(f"{name}={value}" for name, value in pairs)
    return Change(replace(scope.config, labels={**scope.config.labels, **dict(pairs)}), f"LABEL {shown}")


def _cmd(step: Any, scope: Scope) -> Change:
    words = argv_of(step, scope.config)
    return Change(replace(scope.config, cmd=words), f"CMD {_quoted(words)}")


def _entrypoint(step: kinds.Entrypoint, scope: Scope, own_cmd: bool) -> Change:
    words = argv_of(step, scope.config)
    config = replace(scope.config, entrypoint=words)
    if not own_cmd:
        config = replace(config, cmd=None)
    return Change(config, f"ENTRYPOINT {_quoted(words)}")


def _expose(step: Any, scope: Scope) -> Change:
    ports = dict(scope.config.exposed_ports)
    shown = []
    for word in [word for text in step.ports for word in scope.words(text)]:
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        _, slash, protocol = word.partition("/")
        if slash and protocol.lower() not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(f"invalid proto: {protocol}")
        if match is None or not 0 < first <= last <= 65535:
            raise InvalidArgument(f"Invalid containerPort: {word}")
        for number in range(first, last + 1):
            ports[f"{number}/{(match[3] or 'tcp').lower()}"] = {}
        shown.append(word)
    return Change(replace(scope.config, exposed_ports=ports), f"EXPOSE {' '.join(shown)}")


def _volume(step: Any, scope: Scope) -> Change:
    paths = [scope.text(path) for path in step.paths]
    if not all(paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    config = replace(scope.config, volumes={**scope.config.volumes, **{path: {} for path in paths}})
    return Change(config, f"VOLUME [{' '.join(paths)}]")


def _user(step: Any, scope: Scope) -> Change:
    user = scope.text(step.user)
    return Change(replace(scope.config, user=user), f"USER {user}")


def _stopsignal(step: Any, scope: Scope) -> Change:
    name = scope.text(step.signal)
    parse_signal(name)
    return Change(replace(scope.config, stop_signal=name), f"STOPSIGNAL {name}")


def _shell(step: Any, scope: Scope) -> Change:
    return Change(replace(scope.config, shell=step.words), f"SHELL [{' '.join(step.words)}]")


def _onbuild(step: Any, scope: Scope) -> Change:
    config = replace(scope.config, on_build=(*scope.config.on_build, step.trigger))
    return Change(config, f"ONBUILD {step.trigger}")


def _healthcheck(step: Any, scope: Scope) -> Change:
    before = scope.config.healthcheck
    note = ""
    if before is not None and before.test and before.test[0] != "NONE":
        note = f"Note: overriding previous HEALTHCHECK: [{' '.join(before.test)}]\n"
    health = step.health
    if before is not None:  # what is not said stays as it was, as with Docker
        kept = {name: getattr(health, name) or getattr(before, name) for name in _HEALTH_NUMBERS}
        health = replace(health, **kept)
    config = replace(scope.config, healthcheck=health)
    return Change(config, f"HEALTHCHECK {_shown_health(step.health)}", note=note)


def _shown_health(health: HealthConfig) -> str:
    """As Go prints it with %q, which is what Docker's histories have."""
    times = (health.interval, health.timeout, health.start_period, health.start_interval)
    shown = " ".join(f'"{show_duration(time)}"' for time in times)
    return f"&{{{_quoted(health.test)} {shown} '{_RUNES.get(health.retries) or _rune(health.retries)}'}}"


def _rune(number: int) -> str:
    return chr(number) if 32 <= number < 127 else f"\\x{number:02x}" if number < 128 else f"\\u{number:04x}"


def _maintainer(step: Any, scope: Scope) -> Change:
    return Change(scope.config, f"MAINTAINER {step.name}", author=step.name)


def working_dir(step: kinds.Workdir, scope: Scope) -> str:
    """Where WORKDIR leads: relative to the one before."""
    path = scope.text(step.path)
    if not path:
        raise InvalidArgument("WORKDIR: the path is empty")
    return posixpath.normpath(posixpath.join("/", scope.config.working_dir, path)).replace("//", "/")


def encode_config(config: ImageConfig) -> str:
    """As a part of a key."""
    return msgspec.json.encode(to_api(config), order="deterministic").decode()


def _quoted(words: Sequence[str]) -> str:
    return f"[{' '.join(msgspec.json.encode(word).decode() for word in words)}]"


_CHANGES: dict[type[kinds.Instruction], Callable[[Any, Scope], Change]] = {
    kinds.Env: _env, kinds.Label: _label, kinds.Cmd: _cmd, kinds.Expose: _expose, kinds.Volume: _volume,
    kinds.User: _user, kinds.Stopsignal: _stopsignal, kinds.Shell: _shell, kinds.Onbuild: _onbuild,
    kinds.Healthcheck: _healthcheck, kinds.Maintainer: _maintainer,
}
