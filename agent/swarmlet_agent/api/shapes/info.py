"""Engine API SystemInfo and SystemVersion of one node."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from swarmlet.engine_api import versions
from swarmlet.model.times import rfc3339
from swarmlet_agent.engine.container import Container
from swarmlet_agent.images.endpoints import registry_config
from swarmlet_agent.images.proxies import shown_proxies
from swarmlet_agent.plugins import PLUGINS
from swarmlet_agent.runtime.cdi import FOLDERS as CDI_FOLDERS


class RuntimeFacts(Protocol):
    """What the runtime says of itself and of this host (runtime.host.RuntimeInfo)."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def commit(self) -> str: ...
    @property
    def conmon_version(self) -> str: ...
    @property
    def cgroup_version(self) -> str: ...
    @property
    def cgroup_driver(self) -> str: ...
    @property
    def seccomp(self) -> bool: ...
    @property
    def apparmor(self) -> bool: ...
    @property
    def init_path(self) -> str: ...
    @property
    def memory_limit(self) -> bool: ...
    @property
    def swap_limit(self) -> bool: ...
    @property
    def cpu_cfs(self) -> bool: ...
    @property
    def cpu_shares(self) -> bool: ...
    @property
    def cpuset(self) -> bool: ...
    @property
    def pids_limit(self) -> bool: ...
    @property
    def oom_kill_disable(self) -> bool: ...
    @property
    def runtimes(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What does not change while the agent runs. memory in bytes."""

    kernel: str
    system: str
    system_version: str
    architecture: str
    cpus: int
    memory_bytes: int
    #: Of the data folder, as dockerd names it.
    filesystem: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the agent was started with. node_id is the engine's id; release is our version.

    registries: SystemInfo.RegistryConfig. proxies: HttpProxy, HttpsProxy and NoProxy.
    """

    node_id: str
    data_dir: Path
    release: str
    started_at: int
    labels: tuple[str, ...] = ()
    userns_remap: bool = False
    selinux: bool = False
    registries: Mapping[str, Any] = field(default_factory=lambda: registry_config((), ()))
    proxies: Mapping[str, str] = field(default_factory=lambda: shown_proxies({}))
    #: (base, size), as configured.
    address_pools: tuple[tuple[str, int], ...] = ()


def read_host_facts(data_dir: Path) -> HostFacts:
    """Blocking: a few small files."""
    release = _os_release()
    return HostFacts(
        kernel=os.uname().release,
        system=release.get("PRETTY_NAME", "Linux"),
        system_version=release.get("VERSION_ID", ""),
        architecture=os.uname().machine,
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        filesystem=_filesystem(data_dir),
    )


def _filesystem(folder: Path) -> str:
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[2] == number:
            name = kind.split()[0]
            return {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs", "overlay": "overlayfs"}.get(name, name)
    return "<unknown>"


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def go_architecture(machine: str) -> str:
    """x86_64 -> amd64: the name Go programs and image platforms use."""
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(machine, machine)


def system_version(host: HostFacts, node: NodeFacts, runtime: RuntimeFacts) -> dict[str, Any]:
    """GET /version. GoVersion is what clients print; there is none to tell, so Python's stands there."""
    arch = go_architecture(host.architecture)
    details = {
        "ApiVersion": str(versions.NEWEST), "Arch": arch, "BuildTime": rfc3339(node.started_at),
        "Experimental": "false", "GitCommit": "", "GoVersion": f"python{platform.python_version()}",
        "KernelVersion": host.kernel, "MinAPIVersion": str(versions.OLDEST), "Os": "linux",
    }  # fmt: skip
    components = [
        {"Name": "Engine", "Version": node.release, "Details": details},
        {"Name": runtime.name, "Version": runtime.version, "Details": {"GitCommit": runtime.commit}},
        {"Name": "conmon", "Version": runtime.conmon_version, "Details": {"GitCommit": ""}},
    ]
    return {
        "Platform": {"Name": "Swarmlet"}, "Components": components, "Version": node.release,
        "ApiVersion": details["ApiVersion"], "MinAPIVersion": details["MinAPIVersion"],
        "GitCommit": "", "GoVersion": details["GoVersion"], "Os": "linux", "Arch": arch,
        "KernelVersion": host.kernel, "BuildTime": details["BuildTime"],
    }  # fmt: skip


def system_info(
    host: HostFacts,
    node: NodeFacts,
    runtime: RuntimeFacts,
    containers: Iterable[Container],
    *,
    images: int,
    listeners: int,
    swarm: Mapping[str, Any],
    now: int,
    version: tuple[int, int] = versions.NEWEST,
) -> dict[str, Any]:
    """GET /info, with what older API versions had besides."""
    shown: dict[str, Any] = {
        "ID": node.node_id,
        **_counts(containers),
        "Images": images,
        "Driver": "overlay2",
        "DriverStatus": [
            ["Backing Filesystem", host.filesystem], ["Supports d_type", "true"], ["Using metacopy", "false"],
            ["Native Overlay Diff", "true"], ["userxattr", "false"],
        ],
        "DockerRootDir": str(node.data_dir),
        "Plugins": {
            "Volume": PLUGINS["Volume"], "Network": PLUGINS["Network"], "Authorization": None, "Log": PLUGINS["Log"],
        },
        **_abilities(runtime),
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": -1,
        "NGoroutines": -1,
        "SystemTime": rfc3339(now),
        "LoggingDriver": "json-file",
        "NEventsListener": listeners,
        **_of_host(host),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": dict(node.registries),
        "GenericResources": None,
        **node.proxies,
        "Name": socket.gethostname(),
        "Labels": list(node.labels),
        "ExperimentalBuild": False,
        "ServerVersion": node.release,
        "Swarm": dict(swarm),
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "ContainerdCommit": _commit("", version),
        "RuncCommit": _commit(runtime.commit, version),
        "InitCommit": _commit("", version),
        "SecurityOptions": _security_options(node, runtime),
        "CDISpecDirs": [str(folder) for folder in CDI_FOLDERS],
        "Warnings": _warnings(runtime) or None,
    }  # fmt: skip
    if node.address_pools:
        shown["DefaultAddressPools"] = [{"Base": base, "Size": size} for base, size in node.address_pools]
    _fit_version(shown, version)
    return shown


def _counts(containers: Iterable[Container]) -> dict[str, int]:
    states = [container.state.status for container in containers]
    running, paused = sum(state in ("running", "restarting") for state in states), states.count("paused")
    return {
        "Containers": len(states), "ContainersRunning": running, "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
    }  # fmt: skip


def _abilities(runtime: RuntimeFacts) -> dict[str, Any]:
    """What the runtime, and the kernel below it, can do for containers."""
    return {
        "MemoryLimit": runtime.memory_limit,
        "SwapLimit": runtime.swap_limit,
        "CpuCfsPeriod": runtime.cpu_cfs,
        "CpuCfsQuota": runtime.cpu_cfs,
        "CPUShares": runtime.cpu_shares,
        "CPUSet": runtime.cpuset,
        "PidsLimit": runtime.pids_limit,
        "OomKillDisable": runtime.oom_kill_disable,
        "CgroupDriver": runtime.cgroup_driver,
        "CgroupVersion": runtime.cgroup_version,
        "Runtimes": {name: {"path": name} for name in runtime.runtimes},
        "DefaultRuntime": runtime.name,
        "InitBinary": Path(runtime.init_path).name,
    }


def _of_host(host: HostFacts) -> dict[str, Any]:
    return {
        "KernelVersion": host.kernel,
        "OperatingSystem": host.system,
        "OSVersion": host.system_version,
        "OSType": "linux",
        "Architecture": host.architecture,
        "NCPU": host.cpus,
        "MemTotal": host.memory_bytes,
    }


def _security_options(node: NodeFacts, runtime: RuntimeFacts) -> list[str]:
    """In dockerd's order."""
    return [
        f"name={name}"
        for name, there in (
            ("apparmor", runtime.apparmor),
            ("seccomp,profile=builtin", runtime.seccomp),
            ("selinux", node.selinux),
            ("userns", node.userns_remap),
            ("cgroupns", runtime.cgroup_version == "2"),
        )
        if there
    ]


def _fit_version(shown: dict[str, Any], version: tuple[int, int]) -> None:
    """Put in what only this API version and older or younger ones have."""
    if version < (1, 42):
        shown |= {"KernelMemory": False, "KernelMemoryTCP": False}
    if version < (1, 47):
        shown["RegistryConfig"] |= {
            "AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": [],
        }  # fmt: skip
    if version >= (1, 49):
        shown["FirewallBackend"] = {"Driver": "nftables"}
    if version >= (1, 50):
        shown["DiscoveredDevices"] = None
    else:
        shown |= {"BridgeNfIptables": True, "BridgeNfIp6tables": True}


def _commit(ident: str, version: tuple[int, int]) -> dict[str, str]:
    """Engine API Commit; until 1.48 with what was expected."""
    return {"ID": ident} if version >= (1, 49) else {"ID": ident, "Expected": ident}


def _warnings(runtime: RuntimeFacts) -> list[str]:
    return [
        f"WARNING: No {what} support"
        for what, there in (
            ("memory limit", runtime.memory_limit),
            ("swap limit", runtime.swap_limit),
            ("cpu cfs quota", runtime.cpu_cfs),
            ("cpu cfs period", runtime.cpu_cfs),
            ("cpu shares", runtime.cpu_shares),
            ("cpuset", runtime.cpuset),
            ("pids limit", runtime.pids_limit),
        )
        if not there
    ]
