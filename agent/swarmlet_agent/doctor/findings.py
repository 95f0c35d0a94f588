"""What `swarmlet doctor` says of a host, decided from what was looked up. Pure.

Each finding names what was looked at, what was found, and, unless all is well, what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from swarmlet_agent.net.firewall_check import remedy

GIB = 1 << 30
#: Linux 5.3 has pidfd_open(2), by which processes are waited for without being parents.
MIN_KERNEL = (5, 3)
MIN_FREE_BYTES, MIN_FREE_RATIO = 2 * GIB, 0.05
#: VXLAN's outer headers take 50 bytes of this (70 over IPv6); IPv6 needs 1280 inside.
MIN_MTU = 1350
NEEDED_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
NEEDED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
NEEDED_LINKS = {"bridge": "container networks", "veth": "container networks"}
WANTED_LINKS = {
    "vxlan": "networks across hosts", "macvlan": "macvlan networks", "ipvlan": "ipvlan networks",
    "wireguard": "encrypted networks",
}
PACKAGES = {"conmon": "conmon", "nft": "nftables", "ip": "iproute2", "mount": "mount"}


class Verdict(Enum):
    """WARNING: something works less well or not at all, but not Swarmlet as such."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """remedy: "" if and only if all is well."""

    verdict: Verdict
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What was looked up; ports are (protocol, number, what for)."""

    is_root: bool
    kernel: str  # uname -r
    namespaces: frozenset[str]
    overlay_error: str  # "" = one was mounted on the data folder's file system
    cgroup_version: int  # 0: none is mounted
    controllers: frozenset[str]
    seccomp: bool
    seccomp_profile: str  # "" if the configured file is there
    selinux: bool  # wanted by the settings
    selinux_error: str
    nftables_error: str
    services_error: str  # why nft does not take the rules of services, "" if it does
    dropping_chains: tuple[str, ...]
    links: frozenset[str]  # kinds of network interfaces that could be made
    programs: frozenset[str]
    runtimes: tuple[str, ...]
    init_program: str
    etcd: str  # path and version, or "" with the error below
    etcd_error: str
    taken_ports: tuple[tuple[str, int, str], ...]
    address: str
    mtu: int  # of the interface with the address; 0 if that is unknown
    clock_synchronised: bool
    data_dir: str
    free_bytes: int
    total_bytes: int
    forwarding: bool
    open_files: int  # hard limit


def examine(host: Host) -> list[Finding]:
    """In the order an administrator would go through them."""
    return [finding for check in _CHECKS for finding in check(host)]


def _kernel(host: Host) -> Iterable[Finding]:
    if not host.is_root:
        yield _problem("user", "not root", "run it as root: containers need namespaces, mounts and cgroups")
    found = re.match(r"(\d+)\.(\d+)", host.kernel)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    least = ".".join(map(str, MIN_KERNEL))
    yield _judge(version >= MIN_KERNEL, "kernel", host.kernel, f"Linux {least} or newer is needed")
    for name in NEEDED_NAMESPACES:
        if name not in host.namespaces:
            yield _problem("namespaces", f"{name} is missing", f"use a kernel that has {name} namespaces")
    if not host.seccomp:
        yield _warning("seccomp", "not in this kernel", "containers' system calls are not filtered: use another kernel")
    elif host.seccomp_profile:
        yield _warning(
            "seccomp profile", f"{host.seccomp_profile} is missing",
            "containers' system calls are not filtered: install golang-github-containers-common",
        )
    else:
        yield _ok("seccomp", "filters and profile are there")


def _selinux(host: Host) -> Iterable[Finding]:
    if host.selinux:
        yield _judge(
            not host.selinux_error, "SELinux", host.selinux_error or "containers have labels",
            "the agent does not start: apt install selinux-basics selinux-policy-default; selinux-activate; reboot; "
            "or take selinux_enabled out of the settings",
        )


def _cgroups(host: Host) -> Iterable[Finding]:
    if not host.cgroup_version:
        yield _problem("cgroups", "not mounted", "mount them at /sys/fs/cgroup (systemd does it at boot)")
        return
    missing = [name for name in NEEDED_CONTROLLERS if name not in host.controllers]
    yield _judge(
        not missing, "cgroups", f"version {host.cgroup_version}" + "".join(f", {name} is missing" for name in missing),
        "limits of what is missing are refused: add cgroup_enable=memory to the kernel's command line, or Delegate=yes "
        "to the agent's unit", Verdict.WARNING,
    )  # fmt: skip


def _storage(host: Host) -> Iterable[Finding]:
    yield _judge(
        not host.overlay_error, "overlayfs", host.overlay_error or f"works on {host.data_dir}",
        f"load overlay (modprobe overlay), and put data_dir ({host.data_dir}) on ext4 or on xfs made with ftype=1",
    )
    least = max(MIN_FREE_BYTES, int(host.total_bytes * MIN_FREE_RATIO))
    yield _judge(
        host.free_bytes >= least, "disk", f"{host.free_bytes / GIB:.1f} GiB free for {host.data_dir}",
        f"make room, at least {least / GIB:.1f} GiB: docker system prune, or a larger disk", Verdict.WARNING,
    )  # fmt: skip


def _programs(host: Host) -> Iterable[Finding]:
    missing = [package for program, package in PACKAGES.items() if program not in host.programs]
    if not host.runtimes:
        missing.append("crun")
    found = f"missing: {', '.join(missing)}" if missing else ", ".join((*PACKAGES, *host.runtimes))
    yield _judge(not missing, "programs", found, f"apt install {' '.join(missing)}")
    if not host.init_program:
        yield _warning("init for containers", "none", "docker run --init is refused: apt install tini")
    yield _judge(bool(host.etcd), "etcd", host.etcd or host.etcd_error, _ETCD_REMEDY, Verdict.WARNING)
    if host.open_files < 65536:
        yield _warning("open files", f"at most {host.open_files}", "set LimitNOFILE=1048576 in the agent's unit")


_ETCD_REMEDY = "only managers that keep the state themselves need it: apt install etcd-server there"


def _network(host: Host) -> Iterable[Finding]:
    yield _judge(
        not host.nftables_error, "nftables", host.nftables_error or "works",
        "load nf_tables and install nftables: modprobe nf_tables; apt install nftables",
    )
    if host.services_error and not host.nftables_error:
        yield _problem(
            "services", host.services_error,
            "virtual addresses and published ports of services need a newer nftables: 1.0.2 is known to do",
        )
    for kind, purpose in NEEDED_LINKS.items():
        if kind not in host.links:
            yield _problem(f"network: {kind}", "not in this kernel", f"{purpose} need it: modprobe {kind}")
    for kind, purpose in WANTED_LINKS.items():
        if kind not in host.links:
            yield _warning(f"network: {kind}", "not in this kernel", f"{purpose} are refused: modprobe {kind}")
    for chain in host.dropping_chains:
        yield _warning(
            "firewall", f"{chain} drops forwarded packets",
            f"published ports and ways out of containers fail: {remedy(chain)}",
        )
    if not host.forwarding:
        yield _warning("forwarding", "off", "the agent turns net.ipv4.ip_forward on: see that nothing turns it off")
    if not host.address:
        yield _problem("address", "no default route", "set advertise_addr in /etc/swarmlet/agent.toml")
    elif host.mtu:
        yield _judge(
            host.mtu >= MIN_MTU, "MTU", f"{host.mtu} at {host.address}",
            f"networks across hosts need {MIN_MTU}: raise it", Verdict.WARNING,
        )  # fmt: skip
    for protocol, number, purpose in host.taken_ports:
        yield _problem(
            f"port {number}/{protocol}", "taken by another program", f"end that, or choose another port for {purpose}"
        )


def _clock(host: Host) -> Iterable[Finding]:
    yield _judge(
        host.clock_synchronised, "clock", "synchronised" if host.clock_synchronised else "not synchronised",
        "certificates and logs need the time: apt install systemd-timesyncd (or chrony)", Verdict.WARNING,
    )  # fmt: skip


_CHECKS: tuple[Callable[[Host], Iterable[Finding]], ...] = (
    _kernel, _selinux, _cgroups, _storage, _programs, _network, _clock,
)  # fmt: skip


def _ok(what: str, found: str) -> Finding:
    return Finding(Verdict.OK, what, found)


def _warning(what: str, found: str, remedy: str) -> Finding:
    return Finding(Verdict.WARNING, what, found, remedy)


def _problem(what: str, found: str, remedy: str) -> Finding:
    return Finding(Verdict.PROBLEM, what, found, remedy)


def _judge(well: bool, what: str, found: str, remedy: str, otherwise: Verdict = Verdict.PROBLEM) -> Finding:
    return _ok(what, found) if well else Finding(otherwise, what, found, remedy)
