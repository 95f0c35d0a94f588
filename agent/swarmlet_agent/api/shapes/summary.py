"""One line of `docker ps`: Engine API ContainerSummary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmlet.model.times import NS
from swarmlet_agent.api.shapes.durations import status_text
from swarmlet_agent.api.shapes.parts import endpoint, mount_points, split_port
from swarmlet_agent.engine.container import Container

#: Only inspect tells these.
_NOT_LISTED = {"Links": None, "Aliases": None, "DriverOpts": None, "DNSNames": None}


def container_summary(
    container: Container, image_name: str, now: int, sizes: tuple[int, int] | None = None, linked: Sequence[str] = ()
) -> dict[str, Any]:
    """image_name: the image as it should be named now. sizes: (own bytes, image's bytes), None if not asked for; a
    size of nothing is left out, as Go does. linked: its names by links, which dockerd sorts in among its own."""
    host = container.host
    shown: dict[str, Any] = {
        "Id": container.id,
        "Names": sorted([f"/{container.name}", *linked]),
        "Image": image_name,
        "ImageID": container.image_id,
        "Command": command_line(container.args),
        "Created": container.created_at // NS,
        "Ports": _ports(container),
        "Labels": container.config.labels,
        "State": container.state.status,
        "Status": status_text(container.state, now),
        "HostConfig": {"NetworkMode": host.network_mode or "bridge"},
        "NetworkSettings": {"Networks": {
            name: endpoint(each) | _NOT_LISTED for name, each in container.endpoints.items()
        }},
        "Mounts": mount_points(container.mounts, host.tmpfs),
    }
    if host.annotations:
        shown["HostConfig"]["Annotations"] = host.annotations
    if sizes is not None:
        given = {"SizeRw": sizes[0], "SizeRootFs": sum(sizes)}
        shown |= {name: size for name, size in given.items() if size}
    return shown


def command_line(args: tuple[str, ...]) -> str:
    """argv as Docker prints it: words with blanks in single quotes."""
    return " ".join([*args[:1], *(f"'{arg}'" if " " in arg else arg for arg in args[1:])])


def _ports(container: Container) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for port, bindings in container.ports.items():
        private, protocol = split_port(port)
        for each in bindings:
            shown.append(
                {"IP": each.host_ip, "PrivatePort": private, "PublicPort": int(each.host_port), "Type": protocol}
            )
        if not bindings:
            shown.append({"PrivatePort": private, "Type": protocol})
    return shown
