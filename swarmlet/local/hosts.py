"""The machinery of simulated hosts: namespaces, cables, cgroups, processes. Needs root.

Every call looks first and changes only what differs, so that `up` can be repeated and `down` can finish what an
interrupted one began. Runs plain `ip` and `nsenter`: none of this is on a hot path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet.local.layout import ClusterLayout, HostLayout

CGROUPS = Path("/sys/fs/cgroup")
#: Processes that ignore SIGKILL this long are stuck in the kernel: give up and say so.
KILL_TIMEOUT_S = 20.0
IPV6 = Path("/proc/sys/net/ipv6")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def run(*argv: str, input_text: str | None = None) -> str:
    """A command's standard output; Internal with its standard error if it fails."""
    done = subprocess.run(argv, input=input_text or "", capture_output=True, text=True)
    if done.returncode:
        raise Internal(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def cgroup_hierarchies() -> list[Path]:
    """The hierarchies a node's processes are put into: the unified one, or the v1 ones that count and kill."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [CGROUPS / name for name in ("pids", "cpuacct", "freezer") if (CGROUPS / name).is_dir()]


def used_subnets() -> set[int]:
    """Third octets of 10.213.0.0/16 that this machine has routes for."""
    octets = set()
    for line in run("ip", "-4", "route", "show", "table", "all").splitlines():
        for word in line.split():
            if word.startswith("10.213."):
                octets.add(int(word.split(".")[2].split("/")[0]))
    return octets


def ensure_bridge(cluster: ClusterLayout) -> None:
    """The switch between the nodes; the machine itself has the .254 address and masquerades what leaves."""
    if not Path(f"/sys/class/net/{cluster.bridge}").exists():
        run("ip", "link", "add", cluster.bridge, "type", "bridge")
    run("ip", "addr", "replace", f"{cluster.gateway}/24", "dev", cluster.bridge)
    if IPV6.is_dir():
        (IPV6 / "conf" / cluster.bridge / "disable_ipv6").write_text("0")
        run("ip", "addr", "replace", f"{cluster.gateway6}/64", "dev", cluster.bridge, "nodad")
    run("ip", "link", "set", cluster.bridge, "up")
    IP_FORWARD.write_text("1")
    run(
        "nft", "-f", "-",
        input_text=f"""
table ip {cluster.nft_table}
delete table ip {cluster.nft_table}
table ip {cluster.nft_table} {{
    chain post {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {cluster.cidr} ip daddr != {cluster.cidr} oifname != "{cluster.bridge}" masquerade
    }}
}}
""",
    )


def ensure_host(cluster: ClusterLayout, host: HostLayout) -> None:
    """The node's folders, namespaces and cable."""
    host.data_dir.mkdir(parents=True, exist_ok=True)
    host.run_dir.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(host.netns):
        host.netns.unlink(missing_ok=True)  # `ip` was killed between making the file and mounting on it
        run("ip", "netns", "add", host.netns.name)
    if not os.path.ismount(host.utsns):
        host.utsns.touch()
        run("unshare", f"--uts={host.utsns}", "true")
    # By itself, as whoever was killed between the two has left a namespace without its name.
    run("nsenter", f"--uts={host.utsns}", "hostname", host.name)
    if not Path(f"/sys/class/net/{host.link}").exists():
        run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.netns.name)
    run("ip", "link", "set", host.link, "master", cluster.bridge, "up")
    also6 = f"addr replace {host.address6}/64 dev eth0 nodad\n" if IPV6.is_dir() else ""
    run(
        "ip", "-n", host.netns.name, "-batch", "-",
        input_text=f"link set lo up\naddr replace {host.address}/24 dev eth0\n{also6}link set eth0 up\n"
        f"route replace default via {cluster.gateway}\n",
    )


def enter_argv(host: HostLayout, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` inside the node's namespaces."""
    return ["nsenter", f"--net={host.netns}", f"--uts={host.utsns}", "--", *argv]


def join_cgroup(host: HostLayout, pid: int) -> None:
    """Put a process into the node's cgroup (a leaf: containers live beside it)."""
    for hierarchy in cgroup_hierarchies():
        folder = Path(f"{hierarchy}{host.cgroup}/system")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text(str(pid))


def host_pids(host: HostLayout) -> set[int]:
    """Every process of the node, containers included."""
    return set(_cgroup_pids(host.cgroup))


def kill_host(host: HostLayout) -> None:
    """SIGKILL every process of the node, the supervisor that would restart its agent first."""
    _kill_cgroup(host.cgroup, first=supervisor_pid(host))


def kill_cluster(cluster: ClusterLayout) -> None:
    """SIGKILL every process of every node."""
    for host in cluster.nodes:
        kill_host(host)
    _kill_cgroup(cluster.cgroup)


def supervisor_pid(host: HostLayout) -> int | None:
    """The pid of the loop that keeps the node's agent running, if it runs."""
    try:
        pid, started = (host.run_dir / "supervisor.pid").read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if start_time(int(pid)) == started else None


def start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot (proc(5), field 22): tells a recycled pid. "" if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def start_supervisor(host: HostLayout, agent: str) -> None:
    """Start the node's agent, and again whenever it ends: what systemd does on a real host."""
    if supervisor_pid(host) is not None:
        return
    script = 'while :; do "$0" --config "$1" >>"$2" 2>&1; sleep 0.1; done'
    process = subprocess.Popen(
        enter_argv(host, ["sh", "-c", script, agent, str(host.config_file), str(host.log_file)]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/", env=agent_environment(os.environ, host.data_dir.parent / "bytecode"),
        preexec_fn=lambda: _settle_supervisor(host, os.getpid()),
    )
    # It outlives this command on purpose; nobody will wait for it here.
    process.returncode = 0


def agent_environment(given: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Where Python is told to leave no byte code beside the source, the cluster keeps its own: agents and managers
    are killed and started here all the time, and half of a start without byte code is spent on compiling."""
    if not given.get("PYTHONDONTWRITEBYTECODE") or "PYTHONPYCACHEPREFIX" in given:
        return dict(given)
    kept = {name: value for name, value in given.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(cache)}


def _settle_supervisor(host: HostLayout, pid: int) -> None:
    """In the new process itself: whatever happens to the command that starts it, it is found and ended by `down`."""
    join_cgroup(host, pid)
    file = host.run_dir / "supervisor.pid"
    draft = file.with_suffix(".new")
    draft.write_text(f"{pid} {start_time(pid)}")
    draft.replace(file)


def set_cable(host: HostLayout, *, plugged: bool) -> None:
    """Cut the node off from all others, or connect it again."""
    run("ip", "link", "set", host.link, "up" if plugged else "down")


def remove_mounts_below(*folders: Path) -> None:
    """Unmount everything below these folders, innermost first."""
    for _ in range(3):  # a mount may lie over another of the same target
        targets = list(_mounts_below(folders))
        if not targets:
            return
        for target in targets:
            subprocess.run(["umount", "--lazy", target], capture_output=True, stdin=subprocess.DEVNULL)
    left = list(_mounts_below(folders))
    if left:
        raise Internal(f"cannot unmount {', '.join(left)}")


def remove_host_network(host: HostLayout) -> None:
    """The node's cable and namespaces."""
    if Path(f"/sys/class/net/{host.link}").exists():
        run("ip", "link", "delete", host.link)
    if os.path.ismount(host.netns):
        run("ip", "netns", "delete", host.netns.name)
    host.netns.unlink(missing_ok=True)


def remove_bridge(cluster: ClusterLayout) -> None:
    if Path(f"/sys/class/net/{cluster.bridge}").exists():
        run("ip", "link", "delete", cluster.bridge)
    run("nft", "-f", "-", input_text=f"table ip {cluster.nft_table}\ndelete table ip {cluster.nft_table}\n")


def remove_cgroups(cgroup: str) -> None:
    """All cgroups of this path, in every hierarchy; they must be empty of processes."""
    unified = (CGROUPS / "cgroup.controllers").exists()
    hierarchies = [CGROUPS] if unified else [folder for folder in CGROUPS.iterdir() if folder.is_dir()]
    deadline = time.monotonic() + KILL_TIMEOUT_S
    for hierarchy in hierarchies:
        top = Path(f"{hierarchy}{cgroup}")
        while top.is_dir():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # a dying process may still be leaving: looked at again below
                    os.rmdir(folder)
            if top.is_dir():
                if time.monotonic() > deadline:
                    raise Internal(f"cannot remove the cgroup {top}: processes are left in it")
                time.sleep(0.02)


def _kill_cgroup(cgroup: str, first: int | None = None) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT_S
    if first is not None:
        _kill(first)
    while pids := _cgroup_pids(cgroup):
        for pid in pids:
            _kill(pid)
        _thaw(cgroup)
        if time.monotonic() > deadline:
            raise Internal(f"these processes do not end: {' '.join(map(str, sorted(pids)))}")
        time.sleep(0.02)


def _thaw(cgroup: str) -> None:
    """Let paused processes die: version 1's freezer holds back even SIGKILL (version 2's does not)."""
    for folder, _, _ in os.walk(f"{CGROUPS}/freezer{cgroup}"):
        with contextlib.suppress(FileNotFoundError):
            Path(folder, "freezer.state").write_text("THAWED")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _cgroup_pids(cgroup: str) -> set[int]:
    pids: set[int] = set()
    for hierarchy in cgroup_hierarchies():
        for folder, _, _ in os.walk(f"{hierarchy}{cgroup}"):
            with contextlib.suppress(FileNotFoundError):
                text = Path(folder, "cgroup.procs").read_text()
                pids.update(int(word) for word in text.split() if word != "0")
    # Zombies whose parent has not looked yet stay listed on v1; they hold nothing.
    return {pid for pid in pids if start_time(pid)}


def _mounts_below(folders: Sequence[Path]) -> Iterator[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for line in reversed(lines):
        target = line.split()[4].encode().decode("unicode_escape")
        if any(target == str(folder) or target.startswith(f"{folder}/") for folder in folders):
            yield target
