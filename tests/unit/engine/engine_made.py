"""What the tests of the engine ask for."""

from __future__ import annotations

from swarmlet.model.container import ContainerCreate, HostConfig

LONG = ("sleep", "1000")


def request(*cmd: str, **host: object) -> ContainerCreate:
    return ContainerCreate(image="busybox", cmd=cmd or LONG, host_config=HostConfig(**host))  # type: ignore[arg-type]
