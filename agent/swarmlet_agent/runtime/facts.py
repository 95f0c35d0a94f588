"""What this host can do, looked up once: the OCI configuration is decided from it and looks at nothing itself."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmlet_agent.decide.kernel import KernelLimits
from swarmlet_agent.runtime import apparmor, caps
from swarmlet_agent.runtime import seccomp as profiles
from swarmlet_agent.runtime.seccomp_default import DEFAULT_PROFILE, held_to_docker

#: The host's folders and files these facts come from.
CGROUP_ROOT = Path("/sys/fs/cgroup")
_MEMORY_NODES = Path("/sys/devices/system/node/online")
#: A program for `--init` must be static: it runs inside any image.
_INIT_PROGRAMS = (
    "/usr/bin/tini-static",
    "/usr/bin/catatonit",
    "/usr/libexec/podman/catatonit",
    "/usr/libexec/docker/docker-init",
    "/usr/bin/docker-init",
    "/usr/bin/tini",
    "/sbin/tini",
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """cgroup_version: 1 or 2. hybrid: version 1 with a cgroup2 mount beside it that has controllers.
    oom_score_adj: this process's own, which containers would inherit. init_path "": no static init program found.
    open_files: (soft, hard) limit of open files for containers, None if they may have what they inherit.
    """

    cgroup_version: int
    machine: str
    kernel: tuple[int, int]
    available_caps: frozenset[str]
    hybrid: bool = False
    seccomp: bool = True
    default_profile: Mapping[str, Any] | None = None
    apparmor: bool = False
    apparmor_profile: str = ""
    init_path: str = ""
    swap_accounting: bool = True
    oom_score_adj: int = 0
    open_files: tuple[int, int] | None = None
    cpus: int = 1
    #: Message queues are mounted at /dev/mqueue.
    queues: bool = False

    @property
    def seccomp_host(self) -> profiles.Host:
        return profiles.Host(self.machine, self.kernel)


def probe(
    profile: Path | None, *, cgroup_root: Path = CGROUP_ROOT, open_files: tuple[int, int] | None = None
) -> HostFacts:
    """Look. profile: the default seccomp profile; None or a missing file means there is none.

    InvalidArgument for a profile that is not one; OSError for one that cannot be read.
    """
    is_v2 = (cgroup_root / "cgroup.controllers").exists()
    status = _status()
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return HostFacts(
        cgroup_version=2 if is_v2 else 1,
        hybrid=not is_v2 and _unified_has_controllers(cgroup_root),
        machine=platform.machine(),
        kernel=(int(release[1]), int(release[2])) if release else (0, 0),
        available_caps=caps.from_mask(int(status.get("CapBnd", "0"), 16)),
        seccomp="Seccomp" in status,
        default_profile=_default_profile(profile) if profile is not None and profile.exists() else None,
        apparmor=apparmor.is_enabled(),
        apparmor_profile=apparmor.default_profile(),
        init_path=find_init(),
        open_files=open_files,
        swap_accounting=_swap_accounting(is_v2, cgroup_root),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        cpus=os.cpu_count() or 1,
        queues=os.path.ismount("/dev/mqueue"),
    )


def _default_profile(path: Path) -> dict[str, Any]:
    """An operator's own file is taken as it is."""
    profile = profiles.parse(path.read_bytes())
    return held_to_docker(profile) if path == DEFAULT_PROFILE else profile


def kernel_limits(cgroup_root: Path = CGROUP_ROOT) -> KernelLimits:
    """Limits that some kernels lack; blocking. A root cgroup has no weights: any child tells."""
    if (cgroup_root / "cgroup.controllers").exists():
        children = [path.parent for path in cgroup_root.glob("*/io.stat")]
        weights = ("io.weight", "io.bfq.weight")
        return KernelLimits(
            realtime=False, swappiness=False, oom_kill_disable=False, memory_nodes=_memory_nodes(),
            **_weights(children, weights, weights),
        )  # fmt: skip
    children = [path.parent for path in (cgroup_root / "blkio").glob("*/cgroup.procs")]
    realtime = (cgroup_root / "cpu" / "cpu.rt_runtime_us").exists()
    # Not BFQ's own files, which crun does not write to here.
    return KernelLimits(
        realtime=realtime, memory_nodes=_memory_nodes(),
        **_weights(children, ("blkio.weight",), ("blkio.weight_device",)),
    )  # fmt: skip


def _memory_nodes() -> str:
    """As the kernel lists them; "" where it has no notion of nodes."""
    try:
        return _MEMORY_NODES.read_text().strip()
    except FileNotFoundError:
        return ""


def _weights(children: list[Path], every: tuple[str, ...], single: tuple[str, ...]) -> dict[str, bool]:
    """Where there is no child to ask, they are supposed to be there: the runtime then says if they are not."""

    def has(names: tuple[str, ...]) -> bool:
        return not children or any((child / name).exists() for child in children for name in names)

    return {"io_weight": has(every), "io_weight_device": has(single)}


def find_init(candidates: tuple[str, ...] = _INIT_PROGRAMS) -> str:
    """The first static ELF program among the candidates, or ""."""
    return next((path for path in candidates if os.access(path, os.X_OK) and is_static(Path(path))), "")


def is_static(path: Path) -> bool:
    """True for a 64-bit little-endian ELF program without an interpreter (no PT_INTERP header)."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, index * size)[0] != 3 for index in range(len(table) // size))


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _unified_has_controllers(root: Path) -> bool:
    controllers = root / "unified" / "cgroup.controllers"
    return controllers.exists() and bool(controllers.read_text().strip())


def _swap_accounting(is_v2: bool, root: Path) -> bool:
    if not is_v2:
        return (root / "memory" / "memory.memsw.limit_in_bytes").exists()
    # The root cgroup has no memory.swap.max; any child does, where the kernel counts swap.
    return any(root.glob("*/memory.swap.max"))
