"""What a container's configuration meant in older versions of the API (moby server, container_routes.go). Pure."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import InvalidArgument
from swarmlet.model.common import Mount
from swarmlet.model.container import ContainerCreate, HostConfig


def as_meant(request: ContainerCreate, version: ApiVersion) -> ContainerCreate:
    """The request in the terms of today. InvalidArgument for what that version did not have."""
    if version >= (1, 48):
        return request
    host = _host(request.host_config, version)
    networks = request.networking_config
    if version < (1, 44):
        if len(networks.endpoints_config) > 1:
            names = ", ".join(networks.endpoints_config)
            raise InvalidArgument(f"Container cannot be created with multiple network endpoints: {names}")
        if request.healthcheck is not None:
            request = replace(request, healthcheck=replace(request.healthcheck, start_interval=0))
    endpoints = {
        name: None if settings is None else replace(settings, gw_priority=0)
        for name, settings in networks.endpoints_config.items()
    }
    return replace(request, host_config=host, networking_config=replace(networks, endpoints_config=endpoints))


def _host(host: HostConfig, version: ApiVersion) -> HostConfig:
    host = replace(host, mounts=tuple(_mount(mount, version) for mount in host.mounts))
    if version < (1, 43):
        host = replace(host, annotations={})
    if version < (1, 42):
        host = replace(host, console_size=(0, 0))
    if version < (1, 40) and not host.ipc_mode:
        host = replace(host, ipc_mode="shareable")
    return replace(host, auto_remove=False) if version < (1, 25) else host


def _mount(mount: Mount, version: ApiVersion) -> Mount:
    if mount.type == "image":
        raise InvalidArgument('Mount type "Image" needs API v1.48 or newer')
    if version < (1, 45) and mount.volume_options is not None and mount.volume_options.subpath:
        raise InvalidArgument("VolumeOptions.Subpath needs API v1.45 or newer")
    options = mount.bind_options
    if version < (1, 44) and mount.type == "bind" and options is not None and options.read_only_force_recursive:
        raise InvalidArgument("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    if version < (1, 42):
        # Options of another type were passed over.
        return replace(
            mount,
            bind_options=None if options is None or mount.type != "bind" else replace(
                options, create_mountpoint=False, non_recursive=options.non_recursive and version >= (1, 40)
            ),
            volume_options=mount.volume_options if mount.type == "volume" else None,
            tmpfs_options=mount.tmpfs_options if mount.type == "tmpfs" else None,
        )  # fmt: skip
    return mount
