"""The mounts of a container: Docker's own, then the engine's files, then what the user asked for. Pure."""

from __future__ import annotations

from typing import Any

from swarmlet_agent.runtime.types import ContainerPlan, MountPlan

DEFAULT_SHM_BYTES = 64 << 20
INIT_TARGET = "/sbin/docker-init"

_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"})
#: Words that take one of a tmpfs's defaults back.
_TMPFS_DEFAULTS = (("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"))
#: Stays writable under a read-only root.
_WRITABLE = frozenset({"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"})


def oci_mounts(
    plan: ContainerPlan, *, shm_source: str = "", init_path: str = "", writable_cgroups: bool = False,
    host_queues: bool = False,
) -> list[dict[str, Any]]:
    """`mounts`, in order. shm_source: a host folder for /dev/shm that several containers share, or "".

    host_queues: the host has its own mounted at /dev/mqueue.
    """
    wished = {mount.target.rstrip("/") or "/" for mount in plan.mounts}
    result = [
        mount
        for mount in _defaults(plan, shm_source, host_queues=host_queues)
        if mount["destination"] not in wished and not ("/dev" in wished and mount["destination"].startswith("/dev/"))
    ]
    for mount in result:
        target = mount["destination"]
        if plan.host.privileged or (writable_cgroups and target == "/sys/fs/cgroup"):
            mount["options"] = [option for option in mount["options"] if option != "ro"]
        elif plan.host.readonly_rootfs and target not in _WRITABLE and "ro" not in mount["options"]:
            mount["options"].append("ro")
    read_only = ["ro"] if plan.host.readonly_rootfs else []
    above: list[dict[str, Any]] = []
    for target, source in plan.files.items():
        if target in wished:
            continue
        file = _bind(str(source), target, ["rbind", "rprivate", *read_only])
        # On a mount of the user's, such as a volume at /etc, the file comes after it: it would be hidden.
        (above if any(_is_below(target, mount.target) for mount in plan.mounts) else result).append(file)
    if init_path:
        result.append(_bind(init_path, INIT_TARGET, ["bind", "ro", "rprivate"]))
    return [*result, *(_wished(mount) for mount in plan.mounts), *above]


def _is_below(target: str, folder: str) -> bool:
    return target.startswith(f"{folder.rstrip('/')}/")


def rootfs_propagation(mounts: tuple[MountPlan, ...]) -> str:
    """`linux.rootfsPropagation`: as open as the most open bind needs; "" for the runtime's default (private)."""
    words = {option for mount in mounts for option in mount.options}
    if words & {"shared", "rshared"}:
        return "shared"
    return "slave" if words & {"slave", "rslave"} else ""


def _bind(source: str, target: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _defaults(plan: ContainerPlan, shm_source: str, *, host_queues: bool) -> list[dict[str, Any]]:
    table = [
        ("/proc", "proc", "proc", "nosuid noexec nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        ("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
        ("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        ("/sys/fs/cgroup", "cgroup", "cgroup", "ro nosuid noexec nodev"),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
    ]
    result = [
        {"destination": target, "type": kind, "source": source, "options": options.split()}
        for target, kind, source, options in table
    ]
    if plan.ids is not None and plan.joined.get("ipc") == "":
        result.pop()  # the host's queues: only the root of the host's own namespace may mount them
        if host_queues:
            result.append(_bind("/dev/mqueue", "/dev/mqueue", ["rbind", "nosuid", "noexec", "nodev", "rprivate"]))
    if shm_source:
        result.append(_bind(shm_source, "/dev/shm", ["rbind", "nosuid", "noexec", "nodev", "rprivate"]))
    elif plan.host.ipc_mode != "none":
        size = plan.host.shm_size or DEFAULT_SHM_BYTES
        options = ["nosuid", "noexec", "nodev", "mode=1777", f"size={size}"]
        result.append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options})
    return result


def _wished(mount: MountPlan) -> dict[str, Any]:
    options = list(mount.options)
    if mount.type == "tmpfs":
        for default, opposite in _TMPFS_DEFAULTS:
            if default not in options and opposite not in options:
                options.append(default)
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
    if not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    if not _PROPAGATION & set(options):
        options.append("rprivate")
    return _bind(mount.source, mount.target, options)
