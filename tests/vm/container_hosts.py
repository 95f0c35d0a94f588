"""Booted hosts on this machine's kernel: containers of systemd-nspawn."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from booted_hosts import BRIDGE, NETWORK, BootedHost, HostLab, base_folder, eventually, run

from swarmlet.local import hosts

NSPAWN = Path("/run/systemd/nspawn")
#: How a nspawn ends whose guest wants to boot again: as systemd tells it (systemd-nspawn(1), --keep-unit).
REBOOTED = 133
#: cgroup v1 as nspawn gives it is read-only; on a real host systemd leaves it writable.
CGROUPS_UNIT = """\
[Unit]
DefaultDependencies=no
Before=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for each in /sys/fs/cgroup/*; do mount -o remount,bind,rw $each || true; done'
"""


class ContainerHost(BootedHost):
    """All its processes are in a cgroup of its own in every hierarchy, by which they are found and ended."""

    def __init__(self, lab: HostLab, number: int) -> None:
        super().__init__(lab, number)
        self.namespace = f"{lab.name}-{number}"
        self.cgroup = f"/{self.namespace}"
        self.disk = lab.folder / self.name
        self._switching = threading.RLock()

    def prepare(self) -> None:
        base_folder()

    def make(self) -> None:
        """An overlay of the base, but for /var/lib: containers' files there are overlays themselves, of real ones."""
        upper, work, state = (self._beside(name) for name in ("upper", "work", "state"))
        for folder in (self.disk, upper, work):
            folder.mkdir()
        layers = f"lowerdir={base_folder()},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", layers, self.namespace, str(self.disk))
        run("cp", "-a", str(self.disk / "var/lib"), str(state))
        run("mount", "--bind", str(state), str(self.disk / "var/lib"))
        self.furnish(self.disk)
        units = self.disk / "etc/systemd/system"
        (units / "writable-cgroups.service").write_text(CGROUPS_UNIT)
        (units / "basic.target.wants").mkdir(exist_ok=True)
        (units / "basic.target.wants/writable-cgroups.service").symlink_to("../writable-cgroups.service")

    def boot(self) -> subprocess.Popen[bytes]:
        self._plug()
        hierarchies = [f"{path}{self.cgroup}" for path in cgroup_mounts()]
        for path in hierarchies:
            os.makedirs(path, exist_ok=True)
            prepare_cpuset(Path(path))
        enter = " && ".join(f"echo $$ > {path}/cgroup.procs" for path in hierarchies)
        command = (
            f"{enter} && exec systemd-nspawn --quiet --keep-unit --register=no --directory={self.disk} --boot"
            f" --machine={self.namespace} --hostname={self.name}"
            f" --network-namespace-path=/run/netns/{self.namespace} --capability=all"
            " --system-call-filter='bpf keyctl @mount' --console=pipe"
        )
        with (self.lab.folder / f"{self.name}.console").open("ab") as console:
            process = subprocess.Popen(
                ["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                start_new_session=True, env=os.environ | {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
            )
        threading.Thread(target=self._boot_again_after, args=(process,), name=f"{self.name} boots", daemon=True).start()
        return process

    def _boot_again_after(self, process: subprocess.Popen[bytes]) -> None:
        """What its own `reboot` ends with is a nspawn that has ended: whoever started it starts it again."""
        if process.wait() != REBOOTED:
            return
        with self._switching:
            if self._process is process:  # and has not lost its power meanwhile
                self._end()
                self._process = self.boot()

    def _plug(self) -> None:
        inside = ("ip", "-n", self.namespace)
        run("ip", "netns", "add", self.namespace)
        switch = ("ip", "-n", self.lab.name, "link")
        # The same card at every boot: with another one the neighbours would look for the old one for half a minute.
        card = ("name", "eth0", "address", f"02:53:77:4c:00:{self.number:02x}", "netns", self.namespace)
        run(*switch, "add", self.port, "type", "veth", "peer", *card)
        run(*switch, "set", self.port, "master", BRIDGE, "up")
        run(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "route", "add", "default", "via", f"{NETWORK}.1")

    def dispose(self) -> None:
        for mounted in (self.disk / "var/lib", self.disk):
            if mounted.is_mount():
                run("umount", str(mounted))

    def _beside(self, what: str) -> Path:
        return self.lab.folder / f"{self.name}.{what}"

    def power_off(self) -> None:
        with self._switching:
            self._end()

    def _end(self) -> None:
        deadline = time.monotonic() + 30
        while pids := cgroup_pids(self.cgroup):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"processes of {self.name} do not end: {pids}"
            time.sleep(0.05)
        if self._process is not None:
            self._process.wait(30)
            self._process = None
        # The cable by name, since a namespace's own end is a matter of seconds.
        if self._has_port():
            run("ip", "-n", self.lab.name, "link", "delete", self.port)
        if Path("/run/netns", self.namespace).exists():
            run("ip", "netns", "delete", self.namespace)
        for mount in cgroup_mounts():
            remove_cgroup(Path(f"{mount}{self.cgroup}"))
        self._forget()

    def _forget(self) -> None:
        """What a nspawn that was killed leaves."""
        propagated = NSPAWN / "propagate" / self.namespace
        if propagated.exists():
            propagated.rmdir()
        if self.disk.exists():
            disk = self.disk.stat()
            (NSPAWN / "locks" / f"inode-{disk.st_dev}:{disk.st_ino}").unlink(missing_ok=True)

    def _has_port(self) -> bool:
        done = subprocess.run(["ip", "-n", self.lab.name, "link", "show", self.port], capture_output=True)
        return done.returncode == 0


def cgroup_mounts() -> list[Path]:
    """Every hierarchy, systemd's own included: a guest's systemd makes its groups there."""
    if (hosts.CGROUPS / "cgroup.controllers").exists():
        return [hosts.CGROUPS]
    mounted = (path for path in sorted(hosts.CGROUPS.iterdir()) if not path.is_symlink())
    return [path for path in mounted if (path / "cgroup.procs").exists()]


def prepare_cpuset(group: Path) -> None:
    """A group of version 1's cpuset takes no process before it has processors and memory (cgroup-v1/cpusets.rst)."""
    for level in (group.parent, group):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (level / name).exists() and not (level / name).read_text().strip():
                (level / name).write_text((level.parent / name).read_text())


def cgroup_pids(cgroup: str) -> set[int]:
    found: set[int] = set()
    for mount in cgroup_mounts():
        for folder, _, _ in os.walk(f"{mount}{cgroup}"):
            try:
                found |= {int(word) for word in Path(folder, "cgroup.procs").read_text().split()}
            except (FileNotFoundError, OSError):
                continue
    return {pid for pid in found - {0} if hosts.start_time(pid)}


def remove_cgroup(group: Path) -> None:
    """A process that has ended may keep its group busy for a moment more (cgroups(7))."""
    def is_gone(folder: str) -> bool:
        try:
            os.rmdir(folder)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            return False
        return True

    for folder, _, _ in os.walk(group, topdown=False):
        eventually(lambda folder=folder: is_gone(folder), 30, f"{folder} is empty")


def left_of(lab: str) -> list[str]:
    """What a lab that has been closed has left on this machine: namespaces, folders, cgroups, mounts."""
    folders = [Path("/run/netns"), Path("/var/tmp"), NSPAWN / "propagate", *cgroup_mounts()]
    found = [str(path) for folder in folders for path in (*folder.glob(lab), *folder.glob(f"{lab}-*"))]
    mounted = Path("/proc/self/mounts").read_text().splitlines()
    return found + [line for line in mounted if f"/{lab}/" in line or line.startswith(f"{lab}-")]
