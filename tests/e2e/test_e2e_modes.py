"""Modes of namespaces, security options and runtimes: each word the stock client can say, honoured or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from e2e_cluster import View
from test_e2e_isolation import pid_of, status

CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


def sh(node: View, *args: str, script: str) -> str:
    return node("run", "--rm", *args, "busybox", "sh", "-c", script)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--ipc", "odd"), "invalid IPC mode: odd"),
        (("--pid", "container:nobody"), "No such container: nobody"),
        (("--network", "container:nobody"), "No such container: nobody"),
        (("--uts", "host", "--hostname", "x"), "conflicting options: hostname and the UTS mode"),
        (("--runtime", "odd"), "unknown or invalid runtime name: odd"),
        (("--isolation", "hyperv"), 'Invalid isolation: "hyperv" - linux only supports'),
        (("--annotation", "=x"), "invalid Annotations: the empty string is not permitted as an annotation key"),
        (("--security-opt", "odd=1"), 'invalid --security-opt 2: "odd=1"'),
        (("--security-opt", "no-new-privileges=odd"), 'invalid --security-opt 2: "no-new-privileges=odd"'),
        (("--cap-add", "odd"), 'invalid CapAdd: unknown capability: "CAP_ODD"'),
        (("--cap-drop", "odd"), 'invalid CapDrop: unknown capability: "CAP_ODD"'),
        (("--network", "host", "--sysctl", "net.core.somaxconn=7"), "not allowed in host network namespace"),
        (("--ipc", "host", "--sysctl", "kernel.msgmax=7"), "not allowed in host ipc namespace"),
        (("-u", "nemo"), "unable to find user nemo: no matching entries in passwd file"),
        (("-u", "nobody:nemo"), "unable to find group nemo: no matching entries in group file"),
        (("-u", "99999999999"), "uids and gids must be in range 0-2147483647"),
        (("--group-add", "nemo"), "unable to find group nemo: no matching entries in group file"),
        (("-w", "rel"), "the working directory 'rel' is invalid, it needs to be an absolute path"),
        (("-w", "/bin/busybox"), "is not a directory"),
        (("--log-driver", "odd"), 'plugin "odd" not found'),
    ],
)  # fmt: skip
def test_words_without_a_meaning_are_refused(node: View, args: tuple[str, ...], text: str) -> None:
    done = node.run("run", "--rm", *args, "busybox", "true")
    found = re.search(r"Error response from daemon: (.*)", done.stderr.decode())
    assert done.returncode and found and text in found[1], (done.returncode, done.stderr)


def test_a_broken_seccomp_profile_is_refused_and_leaves_nothing(node: View, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    odd = '{"defaultAction": "SCMP_ACT_ODD"}'
    for content, text in (('{"syscalls": [}', "seccomp profile"), (odd, "SCMP_ACT_ODD")):
        profile.write_text(content)
        done = node.run("run", "--rm", "--security-opt", f"seccomp={profile}", "busybox", "true")
        assert done.returncode and text in done.stderr.decode(), done.stderr
    assert node("ps", "-aq") == ""


def test_labels_and_profiles_that_have_no_effect_here_are_told_of(node: View) -> None:
    assert node.run("run", "--rm", "--security-opt", "label=disable", "busybox", "true").stderr == b""
    done = node.run("run", "--rm", "--security-opt", "label=level:s0:c1", "busybox", "true")
    assert done.returncode == 0 and b'Security option "label=level:s0:c1" discarded.' in done.stderr
    if "name=apparmor" not in node("info", "-f", "{{.SecurityOptions}}"):
        done = node.run("run", "--rm", "--security-opt", "apparmor=mine", "busybox", "true")
        assert done.returncode == 0 and b'Security option "apparmor=mine" discarded.' in done.stderr


def test_system_paths_are_bare_when_asked(node: View) -> None:
    masked = "grep -c ' /proc/' /proc/mounts; true"
    assert int(sh(node, script=masked)) > 3
    assert int(sh(node, "--security-opt", "systempaths=unconfined", script=masked)) <= 1


def test_names_of_host_and_domain(node: View) -> None:
    shown = sh(node, "-h", "web", "--domainname", "shop.test", script="hostname; cat /proc/sys/kernel/domainname")
    assert shown == "web\nshop.test"
    assert sh(node, "-h", "web", "--domainname", "shop.test", script="hostname -f") == "web.shop.test"
    assert sh(node, "--uts", "host", script="hostname") == "node-2"


def test_ipc_modes(node: View) -> None:
    assert "shm" in sh(node, script="grep /dev/shm /proc/mounts")
    assert sh(node, "--ipc", "none", script="grep -c /dev/shm /proc/mounts; true") == "0"
    node("run", "-d", "--name", "alone", "busybox", "sleep", "600")
    done = node.run("run", "--rm", "--ipc", "container:alone", "busybox", "true")
    assert done.returncode and b"non-shareable IPC (hint: use IpcMode:shareable for the donor container)" in done.stderr
    node("rm", "-f", "alone")


def test_cgroup_namespaces(node: View) -> None:
    lines = sh(node, "--cgroupns", "private", script="cat /proc/self/cgroup").splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {"/"}
    assert "/swarmlet-local/" in sh(node, "--cgroupns", "host", script="cat /proc/self/cgroup")
    ident = node("create", "busybox")
    assert node("inspect", "-f", "{{.HostConfig.CgroupnsMode}}", ident) == ("private" if CGROUP_V2 else "host")
    node("rm", ident)


def test_each_runtime_that_is_offered_runs_containers(node: View) -> None:
    offered = node.json("info", "-f", "{{json .Runtimes}}")
    default = node("info", "-f", "{{.DefaultRuntime}}")
    assert default in offered
    plain = node("create", "busybox")
    assert node("inspect", "-f", "{{.HostConfig.Runtime}}", plain) == default
    node("rm", plain)
    for name in offered:
        node("run", "-d", "--name", "ran", "--runtime", name, "-m", "64m", "busybox", "sleep", "600")
        assert node("exec", "ran", "echo", "inside") == "inside"
        assert "pts" in node("exec", "-t", "ran", "tty")
        node("update", "-m", "96m", "--memory-swap", "192m", "ran")
        node("pause", "ran")
        node("unpause", "ran")
        node("restart", "-t", "0", "ran")
        assert node("inspect", "-f", "{{.HostConfig.Runtime}} {{.State.Status}}", "ran") == f"{name} running"
        node("rm", "-f", "ran")


def test_without_remapping_userns_host_is_the_same(node: View) -> None:
    for args in ((), ("--userns", "host")):
        assert sh(node, *args, script="cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]
    assert "name=userns" not in node("info", "-f", "{{.SecurityOptions}}")


def test_all_capabilities_in_any_spelling(node: View) -> None:
    script = "grep CapEff /proc/self/status"
    every = int(sh(node, "--privileged", script=script).split()[1], 16)
    assert int(sh(node, "--cap-add", "all", script=script).split()[1], 16) == every
    less = int(sh(node, "--cap-add", "ALL", "--cap-drop", "cap_sys_admin", script=script).split()[1], 16)
    assert less == every & ~(1 << 21)
    assert int(sh(node, "--cap-drop", "ALL", "--cap-add", "Net_Raw", script=script).split()[1], 16) == 1 << 13
    node("run", "-d", "--name", "bounded", "--cap-drop", "ALL", "busybox", "sleep", "600")
    assert int(status(Path(f"/proc/{pid_of(node, 'bounded')}/status").read_text(), "CapBnd"), 16) == 0
    inside = node("exec", "--privileged", "bounded", "cat", "/proc/self/status")
    assert int(status(inside, "CapEff"), 16) == every
    node("rm", "-f", "bounded")
