"""From a ContainerPlan to the OCI runtime's configuration (runtime-spec config.md), as Docker would make it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmlet.errors import NotSupported
from swarmlet_agent.runtime import caps, devices, resources, security
from swarmlet_agent.runtime.devices import Devices
from swarmlet_agent.runtime.facts import HostFacts
from swarmlet_agent.runtime.mounts import INIT_TARGET, oci_mounts, rootfs_propagation
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan

OCI_VERSION = "1.0.2"
#: crun takes the compiled filter from here instead of compiling the profile again.
BPF_ANNOTATION = "run.oci.seccomp_bpf_data"
_IPC_SYSCTLS = ("kernel.sem", "kernel.msg", "kernel.shm", "fs.mqueue.")


def build(plan: ContainerPlan, facts: HostFacts, found: Devices, *, shm_source: str = "") -> dict[str, Any]:
    """The content of config.json.

    found: the host's device nodes for this plan. shm_source: a host folder for /dev/shm, or "" for one of its own.
    InvalidArgument and NotSupported in Docker's words; nothing of the plan is silently left out.
    """
    host = plan.host
    security.refuse_unsupported(host)
    options = security.read_options(host.security_opt)
    given = caps.granted(host.cap_add, host.cap_drop, privileged=host.privileged, available=facts.available_caps)
    init_path = _init_path(plan, facts)
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(plan, facts, options, given, init=bool(init_path)),
        "root": {"path": str(plan.rootfs), "readonly": host.readonly_rootfs},
        "mounts": oci_mounts(
            plan, shm_source=shm_source, init_path=init_path, writable_cgroups=options.writable_cgroups,
            host_queues=facts.queues,
        ),
        "annotations": {**host.annotations, **plan.annotations},
        "linux": _linux(plan, facts, options, given, found),
    }
    if "uts" not in plan.joined:
        config["hostname"] = plan.hostname
    return config


def exec_process(
    plan: ExecPlan, container: dict[str, Any], available: frozenset[str], *, console: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """`process` of an exec. container: the running container's `process`, whose confinement it shares."""
    owned = container.get("capabilities", {}).get("bounding", [])
    given = [name for name in caps.NAMES if name in available] if plan.privileged else owned
    process: dict[str, Any] = {
        "terminal": plan.tty,
        "user": _user(plan.uid, plan.gid, plan.groups),
        "args": list(plan.args),
        "env": list(plan.env),
        "cwd": plan.cwd or "/",
        "capabilities": _capabilities(given, plan.uid),
        "noNewPrivileges": bool(container.get("noNewPrivileges")),
    }
    rows, columns = console if console != (0, 0) else plan.console_size
    if plan.tty and rows and columns:
        process["consoleSize"] = {"height": rows, "width": columns}
    # As dockerd has it, whose `exec --privileged` gives all capabilities and keeps AppArmor's profile.
    for key in ("apparmorProfile", "selinuxLabel", "rlimits", "oomScoreAdj"):
        if key in container:
            process[key] = container[key]
    return process


def _init_path(plan: ContainerPlan, facts: HostFacts) -> str:
    # With another's process namespace the program is not process 1, and there is nothing to reap.
    if not plan.host.init or "pid" in plan.joined:
        return ""
    if not facts.init_path:
        raise NotSupported(
            "--init is not possible on this host: no static init program was found (install tini or catatonit)"
        )
    return facts.init_path


def _process(
    plan: ContainerPlan, facts: HostFacts, options: security.SecurityOptions, given: Sequence[str], *, init: bool
) -> dict[str, Any]:
    process: dict[str, Any] = {
        "terminal": plan.config.tty,
        "user": _user(plan.uid, plan.gid, plan.groups),
        "args": [INIT_TARGET, "--", *plan.args] if init else list(plan.args),
        "env": list(plan.env),
        "cwd": plan.cwd or "/",
        "capabilities": _capabilities(given, plan.uid),
        "noNewPrivileges": options.no_new_privileges,
    }
    if limits := resources.rlimits(plan.host.ulimits, open_files=facts.open_files):
        process["rlimits"] = limits
    # Written only where it differs from what is inherited: lowering it needs CAP_SYS_RESOURCE.
    if plan.host.oom_score_adj != facts.oom_score_adj:
        process["oomScoreAdj"] = plan.host.oom_score_adj
    if profile := security.apparmor_profile(plan.host, options, facts):
        process["apparmorProfile"] = profile
    if plan.labels.process:
        process["selinuxLabel"] = plan.labels.process
    rows, columns = plan.host.console_size
    if plan.config.tty and rows and columns:
        process["consoleSize"] = {"height": rows, "width": columns}
    return process


def _user(uid: int, gid: int, groups: Sequence[int]) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": uid, "gid": gid}
    if groups:
        user["additionalGids"] = list(groups)
    return user


def _capabilities(given: Sequence[str], uid: int) -> dict[str, list[str]]:
    """Other users than root may gain them by a file's capabilities only; nothing is inheritable (CVE-2022-24769)."""
    held = list(given)
    return {"bounding": held, "effective": held, "permitted": held} if uid == 0 else {"bounding": held}


def _linux(
    plan: ContainerPlan, facts: HostFacts, options: security.SecurityOptions, given: Sequence[str], found: Devices
) -> dict[str, Any]:
    masked, read_only = security.paths(plan.host, facts.cpus)
    limits = resources.resources(
        plan.host, found.numbers, swap_accounting=facts.swap_accounting, cgroup_version=facts.cgroup_version
    )
    limits["devices"] = devices.rules(plan.host, found)
    linux: dict[str, Any] = {
        "namespaces": _namespaces(plan, facts),
        "cgroupsPath": plan.cgroup_path,
        "resources": limits,
        "maskedPaths": masked,
        "readonlyPaths": read_only,
    }
    if found.nodes:
        linux["devices"] = [devices.oci_device(node) for node in found.nodes]
    if sysctls := _sysctls(plan):
        linux["sysctl"] = sysctls
    if propagation := rootfs_propagation(plan.mounts):
        linux["rootfsPropagation"] = propagation
    if plan.labels.mount:
        linux["mountLabel"] = plan.labels.mount
    if (profile := security.seccomp_profile(plan.host, options, given, facts)) is not None:
        linux["seccomp"] = profile
    return linux


def _namespaces(plan: ContainerPlan, facts: HostFacts) -> list[dict[str, str]]:
    result = [{"type": "mount"}]
    if plan.ids is not None:
        result.append({"type": "user", "path": plan.ids.namespace})
    if plan.netns_path is not None:
        result.append({"type": "network", "path": plan.netns_path})
    for kind in ("pid", "ipc", "uts"):
        path = plan.joined.get(kind)
        if path is None:
            result.append({"type": kind})
        elif path:
            result.append({"type": kind, "path": path})
    mode = plan.host.cgroupns_mode or ("private" if facts.cgroup_version == 2 else "host")
    if mode == "private":
        result.append({"type": "cgroup"})
    return result


def _sysctls(plan: ContainerPlan) -> dict[str, str]:
    own_network = plan.netns_path is not None and not plan.host.network_mode.startswith("container:")
    result: dict[str, str] = {}
    if own_network and plan.ids is None:  # else these were set when the namespace was made
        # Docker 20.10 and later: without these, programs that are not root need capabilities for ports and ping.
        result["net.ipv4.ip_unprivileged_port_start"] = "0"
        result["net.ipv4.ping_group_range"] = "0 2147483647"
    if plan.config.domainname and "uts" not in plan.joined:
        result["kernel.domainname"] = plan.config.domainname
    for key, value in plan.host.sysctls.items():
        if key.startswith("net.") and plan.netns_path is None:
            raise NotSupported(f"sysctl '{key}' not allowed in host network namespace")
        if key.startswith(_IPC_SYSCTLS) and plan.joined.get("ipc") == "":
            raise NotSupported(f"sysctl '{key}' not allowed in host ipc namespace")
        result[key] = value
    return result
