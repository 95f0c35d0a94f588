"""What one machine with a stock kernel does: cgroup v2, units of systemd, reboots, NFS, AppArmor, ipvlan.

The tests of this file share the machine; each takes away what it makes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from booted_hosts import eventually
from booted_site import IMAGE
from kernel_hosts import PATIENCE_S, Guest, open_guests
from virtual_hosts import needs_virtual_hosts

pytestmark = needs_virtual_hosts


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    with open_guests(1) as (guest,):
        yield guest


@pytest.fixture
def guest(machine: Guest) -> Iterator[Guest]:
    yield machine
    if left := machine.docker("ps", "-aq").split():
        machine.docker("rm", "-f", "-v", *left)
    machine.docker("network", "prune", "-f")
    machine.docker("volume", "prune", "-f", "-a")


def inspect(guest: Guest, ident: str, form: str) -> str:
    return guest.docker("inspect", "-f", f"{{{{{form}}}}}", ident)


def ends(guest: Guest, ident: str) -> tuple[str, bool, int]:
    """Status, whether the kernel ended it for want of memory, exit code."""
    state = json.loads(guest.docker("inspect", "-f", "{{json .State}}", ident))
    return state["Status"], state["OOMKilled"], state["ExitCode"]


def cgroup_of(guest: Guest, ident: str) -> str:
    """The folder of the group that a container's first process is in."""
    pid = inspect(guest, ident, ".State.Pid")
    return "/sys/fs/cgroup" + guest.ssh(f"cat /proc/{pid}/cgroup").strip().removeprefix("0::")


def test_it_is_a_host_of_cgroup_v2_alone(guest: Guest) -> None:
    assert guest.ssh("stat -fc %T /sys/fs/cgroup").strip() == "cgroup2fs"
    assert guest.docker("info", "-f", "{{.CgroupVersion}} {{.CgroupDriver}} {{json .Warnings}}") == "2 cgroupfs null"


def test_the_kernel_ends_what_takes_too_much_memory(guest: Guest) -> None:
    hog = guest.docker("run", "-d", "-m", "32m", IMAGE, "sh", "-c", "x=a; while :; do x=$x$x; done")
    eventually(lambda: inspect(guest, hog, ".State.Status") == "exited", PATIENCE_S, "it ends")
    assert ends(guest, hog) == ("exited", True, 137)
    # Also a process of it that is not the first one: the container goes on, and says nothing of it once it ends well.
    child = guest.docker(
        "run", "-d", "-m", "32m", IMAGE, "sh", "-c", "sh -c 'x=a; while :; do x=$x$x; done'; echo $?; sleep 600"
    )
    eventually(lambda: "137" in guest.docker("logs", child), PATIENCE_S, "its child is ended")
    assert inspect(guest, child, ".State.Status") == "running"


def test_processes_are_limited_and_counted(guest: Guest) -> None:
    ident = guest.docker("run", "-d", "--pids-limit", "5", IMAGE, "sh", "-c",
                         "(for i in 1 2 3 4 5 6 7 8; do sleep 600 & done) 2>&1; sleep 600")
    eventually(lambda: "can't fork" in guest.docker("logs", ident), PATIENCE_S, "it may not fork")
    group = cgroup_of(guest, ident)
    assert guest.ssh(f"cat {group}/pids.max {group}/pids.events").split()[:2] == ["5", "max"]


def test_a_processors_share_is_what_was_said_and_statistics_say_so(guest: Guest) -> None:
    wish = ("-m", "64m", "--cpus", "0.2")
    busy = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>&1; while :; do :; done"
    ident = guest.docker("run", "-d", *wish, IMAGE, "sh", "-c", busy)
    group = cgroup_of(guest, ident)
    eventually(lambda: "20+0 records out" in guest.docker("logs", ident), PATIENCE_S, "it has its memory")

    read = f"cat /proc/uptime; grep -E 'usage_usec|nr_throttled ' {group}/cpu.stat"
    before, after = (guest.ssh(read).split(), time.sleep(10), guest.ssh(read).split())[::2]
    seconds = float(after[0]) - float(before[0])
    used = (int(after[3]) - int(before[3])) / 1e6
    assert 0.15 < used / seconds < 0.25
    assert int(after[5]) > int(before[5])
    told = json.loads(guest.docker("stats", "--no-stream", "--format", "json", ident))
    assert 10 < float(told["CPUPerc"].rstrip("%")) < 30
    amount, _, limit = told["MemUsage"].partition(" / ")
    assert limit == "64MiB" and 20 <= float(amount.removesuffix("MiB")) < 30
    assert told["PIDs"] == "1"


def test_an_agent_that_is_killed_comes_back_and_its_containers_did_not_notice(guest: Guest) -> None:
    ident = guest.docker("run", "-d", "-m", "32m", IMAGE, "sh", "-c",
                         "trap 'x=a; while :; do x=$x$x; done' USR1; i=0; while :; do echo $((i=i+1)); sleep 1; done")
    pid = inspect(guest, ident, ".State.Pid")
    born = guest.ssh(f"cut -d' ' -f22 /proc/{pid}/stat")
    main = "systemctl show -p MainPID --value swarmlet-agent"
    first = guest.ssh(main)
    guest.ssh("systemctl kill -s KILL --kill-who=main swarmlet-agent")
    eventually(lambda: guest.ssh(main).strip() not in ("0", first.strip()), PATIENCE_S, "another agent begins")
    guest.wait_ready()
    assert guest.ssh(f"cut -d' ' -f22 /proc/{pid}/stat") == born
    assert guest.docker("exec", ident, "echo", "inside") == "inside"
    count = len(guest.docker("logs", ident).split())
    eventually(lambda: len(guest.docker("logs", ident).split()) > count, PATIENCE_S, "it goes on")
    assert guest.docker("logs", ident).split()[:3] == ["1", "2", "3"]
    # The next agent sees how it ends.
    guest.docker("kill", "-s", "USR1", ident)
    eventually(lambda: ends(guest, ident) == ("exited", True, 137), PATIENCE_S, "the kernel ends it")


def test_after_a_reboot_containers_and_volumes_are_back(guest: Guest) -> None:
    boots = ("sh", "-c", "echo boot >> /data/boots; sleep 600")
    kept = ("--restart", "unless-stopped")
    guest.docker("run", "-d", "--name", "kept", *kept, "-m", "48m", "-v", "data:/data", IMAGE, *boots)
    guest.docker("run", "-d", "--name", "once", IMAGE, "sleep", "600")
    guest.docker("run", "-d", "--name", "ended", *kept, IMAGE, "sleep", "600")
    guest.docker("stop", "-t", "0", "ended")
    guest.reboot()
    eventually(lambda: inspect(guest, "kept", ".State.Status") == "running", PATIENCE_S, "it runs again")
    assert guest.docker("exec", "kept", "cat", "/data/boots").split() == ["boot", "boot"]
    assert guest.ssh(f"cat {cgroup_of(guest, 'kept')}/memory.max").strip() == str(48 << 20)
    assert [inspect(guest, name, ".State.Status") for name in ("once", "ended")] == ["exited", "exited"]
    assert guest.docker("exec", "kept", "cat", "/sys/fs/cgroup/memory.max").strip() == str(48 << 20)


def label(guest: Guest, *options: str) -> str:
    """The AppArmor profile that a container has which is run so."""
    return guest.docker("run", "--rm", *options, IMAGE, "cat", "/proc/self/attr/current")


def test_containers_have_dockers_apparmor_profile_unless_they_say_otherwise(guest: Guest) -> None:
    assert "name=apparmor" in guest.docker("info", "-f", "{{json .SecurityOptions}}")
    ident = guest.docker("run", "-d", "--cap-add", "SYS_ADMIN", IMAGE, "sleep", "600")
    told = guest.docker("exec", ident, "cat", "/proc/1/attr/current", "/proc/self/attr/current").splitlines()
    assert told == ["docker-default (enforce)"] * 2
    assert inspect(guest, ident, ".AppArmorProfile") == "docker-default"
    assert guest.docker("exec", "--privileged", ident, "cat", "/proc/self/attr/current") == told[0]
    # What the profile forbids and capabilities alone would allow.
    mount = ("mount", "-t", "tmpfs", "none", "/tmp")
    refused = guest.try_docker("exec", ident, *mount)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr
    free = ("--security-opt", "apparmor=unconfined")
    guest.docker("run", "--rm", "--cap-add", "SYS_ADMIN", *free, IMAGE, *mount)
    assert label(guest, *free) == label(guest, "--privileged") == "unconfined"
    unknown = guest.try_docker("run", "--rm", "--security-opt", "apparmor=nonesuch", IMAGE, "true")
    assert unknown.returncode != 0 and "no such file or directory" in unknown.stderr
    # Its signals reach it from outside, as a profile must allow.
    guest.docker("stop", "-t", "600", "--signal", "KILL", ident)
    assert inspect(guest, ident, ".State.ExitCode") == "137"


@pytest.fixture
def export(guest: Guest) -> Iterator[str]:
    """A folder that the machine exports to itself by NFS."""
    folder = "/srv/export"
    line = f"{folder} 127.0.0.0/8(rw,no_root_squash,no_subtree_check)"
    guest.ssh(f"mkdir -p {folder} && echo '{line}' > /etc/exports && systemctl start nfs-server")
    yield folder
    guest.ssh(f"systemctl stop nfs-server; rm -r {folder}")


def nfs_volume(guest: Guest, name: str, server: str, folder: str) -> None:
    options = ("type=nfs", f"o=addr={server},rw,nfsvers=4", f"device=:{folder}")
    guest.docker("volume", "create", name, *(word for option in options for word in ("-o", option)))


def test_a_volume_of_an_nfs_server_is_shared_and_goes_with_its_last_user(guest: Guest, export: str) -> None:
    nfs_volume(guest, "shared", "127.0.0.1", export)
    write = "echo written > /data/file; grep ' /data ' /proc/mounts"
    assert " nfs4 rw," in guest.docker("run", "--name", "one", "-v", "shared:/data", IMAGE, "sh", "-c", write)
    assert guest.docker("run", "--name", "two", "-v", "shared:/data:ro", IMAGE, "cat", "/data/file") == "written"
    assert guest.ssh(f"cat {export}/file") == "written\n"
    guest.docker("rm", "one", "two")
    assert " nfs4 " not in guest.ssh("cat /proc/mounts")
    guest.docker("volume", "rm", "shared")
    assert guest.ssh(f"cat {export}/file") == "written\n"  # the server's, not ours to delete


def test_a_volume_whose_server_does_not_serve_it_is_an_error_and_no_hang(guest: Guest, export: str) -> None:
    for name, server, folder, reason in (
        ("misspelt", "127.0.0.1", "/srv/nothing", "no such file or directory"),
        ("nobody", "10.77.0.99", export, "no route to host"),
        ("closed", "10.77.0.1", export, "connection refused"),
    ):
        nfs_volume(guest, name, server, folder)
        refused = guest.try_docker("run", "--rm", "-v", f"{name}:/data", IMAGE, "true")
        assert refused.returncode in (125, 127)
        assert f"failed to mount local volume: mount :{folder}:" in refused.stderr and reason in refused.stderr
    assert guest.docker("run", "--rm", IMAGE, "echo", "others go on") == "others go on"
