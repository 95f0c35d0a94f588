"""Looking a host up for `swarmlet doctor`: reads, and tries things in namespaces and folders of its own.

Nothing is changed on the host; what is tried is gone again when it returns.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from swarmlet.config import AgentSettings
from swarmlet.errors import InvalidArgument
from swarmlet_agent.doctor.findings import NEEDED_LINKS, PACKAGES, WANTED_LINKS, Host
from swarmlet_agent.line import default_address
from swarmlet_agent.net.balance import plan as balance
from swarmlet_agent.net.firewall_check import find_dropping
from swarmlet_agent.net.mesh import rules as mesh
from swarmlet_agent.runtime.facts import CGROUP_ROOT, find_init
from swarmlet_agent.runtime.host import PATH, RUNTIMES
from swarmlet_agent.runtime.selinux import read_policy

_TIMEOUT_S = 20.0
_VXLAN_PORT = 4789
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5
_SWARMLET = "swarmlet"


def look(settings: AgentSettings) -> Host:
    """Blocks for about a second."""
    data_dir = _existing(Path(settings.data_dir))
    disk = os.statvfs(data_dir)
    address = default_address(settings)
    etcd, etcd_error = _run([sys.executable, "-m", "swarmlet_manager.store.etcd.binary"])
    _, nftables_error = _run(["unshare", "-n", "nft", "add table inet swarmlet_doctor"])
    _, services_error = _run(["unshare", "-n", "nft", balance.ruleset(4) + mesh.ruleset(4)])
    return Host(
        is_root=os.geteuid() == 0,
        kernel=platform.release(),
        namespaces=frozenset(os.listdir("/proc/self/ns")),
        overlay_error=_try_overlay(data_dir),
        cgroup_version=_cgroup_version(),
        controllers=_controllers(),
        seccomp="\nSeccomp:" in Path("/proc/self/status").read_text(),
        seccomp_profile=_missing(settings.seccomp_profile),
        selinux=settings.selinux_enabled, selinux_error=_try_selinux(settings.selinux_enabled),
        nftables_error=nftables_error, services_error=services_error,
        dropping_chains=tuple(asyncio.run(find_dropping())),
        links=frozenset(kind for kind in (*NEEDED_LINKS, *WANTED_LINKS) if _can_make(kind)),
        programs=frozenset(name for name in PACKAGES if shutil.which(name, path=PATH)),
        runtimes=tuple(name for name in RUNTIMES if shutil.which(name, path=PATH)),
        init_program=find_init(),
        etcd=etcd, etcd_error=etcd_error,
        taken_ports=_taken((
            ("tcp", settings.node_port, "node_port"), ("tcp", settings.manager_port, "manager_port"),
            ("udp", _VXLAN_PORT, "networks across hosts"),
        )),
        address=address,
        mtu=_mtu(address),
        clock_synchronised=_clock_state() != _TIME_ERROR,
        data_dir=settings.data_dir,
        free_bytes=disk.f_bavail * disk.f_frsize,
        total_bytes=disk.f_blocks * disk.f_frsize,
        forwarding=Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1",
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )  # fmt: skip


def _run(argv: Sequence[str]) -> tuple[str, str]:
    """(its output, ""), or ("", why it failed)."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as err:
        return "", f"{err.filename} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"{argv[0]} did not end within {_TIMEOUT_S:.0f} s"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return "", said[0] if said else f"{argv[0]} failed with status {done.returncode}"
    return done.stdout.strip(), ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _try_overlay(folder: Path) -> str:
    """Mount one there, in a mount namespace that ends with the try."""
    try:
        with tempfile.TemporaryDirectory(prefix=".swarmlet-doctor-", dir=folder) as place:
            for part in ("lower", "upper", "work", "merged"):
                (Path(place) / part).mkdir()
            options = ",".join(f"{key}dir={place}/{key}" for key in ("lower", "upper", "work"))
            return _run(["unshare", "-m", "mount", "-t", "overlay", "overlay", "-o", options, f"{place}/merged"])[1]
    except OSError as err:
        return f"{folder}: {err.strerror}"


def _try_selinux(wanted: bool) -> str:
    try:
        read_policy(wanted)
    except InvalidArgument as err:
        return str(err).removeprefix("selinux_enabled: ")
    return ""


def _can_make(kind: str) -> bool:
    """In a network namespace of its own; the kernel loads the module if it has one."""
    before, words = "", ""
    match kind:
        case "vxlan":
            words = "id 1 dstport 4789"
        case "veth":
            words = "peer name doctor1"
        case "macvlan" | "ipvlan":  # it needs an interface below it
            before = "ip link add name doctor1 type veth peer name doctor2 && "
    link = "link doctor1" if before else ""
    return not _run(["unshare", "-n", "sh", "-c", f"{before}ip link add name doctor0 {link} type {kind} {words}"])[1]


def _cgroup_version() -> int:
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return 2
    return 1 if CGROUP_ROOT.is_dir() and any(CGROUP_ROOT.iterdir()) else 0


def _controllers() -> frozenset[str]:
    v2 = CGROUP_ROOT / "cgroup.controllers"
    if v2.exists():
        return frozenset(v2.read_text().split())
    mounted = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return frozenset(word for _, _, kind, options, *_ in mounted if kind == "cgroup" for word in options.split(","))


def _missing(file: str) -> str:
    return file if file and not Path(file).is_file() else ""


def _taken(ports: Sequence[tuple[str, int, str]]) -> tuple[tuple[str, int, str], ...]:
    """Those that another program listens on; an agent or a manager of ours may."""
    found = []
    for protocol, number, purpose in ports:
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", number))
            except OSError:
                if not _is_ours(protocol, number):
                    found.append((protocol, number, purpose))
    return tuple(found)


def _is_ours(protocol: str, number: int) -> bool:
    """By ss(8): a socket of the kernel itself (VXLAN) has no process, one of ours a process of ours."""
    listed, _ = _run(["ss", "-Hnlp", f"--{protocol}", f"sport = :{number}"])
    return all(_SWARMLET in line or "users:" not in line for line in listed.splitlines())


def _mtu(address: str) -> int:
    listed, _ = _run(["ip", "-o", "-4", "addr", "show", "to", f"{address}/32"])
    words = listed.split()
    return int(Path(f"/sys/class/net/{words[1]}/mtu").read_text()) if len(words) > 1 else 0


def _clock_state() -> int:
    """adjtimex(2) with nothing to set; the structure is larger than any architecture's struct timex."""
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)))
