"""How containers are kept apart from the host and from each other, seen from inside and from the host's kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View, eventually

#: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
#: audit_write, setfcap: capability numbers of capabilities(7).
DEFAULT_CAPS = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))


def status(text: str, field: str) -> str:
    """A line of /proc/PID/status."""
    found = re.search(rf"(?m)^{field}:\s*(.*)$", text)
    assert found, text
    return found[1]


def start(view: View, *args: str, name: str = "box") -> str:
    """A container that stays; its id."""
    return view("run", "-d", "--name", name, *args, "busybox", "sleep", "600")


def cgroup_file(pid: int, controller: str, *names: str) -> str:
    """A file of the process's cgroup, by its v1 name or its v2 name: whichever this machine has."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            for root in (f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                for name in names:
                    file = Path(f"{root}{path}/{name}")
                    if file.exists():
                        return file.read_text().strip()
    raise LookupError(f"none of {names} for process {pid}")


def pid_of(node: View, name: str = "box") -> int:
    return int(node("inspect", "--format", "{{.State.Pid}}", name))


def test_every_namespace_is_the_containers_own(cluster: Cluster) -> None:
    node = cluster.node(1)
    start(node)
    start(node, name="other")
    kinds = ("pid", "mnt", "uts", "ipc", "net")
    agent = cluster.pid(1, "swarmlet-agent")

    def namespaces(pid: int) -> list[str]:
        return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds]

    one, other = namespaces(pid_of(node)), namespaces(pid_of(node, "other"))
    for pid in (agent, os.getpid()):
        assert not set(one) & set(namespaces(pid))
    assert not set(one) & set(other)
    # What the namespaces are for: its own process tree, name, and no way to see the host's.
    seen = node("exec", "box", "ps", "-o", "pid,args").splitlines()
    assert seen[1].split() == ["1", "sleep", "600"] and len(seen) == 3, seen
    assert node("exec", "box", "hostname") == node("inspect", "--format", "{{.Config.Hostname}}", "box")
    assert node("exec", "box", "ls", "/") != "\n".join(sorted(os.listdir("/")))


def test_namespaces_are_shared_when_asked(cluster: Cluster) -> None:
    node = cluster.node(1)
    start(node, "--ipc", "shareable")
    inside = ("--pid", "container:box", "--ipc", "container:box", "--network", "container:box")
    script = "ps; readlink /proc/self/ns/ipc; readlink /proc/self/ns/net"
    shared = node("run", "--rm", *inside, "busybox", "sh", "-c", script)
    assert "sleep 600" in shared
    for kind in ("ipc", "net"):
        assert os.readlink(f"/proc/{pid_of(node)}/ns/{kind}") in shared
    hosts = node("run", "--rm", "--pid", "host", "--uts", "host", "busybox", "sh", "-c", "hostname; ps")
    assert hosts.splitlines()[0] == "node-1" and "swarmlet-agent" in hosts


def test_the_default_profile_is_dockers(view: View) -> None:
    shown = view("run", "--rm", "busybox", "cat", "/proc/self/status")
    for field in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status(shown, field), 16) == DEFAULT_CAPS, shown
    assert int(status(shown, "CapInh"), 16) == 0
    assert status(shown, "Seccomp") == "2"
    user = view("run", "--rm", "-u", "1000", "busybox", "cat", "/proc/self/status")
    assert int(status(user, "CapEff"), 16) == 0 and int(status(user, "CapBnd"), 16) == DEFAULT_CAPS


def test_forbidden_system_calls_are_refused(view: View) -> None:
    done = view.run("run", "--rm", "busybox", "unshare", "-m", "true")
    assert done.returncode != 0 and b"not permitted" in done.stderr
    # A user namespace needs no capability: only the filter stands against it.
    done = view.run("run", "--rm", "-u", "1000", "busybox", "unshare", "-U", "true")
    assert done.returncode != 0 and b"not permitted" in done.stderr
    done = view.run("run", "--rm", "busybox", "mount", "-t", "tmpfs", "tmpfs", "/tmp")
    assert done.returncode != 0 and re.search(rb"not permitted|permission denied", done.stderr)
    loose = view("run", "--rm", "--security-opt", "seccomp=unconfined", "busybox", "cat", "/proc/self/status")
    assert status(loose, "Seccomp") == "0"


def test_a_seccomp_profile_of_ones_own_is_applied(cluster: Cluster, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW",'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    done = cluster.node(1).run(
        "run", "--rm", "--security-opt", f"seccomp={profile}", "busybox", "mkdir", "/made"
    )
    assert done.returncode == 1 and b"Operation not permitted" in done.stderr, done.stderr


def test_capabilities_are_added_dropped_and_refused(view: View) -> None:
    script = "grep CapEff /proc/self/status"

    def effective(*args: str) -> int:
        return int(view("run", "--rm", *args, "busybox", "sh", "-c", script).split()[1], 16)

    assert effective("--cap-drop", "CHOWN", "--cap-drop", "CAP_KILL") == DEFAULT_CAPS & ~(1 << 0 | 1 << 5)
    assert effective("--cap-add", "NET_ADMIN") == DEFAULT_CAPS | 1 << 12
    assert effective("--cap-drop", "ALL") == 0
    assert effective("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE") == 1 << 10
    done = view.run("run", "--rm", "--cap-drop", "CHOWN", "busybox", "chown", "1", "/tmp")
    assert done.returncode == 1 and b"Operation not permitted" in done.stderr
    done = view.run("run", "--rm", "--cap-add", "FLYING", "busybox", "true")
    assert done.returncode == 125 and b"FLYING" in done.stderr


def test_no_new_privileges_is_set_when_asked(view: View) -> None:
    script = ("busybox", "grep", "NoNewPrivs", "/proc/self/status")
    assert view("run", "--rm", *script).split() == ["NoNewPrivs:", "0"]
    assert view("run", "--rm", "--security-opt", "no-new-privileges", *script).split() == ["NoNewPrivs:", "1"]


def test_kernel_files_are_masked_or_read_only(view: View) -> None:
    assert view("run", "--rm", "busybox", "sh", "-c", "cat /proc/kcore /proc/keys /proc/timer_list | wc -c") == "0"
    listed = view.run("run", "--rm", "busybox", "ls", "/sys/firmware")
    assert listed.stdout == b""
    done = view.run("run", "--rm", "busybox", "sh", "-c", "echo x > /proc/sys/kernel/hostname")
    assert done.returncode != 0 and b"Read-only file system" in done.stderr, done.stderr
    for path in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"):
        shown = view.run("run", "--rm", "busybox", "grep", f" {path} ", "/proc/mounts")
        if Path(path).exists():
            assert " ro," in shown.stdout.decode(), path
    mounts = view("run", "--rm", "busybox", "cat", "/proc/mounts").splitlines()
    options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
    assert "ro" in options["/sys"] and {"nosuid", "nodev", "noexec"} <= set(options["/proc"])
    assert options["/dev/shm"][0] == "rw" and "noexec" in options["/dev/mqueue"]


def test_privileged_lifts_all_of_it(cluster: Cluster) -> None:
    node = cluster.node(1)
    shown = node(
        "run", "--rm", "--privileged", "busybox", "sh", "-c",
        "cat /proc/self/status; mount -t tmpfs tmpfs /tmp && echo mounted; grep ' /sys ' /proc/mounts; ls /dev",
    )  # fmt: skip
    own = status(Path(f"/proc/{cluster.pid(1, 'swarmlet-agent')}/status").read_text(), "CapBnd")
    assert int(status(shown, "CapEff"), 16) == int(own, 16)
    assert status(shown, "Seccomp") == "0" and "mounted" in shown and "sysfs rw" in shown
    assert {entry for entry in os.listdir("/dev") if entry.startswith("loop")} <= set(shown.split())


def test_the_usual_devices_are_there_and_no_others(view: View) -> None:
    listed = set(view("run", "--rm", "busybox", "ls", "/dev").split())
    assert listed == {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip
    made = view.run("run", "--rm", "busybox", "sh", "-c", "mknod /tmp/sda b 8 0 && dd if=/tmp/sda of=/dev/null count=1")
    assert made.returncode == 1 and b"Operation not permitted" in made.stderr
    script = "ls -l /dev/mine; echo x >/dev/mine"
    given = view("run", "--rm", "--device", "/dev/null:/dev/mine:rw", "busybox", "sh", "-c", script)
    assert given.startswith("c") and " 1,   3 " in given
    done = view.run("run", "--rm", "--device", "/dev/not-here", "busybox", "true")
    assert done.returncode in (125, 127) and b"/dev/not-here" in done.stderr


# --- limits


def test_running_out_of_memory_kills_and_says_so(view: View) -> None:
    eat = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
    done = view.run("run", "--name", "hungry", "-m", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", eat)
    assert done.returncode == 137, done.stderr
    state = view.json("inspect", "hungry")[0]["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    view("run", "--name", "frugal", "-m", "16m", "busybox", "true")
    assert view.json("inspect", "frugal")[0]["State"]["OOMKilled"] is False


def test_limits_are_in_the_kernels_books(cluster: Cluster) -> None:
    node = cluster.node(2)
    start(
        node, "-m", "64m", "--memory-reservation", "32m", "--pids-limit", "40", "--cpus", "0.5", "--cpu-shares", "512",
        "--cpuset-cpus", "0",
    )  # fmt: skip
    pid = pid_of(node)
    assert cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert cgroup_file(pid, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 << 20)
    assert cgroup_file(pid, "pids", "pids.max") == "40"
    quota = cgroup_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()
    assert quota in (["50000"], ["50000", "100000"])
    assert cgroup_file(pid, "cpu", "cpu.shares", "cpu.weight") in ("512", "20")
    assert cgroup_file(pid, "cpuset", "cpuset.cpus") == "0"
    assert "/swarmlet-local/" in Path(f"/proc/{pid}/cgroup").read_text()

    node("update", "-m", "96m", "--memory-swap", "96m", "--cpus", "1", "--pids-limit", "60", "box")
    assert cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(96 << 20)
    assert cgroup_file(pid, "pids", "pids.max") == "60"
    shown = node.json("inspect", "box")[0]["HostConfig"]
    assert (shown["Memory"], shown["NanoCpus"], shown["PidsLimit"]) == (96 << 20, 10**9, 60)


def test_the_cgroup_goes_with_the_container(cluster: Cluster) -> None:
    node = cluster.node(2)
    ident = start(node)
    found = [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup")
             if cluster.host(2).cgroup in folder and ident in folder.rpartition("/")[2]]  # fmt: skip
    assert found
    node("rm", "-f", "box")
    eventually(lambda: not any(path.exists() for path in found))


def test_a_full_pids_limit_stops_forks_and_not_the_host(view: View) -> None:
    fork = "for i in $(seq 30); do sleep 5 & done; wait"
    done = view.run("run", "--rm", "--pids-limit", "10", "busybox", "sh", "-c", fork)
    assert done.returncode != 0 and b"can't fork" in done.stderr, done.stderr


def test_a_cpu_quota_holds_a_busy_container_back(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "busy", "--cpus", "0.2", "busybox", "sh", "-c", "while :; do :; done")
    pid = pid_of(node, "busy")

    def throttled() -> bool:
        shown = dict(line.split() for line in cgroup_file(pid, "cpu", "cpu.stat").splitlines())
        return int(shown["nr_throttled"]) > 3

    eventually(throttled)
    node("rm", "-f", "busy")


# --- files, users, settings


def test_a_read_only_root_takes_no_writes_but_tmpfs_and_volumes_do(view: View) -> None:
    done = view.run("run", "--rm", "--read-only", "busybox", "touch", "/x")
    assert done.returncode == 1 and b"Read-only file system" in done.stderr
    script = "touch /scratch/a /data/b && ls /scratch /data && df -k /scratch | tail -1"
    places = ("--tmpfs", "/scratch:size=1m", "-v", "/data")
    shown = view("run", "--rm", "--read-only", *places, "busybox", "sh", "-c", script)
    assert "a" in shown.split() and "b" in shown.split() and " 1024 " in shown
    fill = ("dd", "if=/dev/zero", "of=/t/x", "bs=1M", "count=2")
    full = view.run("run", "--rm", "--tmpfs", "/t:size=1m", "busybox", *fill)
    assert full.returncode == 1 and b"No space left" in full.stderr


def test_writes_stay_in_the_container(cluster: Cluster) -> None:
    node = cluster.node(1)
    start(node)
    node("exec", "box", "sh", "-c", "echo mine > /etc/passwd; rm /bin/vi; echo new > /new")
    script = "head -c 4 /etc/passwd; ls /bin/vi; test -e /new || echo clean"
    assert node("run", "--rm", "busybox", "sh", "-c", script) == "root/bin/vi\nclean"
    node("restart", "-t", "0", "box")
    assert node("exec", "box", "cat", "/etc/passwd", "/new") == "mine\nnew"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("nobody", "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"),
        ("www-data", "uid=33(www-data) gid=33(www-data) groups=33(www-data)"),
        ("1234:5678", "uid=1234 gid=5678 groups=5678"),
        ("1234", "uid=1234 gid=0(root) groups=0(root)"),
        ("nobody:www-data", "uid=65534(nobody) gid=33(www-data) groups=33(www-data)"),
    ],
)
def test_users_by_name_and_number(view: View, user: str, expected: str) -> None:
    assert view("run", "--rm", "-u", user, "busybox", "id") == expected


def test_unknown_users_are_refused_and_groups_are_added(view: View) -> None:
    done = view.run("run", "--rm", "-u", "nemo", "busybox", "true")
    assert done.returncode in (125, 126, 127) and b"unable to find user nemo" in done.stderr, done.stderr
    added = ("--group-add", "www-data", "--group-add", "4242")
    groups = view("run", "--rm", "-u", "nobody", *added, "busybox", "id", "-G")
    assert set(groups.split()) == {"65534", "33", "4242"}


def test_ulimits_sysctls_and_shared_memory(view: View) -> None:
    shown = view(
        "run", "--rm", "--ulimit", "nofile=123:456", "--ulimit", "core=0", "--sysctl", "net.core.somaxconn=77",
        "--sysctl", "kernel.shm_rmid_forced=1", "--shm-size", "2m", "--hostname", "named", "busybox", "sh", "-c",
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; "
        "df -k /dev/shm | tail -1; hostname",
    ).split()  # fmt: skip
    assert shown[:5] == ["123", "456", "0", "77", "1"] and "2048" in shown and shown[-1] == "named"
    done = view.run("run", "--rm", "--sysctl", "kernel.panic=1", "busybox", "true")
    assert done.returncode == 125 and b"kernel.panic" in done.stderr
    done = view.run("run", "--rm", "--network", "host", "--sysctl", "net.core.somaxconn=77", "busybox", "true")
    assert done.returncode == 125 and b"not allowed" in done.stderr, done.stderr


def test_with_init_the_command_is_not_process_1(cluster: Cluster) -> None:
    shown = cluster.node(1)("run", "--rm", "--init", "busybox", "ps", "-o", "pid,args").splitlines()
    first, second = shown[1].split(), shown[2].split()
    assert first[0] == "1" and "docker-init" in first[1] and second[1:] == ["ps", "-o", "pid,args"]
