"""`docker commit --change` and `docker import --change`: a Dockerfile's instructions that only alter an image's
configuration (moby builder/dockerfile BuildFromConfig). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ImageConfig
from swarmlet_agent.builder.dockerfile import parse_one
from swarmlet_agent.builder.instructions import Cmd, Workdir, parse_instruction
from swarmlet_agent.builder.state import Scope, change_of, working_dir

_ALLOWED = frozenset({
    "cmd", "entrypoint", "env", "expose", "healthcheck", "label", "onbuild", "stopsignal", "user", "volume", "workdir",
})


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """The configuration after these instructions, in order; variables are those of its environment.

    InvalidArgument names the line and what is wrong.
    """
    own_cmd = False
    for text in changes:
        if not text.strip():
            continue
        word = text.split(None, 1)[0]
        if word.lower() not in _ALLOWED:
            raise InvalidArgument(f"{word.upper()} is not a valid change command")
        try:
            step = parse_instruction(parse_one(text.strip()))
            scope = Scope(config, {}, "\\")
            if isinstance(step, Workdir):
                config = replace(config, working_dir=working_dir(step, scope))
            elif (change := change_of(step, scope, own_cmd=own_cmd)) is not None:
                config = change.config
        except (ValueError, InvalidArgument) as err:
            raise InvalidArgument(f"invalid change {text.strip()!r}: {err}") from err
        own_cmd = own_cmd or isinstance(step, Cmd)
    return config
