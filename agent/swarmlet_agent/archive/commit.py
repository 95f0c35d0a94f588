"""What image a commit makes: its configuration (moby daemon/commit.go, builder/dockerfile BuildFromConfig). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from swarmlet.model.container import ContainerConfig, ImageConfig
from swarmlet_agent.builder.changes import apply_changes
from swarmlet_agent.decide.merge import merge_health

_FIELDS = tuple(field.name for field in msgspec.structs.fields(ImageConfig))


def committed_config(
    container: ContainerConfig, override: ContainerConfig | None, changes: Sequence[str]
) -> ImageConfig:
    """The image's configuration: the client's (or the container's), after the changes, completed by the container's.

    changes: Dockerfile instructions. InvalidArgument for one that is none.
    """
    own = image_part(container)
    config = apply_changes(own if override is None else image_part(override), changes)
    return _completed(config, own)


def image_part(config: ContainerConfig) -> ImageConfig:
    """Those settings of a container that an image has too."""
    return ImageConfig(**{name: getattr(config, name) for name in _FIELDS})


def _completed(config: ImageConfig, own: ImageConfig) -> ImageConfig:
    cmd, entrypoint = config.cmd, config.entrypoint
    if not entrypoint:
        cmd = cmd or own.cmd
        if entrypoint is None:
            entrypoint = own.entrypoint
    given = {entry.partition("=")[0] for entry in config.env}
    return replace(
        config,
        user=config.user or own.user,
        cmd=cmd,
        entrypoint=entrypoint,
        env=(*config.env, *(entry for entry in own.env if entry.partition("=")[0] not in given)),
        exposed_ports={**own.exposed_ports, **config.exposed_ports},
        volumes={**own.volumes, **config.volumes},
        labels={**own.labels, **config.labels},
        working_dir=config.working_dir or own.working_dir,
        stop_signal=config.stop_signal or own.stop_signal,
        healthcheck=merge_health(config.healthcheck, own.healthcheck),
        shell=config.shell or own.shell,
    )
