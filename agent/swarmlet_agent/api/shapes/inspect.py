"""The whole of a container: Engine API ContainerInspectResponse.

Our records leave defaults out; clients (the CLI's templates, docker-py, Ansible) expect every field of a
Go struct to be there, so the defaults are spelled out here with the null, "" or [] that dockerd answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.engine_api.versions import NEWEST, ApiVersion
from swarmlet.model.base import to_api
from swarmlet.model.container import ContainerConfig, HostConfig
from swarmlet.model.ids import short_id
from swarmlet.model.times import rfc3339
from swarmlet_agent.api.shapes.parts import endpoint, mount_points, port_map
from swarmlet_agent.engine.container import Container, ContainerState

_CONFIG_KEYS = frozenset(field.encode_name for field in msgspec.structs.fields(ContainerConfig))
_CONFIG_DEFAULTS: Mapping[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "",
    "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False,
    "Env": [], "Cmd": None, "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None,
    "OnBuild": None, "Labels": {},
}  # fmt: skip
#: Only there when set (`omitempty` in Go).
_CONFIG_OPTIONAL = (
    "ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout", "Shell",
)  # fmt: skip
_HOST_DEFAULTS: Mapping[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "NetworkMode": "bridge", "PortBindings": {},
    "AutoRemove": False, "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0],
    "CapAdd": None, "CapDrop": None, "CgroupnsMode": "", "Dns": None, "DnsOptions": None, "DnsSearch": None,
    "ExtraHosts": None, "GroupAdd": None, "IpcMode": "private", "Cgroup": "", "Links": None, "OomScoreAdj": 0,
    "PidMode": "", "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None,
    "UTSMode": "", "UsernsMode": "", "ShmSize": 64 << 20, "Runtime": "runc", "Isolation": "",
    "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
    "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [],
    "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [],
    "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "",
    "Devices": [], "DeviceCgroupRules": None, "DeviceRequests": None,
    "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": None, "OomKillDisable": None, "PidsLimit": None,
    "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
}  # fmt: skip
#: What Docker masks and makes read-only unless told otherwise (OCI default profile of moby).
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
#: Before this version Aliases had the container's own names too; docker-compose 1 looks for them there.
_ALIASES_ARE_ALL_NAMES = (1, 45)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_KERNEL_MEMORY_GONE = (1, 42)


def container_inspect(
    container: Container, *, exec_ids: Sequence[str] = (), sizes: tuple[int, int] | None = None,
    version: ApiVersion = NEWEST, folders: tuple[Path, Sequence[Path]] | None = None, apparmor: str = "",
) -> dict[str, Any]:
    """sizes: (own bytes, image's bytes), None if not asked for. folders: of its own changes, and of the layers below,
    highest first; None before it has any. apparmor: its profile's name."""
    shown: dict[str, Any] = {
        "Id": container.id,
        "Created": rfc3339(container.created_at),
        "Path": container.path,
        "Args": list(container.args[1:]),
        "State": state(container.state),
        "Image": container.image_id,
        "ResolvConfPath": container.files.get("/etc/resolv.conf", ""),
        "HostnamePath": container.files.get("/etc/hostname", ""),
        "HostsPath": container.files.get("/etc/hosts", ""),
        "LogPath": container.log_path,
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": container.driver,
        "Platform": container.platform,
        "MountLabel": container.selinux.mount if container.selinux is not None else "",
        "ProcessLabel": container.selinux.process if container.selinux is not None else "",
        "AppArmorProfile": apparmor,
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": host_config(container.host),
        "GraphDriver": graph_driver(container, folders),
        "Mounts": mount_points(container.mounts, container.host.tmpfs),
        "Config": config(container.config),
        "NetworkSettings": network_settings(container, version),
    }
    if version < _KERNEL_MEMORY_GONE:
        shown["HostConfig"] |= {"KernelMemory": 0, "KernelMemoryTCP": 0}
    if sizes is not None:
        shown["SizeRw"], shown["SizeRootFs"] = sizes[0], sum(sizes)
    return shown


def graph_driver(container: Container, folders: tuple[Path, Sequence[Path]] | None) -> dict[str, Any]:
    """Engine API DriverData, as the overlay2 driver tells it."""
    if folders is None:
        return {"Data": None, "Name": container.driver}
    upper, below = folders
    data = {
        "ID": container.id, "LowerDir": ":".join(map(str, below)), "MergedDir": str(upper.with_name("merged")),
        "UpperDir": str(upper), "WorkDir": str(upper.with_name("work")),
    }  # fmt: skip
    return {"Data": data, "Name": container.driver}


def state(value: ContainerState) -> dict[str, Any]:
    """Engine API ContainerState."""
    shown: dict[str, Any] = {
        "Status": value.status,
        "Running": value.status in ("running", "paused", "restarting"),
        "Paused": value.status == "paused",
        "Restarting": value.status == "restarting",
        "OOMKilled": value.oom_killed,
        "Dead": value.status == "dead",
        "Pid": value.pid,
        "ExitCode": value.exit_code,
        "Error": value.error,
        "StartedAt": rfc3339(value.started_at),
        "FinishedAt": rfc3339(value.finished_at),
    }
    if (health := value.health) is not None:
        shown["Health"] = {
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": [
                {
                    "Start": rfc3339(each.start), "End": rfc3339(each.end),
                    "ExitCode": each.exit_code, "Output": each.output,
                }
                for each in health.log
            ],
        }  # fmt: skip
    return shown


def config(value: ContainerConfig) -> dict[str, Any]:
    """Engine API ContainerConfig; also of a create request, whose other half is left out."""
    given = {key: item for key, item in to_api(value).items() if key in _CONFIG_KEYS}
    unknown = given.keys() - _CONFIG_DEFAULTS.keys() - set(_CONFIG_OPTIONAL)
    if unknown:
        raise KeyError(f"fields without a default: {sorted(unknown)}")
    return {**_CONFIG_DEFAULTS, **given}


def host_config(value: HostConfig) -> dict[str, Any]:
    """Engine API HostConfig."""
    shown = {**_HOST_DEFAULTS, **to_api(value)}
    shown["LogConfig"] = {"Type": value.log_config.type or "json-file", "Config": value.log_config.config}
    shown["RestartPolicy"] = {
        "Name": value.restart_policy.name or "no",
        "MaximumRetryCount": value.restart_policy.maximum_retry_count,
    }
    shown["PortBindings"] = {
        port: None if bindings is None else [{"HostIp": each.host_ip, "HostPort": each.host_port} for each in bindings]
        for port, bindings in value.port_bindings.items()
    }
    shown["Devices"] = [
        {
            "PathOnHost": each.path_on_host,
            "PathInContainer": each.path_in_container,
            "CgroupPermissions": each.cgroup_permissions,
        }
        for each in value.devices
    ]
    shown["Ulimits"] = [{"Name": each.name, "Soft": each.soft, "Hard": each.hard} for each in value.ulimits]
    if value.mounts:
        shown["Mounts"] = [{"Type": each.type, **to_api(each)} for each in value.mounts]
    # A privileged container has nothing masked.
    shown["MaskedPaths"] = _paths(value.masked_paths, _MASKED, value.privileged)
    shown["ReadonlyPaths"] = _paths(value.readonly_paths, _READONLY, value.privileged)
    return shown


def _paths(given: tuple[str, ...] | None, default: tuple[str, ...], privileged: bool) -> list[str] | None:
    if given is not None:
        return list(given)
    return None if privileged else list(default)


def network_settings(container: Container, version: ApiVersion = NEWEST) -> dict[str, Any]:
    """Engine API NetworkSettings, with the fields of the default bridge that older clients read."""
    bridge = container.endpoints.get("bridge")
    legacy = endpoint(bridge) if bridge is not None else {}
    shown: dict[str, Any] = {
        "Bridge": "",
        "SandboxID": container.sandbox_id,
        "SandboxKey": container.netns_path,
        "Ports": port_map(container.ports),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
    }
    for name in ("EndpointID", "Gateway", "GlobalIPv6Address", "IPAddress", "IPv6Gateway", "MacAddress"):
        shown[name] = legacy.get(name, "")
    for name in ("GlobalIPv6PrefixLen", "IPPrefixLen"):
        shown[name] = legacy.get(name, 0)
    shown["Networks"] = {name: endpoint(each) for name, each in container.endpoints.items()}
    if version < _ALIASES_ARE_ALL_NAMES:
        for name, place in shown["Networks"].items():
            if name not in ("bridge", "host", "none"):
                names = [*(place["Aliases"] or ()), short_id(container.id), container.config.hostname]
                place["Aliases"] = [*dict.fromkeys(filter(None, names))]
    return shown
