"""A request in the one form that is stored and shown: the engine's own defaults written out."""

from __future__ import annotations

import posixpath

from msgspec.structs import replace

from swarmlet.model.container import ContainerCreate, EndpointSettings, HostConfig, LogConfig, RestartPolicy

SHM_BYTES = 64 << 20


def normalise(request: ContainerCreate, *, default_runtime: str, cgroupns_mode: str = "host") -> ContainerCreate:
    """cgroupns_mode: where none is asked for.

    Network "default" is the bridge, an absent log driver json-file, an absent restart policy "no", and so on."""
    host = request.host_config
    log = host.log_config if host.log_config.type else LogConfig(type="json-file", config=host.log_config.config)
    host = replace(
        host,
        network_mode="none" if request.network_disabled else _network(host.network_mode),
        log_config=log,
        restart_policy=host.restart_policy if host.restart_policy.name else RestartPolicy(name="no"),
        shm_size=host.shm_size or SHM_BYTES,
        ipc_mode=host.ipc_mode or "private",
        runtime=host.runtime or default_runtime,
        cgroupns_mode=host.cgroupns_mode or cgroupns_mode,
        memory_swap=_swap(host),
        memory_swappiness=None if host.memory_swappiness == -1 else host.memory_swappiness,
        # 0 and -1 both mean without limit.
        pids_limit=host.pids_limit if host.pids_limit and host.pids_limit > 0 else None,
    )
    given = {} if request.network_disabled else request.networking_config.endpoints_config
    endpoints = {_network(name): settings or EndpointSettings() for name, settings in given.items()}
    return replace(
        request,
        host_config=host,
        working_dir=_cleaned(request.working_dir),
        networking_config=replace(request.networking_config, endpoints_config=dict(endpoints)),
    )


def network_wishes(request: ContainerCreate) -> dict[str, EndpointSettings]:
    """Every network a normalised request asks for, the one of its mode included; {} when it shares another's."""
    mode = request.host_config.network_mode
    if mode.startswith("container:"):
        return {}
    given = request.networking_config.endpoints_config
    wishes = {name: settings or EndpointSettings() for name, settings in given.items()}
    return wishes if mode in wishes else {mode: EndpointSettings(), **wishes}


def _cleaned(folder: str) -> str:
    """Without what changes nothing about an absolute path (Go's filepath.Clean, which dockerd shows); "" stays."""
    return "/" + posixpath.normpath(folder).lstrip("/") if folder else ""


def _network(name: str) -> str:
    return "bridge" if name in ("", "default") else name


def _swap(host: HostConfig) -> int:
    """As much swap again as memory, unless said otherwise (moby adaptContainerSettings)."""
    return host.memory * 2 if host.memory > 0 and host.memory_swap == 0 else host.memory_swap
