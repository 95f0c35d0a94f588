"""What a container's configuration meant in older versions of the API (moby server, container_routes.go). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.common import Mount
from swarmlet.model.container import ContainerCreate, EndpointSettings, HostConfig
from swarmlet_agent.net.plan_endpoint import OPTION_SYSCTLS


def as_meant(request: ContainerCreate, version: ApiVersion) -> ContainerCreate:
    """The request in the terms of today. InvalidArgument for what that version did not have."""
    if version >= (1, 42):
        for mount in request.host_config.mounts:
            _check_options(mount)
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


def moved(request: ContainerCreate, version: ApiVersion) -> tuple[ContainerCreate, list[str]]:
    """The request with what was a container's and is an endpoint's now (its MAC address, its interface's sysctls) in
    that endpoint, and what to tell of it. InvalidArgument; Internal for sysctls of an interface since API 1.47."""
    request, warnings = _moved_mac(request, version)
    mode = request.host_config.network_mode
    found = {} if mode == "host" or mode.startswith("container:") else _of_interfaces(request.host_config.sysctls)
    if not found:
        return request, warnings
    first = next(iter(found))
    if version > (1, 46):
        raise Internal(
            f'interface specific sysctl setting "{first}" must be supplied using driver option '
            f"'{OPTION_SYSCTLS}'"
        )
    network, place = _place(request, version, f"unable to find a network for sysctl {first}: ")
    for name in found:
        if name.split(".")[3] != "eth0":
            raise Internal(
                f"unable to determine network endpoint for sysctl {name}, use driver option '{OPTION_SYSCTLS}' to set "
                "per-interface sysctls"
            )
    told = ",".join(found.values())
    warnings.append(f'Migrated sysctl "{",".join(found)}" to DriverOpts{{"{OPTION_SYSCTLS}":"{told}"}}.')
    given = place.driver_opts.get(OPTION_SYSCTLS, "")
    place = replace(
        place, driver_opts=place.driver_opts | {OPTION_SYSCTLS: ",".join(filter(None, (told, given)))}
    )
    kept = {name: value for name, value in request.host_config.sysctls.items() if name not in found}
    request = replace(request, host_config=replace(request.host_config, sysctls=kept))
    return _with_place(request, network, place), warnings


def _moved_mac(request: ContainerCreate, version: ApiVersion) -> tuple[ContainerCreate, list[str]]:
    mac, mode = request.mac_address, request.host_config.network_mode
    own_network = mode not in ("host", "none") and not mode.startswith("container:")
    if version < (1, 44):
        # Then it was the container's alone; the engine still takes it from there.
        if mac and not own_network:
            raise InvalidArgument("conflicting options: mac-address and the network mode")
        networks = request.networking_config
        places = {
            name: None if place is None else replace(place, mac_address="")
            for name, place in networks.endpoints_config.items()
        }
        return replace(request, networking_config=replace(networks, endpoints_config=places)), []
    if not mac:
        return request, []
    if own_network:
        network, place = _place(
            request, version, "unable to migrate container-wide MAC address to a specific network: "
        )
        if place.mac_address not in ("", mac):
            raise InvalidArgument(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or "
                "be left empty"
            )
        request = _with_place(request, network, replace(place, mac_address=mac))
    told = (
        "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
    )
    return replace(request, mac_address=""), [told]


def _of_interfaces(sysctls: Mapping[str, str]) -> dict[str, str]:
    """Name -> the endpoint's option, of those that name an interface ("net.ipv4.conf.eth0.log_martians")."""
    found = {}
    for name, value in sysctls.items():
        words = name.split(".", 4)
        if len(words) == 5 and words[0] == "net" and words[3].startswith("eth"):
            found[name] = f"net.{words[1]}.{words[2]}.IFNAME.{words[4]}={value}"
    return found


def _place(request: ContainerCreate, version: ApiVersion, doing: str) -> tuple[str, EndpointSettings]:
    """The network of the container's mode, and what is asked of it. InvalidArgument if that cannot be told."""
    places = request.networking_config.endpoints_config
    mode = request.host_config.network_mode
    names = ("", "default", "bridge") if mode in ("", "default", "bridge") else (mode,)
    if not places:
        return mode or "default", EndpointSettings()
    name = next((name for name in names if name in places), next(iter(places)) if version < (1, 44) else "")
    if not name:
        raise InvalidArgument(
            f"{doing}HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"
        )
    return name, places[name] or EndpointSettings()


def _with_place(request: ContainerCreate, network: str, place: EndpointSettings) -> ContainerCreate:
    networks = request.networking_config
    places = {**networks.endpoints_config, network: place}
    return replace(request, networking_config=replace(networks, endpoints_config=places))


def _check_options(mount: Mount) -> None:
    """InvalidArgument for options of another type: before API 1.42 they were passed over."""
    for kind, name, given in (
        ("volume", "VolumeOptions", mount.volume_options), ("bind", "BindOptions", mount.bind_options),
        ("tmpfs", "TmpfsOptions", mount.tmpfs_options), ("image", "ImageOptions", mount.image_options),
    ):  # fmt: skip
        if given is not None and mount.type != kind:
            raise InvalidArgument(f'{name} must not be specified on mount type "{mount.type}"')


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
            bind_options=None if options is None else replace(
                options, create_mountpoint=False, non_recursive=options.non_recursive and version >= (1, 40)
            ),
            volume_options=mount.volume_options if mount.type == "volume" else None,
            tmpfs_options=mount.tmpfs_options if mount.type == "tmpfs" else None,
        )  # fmt: skip
    return mount
