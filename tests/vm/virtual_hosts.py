"""Booted hosts that are virtual machines: their release's kernel, cgroup v2, a disk of their own.

The processor is emulated (TCG), since a virtual machine inside another seldom gets hardware's help: all takes five to
ten times as long. The kernel and its initial file system are taken from the image and started directly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from booted_hosts import BRIDGE, NETWORK, RELEASES, SUITE, BootedHost, base_image, leave_etcd_off, made_once, run

DISK, MEMORY_MB = "6G", 1024

needs_virtual_hosts = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the virtual machines are of x86-64, and their disks are filled by chroot"
)
#: What the initial file system needs to find the disk: all that Debian has in it takes its time to be looked through.
INITIAL_MODULES = ("virtio_pci", "virtio_blk", "ext4")
#: What each machine has files of its own in, and what it has of its own in place of the packages'.
FOLDERS, OWN_FILES = ("root/.ssh", "etc/systemd/network"), ("etc/hostname", "etc/machine-id")
NETWORK_UNIT = """\
[Match]
Name=eth0
[Network]
Address={address}/24
Gateway={network}.1
"""


class VirtualHost(BootedHost):
    #: By this machine's clock: on a busy one a virtual machine's own goes ten times slower.
    boot_s = 900.0
    #: Of the release, besides what every fresh host has.
    packages: tuple[str, ...] = RELEASES[SUITE].kernel
    #: Words on the kernel's command line.
    kernel_words = ""

    def prepare(self) -> None:
        self.base_disk()

    def make(self) -> None:
        base = self.base_disk()
        for name in ("vmlinuz", "initrd.img", "disk"):
            run("cp", "--sparse=always", str(base / name), str(self._file(name)))
        own = self.lab.folder / f"{self.name}.own"
        for folder in FOLDERS:
            (own / folder).mkdir(parents=True)
        self.furnish(own)
        put_onto(self._file("disk"), own)

    def furnish(self, root: Path) -> None:
        super().furnish(root)
        unit = NETWORK_UNIT.format(address=self.address, network=NETWORK)
        (root / "etc/systemd/network/10-eth0.network").write_text(unit)

    def release(self) -> str:
        """A name of what `install` installs."""
        return "bare"

    def install(self, root: Path) -> None:
        """What all machines of a kind have besides the packages."""

    def base_disk(self) -> Path:
        """A folder with the disk, the kernel and the initial file system that its machines begin with."""
        archive = base_image(*self.packages)
        recipe = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*_hosts.py")))
        folder = archive.with_name(f"{archive.stem}-disk-{self.release()}-{hashlib.sha256(recipe).hexdigest()[:10]}")
        if not folder.exists():
            for old in archive.parent.glob(f"{archive.stem}-disk-*"):
                shutil.rmtree(old)
        return made_once(folder, lambda partial: self._fill(partial, archive))

    def _fill(self, partial: Path, archive: Path) -> None:
        root = partial / "root"
        root.mkdir(parents=True)
        run("tar", "-xf", str(archive), "-C", str(root), timeout_s=300)
        leave_etcd_off(root)
        for name in OWN_FILES:
            (root / name).unlink()
        for name in FOLDERS:
            (root / name).mkdir(mode=0o700 if name == "root/.ssh" else 0o755, exist_ok=True)
        run("chroot", str(root), "systemctl", "enable", "systemd-networkd")
        # Nothing is to be had from outside, and all that begins by the clock takes time from what is looked at.
        run("chroot", str(root), "systemctl", "mask", "systemd-timesyncd", "apt-daily.timer", "apt-daily-upgrade.timer")
        self.install(root)
        (root / "etc/initramfs-tools/conf.d/modules").write_text("MODULES=list\n")
        (root / "etc/initramfs-tools/modules").write_text("\n".join(INITIAL_MODULES) + "\n")
        run("chroot", str(root), "update-initramfs", "-u", timeout_s=300)
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{name}-*")
            shutil.copy(found, partial / name)
        run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(partial / "disk"), DISK, timeout_s=300)
        shutil.rmtree(root)

    def boot(self) -> subprocess.Popen[bytes]:
        switch = ["ip", "-n", self.lab.name]
        run(*switch, "tuntap", "add", self.port, "mode", "tap")
        run(*switch, "link", "set", self.port, "master", BRIDGE, "up")
        argv = [
            # Its time is counted in instructions: where it gets less of a busy processor, its clocks go slower too, and
            # no watchdog in it barks.
            *self.lab.inside(), "qemu-system-x86_64", "-accel", "tcg,tb-size=256", "-icount", "shift=2,sleep=on",
            "-cpu", "max", "-m", str(MEMORY_MB), "-smp", "1", "-display", "none", "-monitor", "none",
            "-no-user-config", "-nodefaults",
            "-kernel", str(self._file("vmlinuz")), "-initrd", str(self._file("initrd.img")),
            "-append",
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 tsc=reliable no_timer_check mitigations=off quiet "
            + self.kernel_words,
            "-drive", f"file={self._file('disk')},if=virtio,format=raw,cache=unsafe",
            "-netdev", f"tap,id=net,ifname={self.port},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:77:00:{self.number:02x}",
            "-device", "virtio-rng-pci", "-serial", f"file:{self._file('console')}",
        ]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)

    def power_off(self) -> None:
        if self._process is None:
            return
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._process = None
        run("ip", "-n", self.lab.name, "link", "delete", self.port)

    def dispose(self) -> None:
        """Its disk is a file."""

    def _file(self, name: str) -> Path:
        return self.lab.folder / f"{self.name}.{name}"


def put_onto(disk: Path, tree: Path) -> None:
    """Files onto an ext4 disk, without mounting it: their folders are there, they are not."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    commands = "".join(f"write {path} /{path.relative_to(tree)}\n" for path in files)
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", str(disk)], input=commands, capture_output=True, text=True, timeout=60
    )
    complaints = done.stderr.splitlines()[1:]  # its first line names its release
    assert done.returncode == 0 and not complaints, f"{disk}: {complaints}"
