"""Booted hosts that are virtual machines: Debian's kernel, cgroup v2, a disk of their own.

The processor is emulated (TCG), since a virtual machine inside another seldom gets hardware's help: all takes five to
ten times as long. The kernel and its initial file system are taken from the image and started directly.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from booted_hosts import BRIDGE, NETWORK, BootedHost, base_image, run

KERNEL_PACKAGE = "linux-image-cloud-amd64"
DISK, MEMORY_MB = "6G", 1024
NETWORK_UNIT = """\
[Match]
Name=eth0
[Network]
Address={address}/24
Gateway={network}.1
"""


class VirtualHost(BootedHost):
    def prepare(self) -> None:
        base_image(KERNEL_PACKAGE)

    def make(self) -> None:
        root = self.lab.folder / f"{self.name}.root"
        root.mkdir()
        run("tar", "-xf", str(base_image(KERNEL_PACKAGE)), "-C", str(root), timeout_s=300)
        self.furnish(root)
        unit = NETWORK_UNIT.format(address=self.address, network=NETWORK)
        (root / "etc/systemd/network/10-eth0.network").write_text(unit)
        run("chroot", str(root), "systemctl", "enable", "systemd-networkd")
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{name}-*")
            shutil.copy(found, self._file(name))
        run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(self._file("disk")), DISK, timeout_s=300)
        shutil.rmtree(root)

    def boot(self) -> subprocess.Popen[bytes]:
        switch = ["ip", "-n", self.lab.name]
        run(*switch, "tuntap", "add", self.port, "mode", "tap")
        run(*switch, "link", "set", self.port, "master", BRIDGE, "up")
        argv = [
            *self.lab.inside(), "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max",
            "-m", str(MEMORY_MB), "-smp", "1", "-display", "none", "-monitor", "none", "-no-user-config", "-nodefaults",
            "-kernel", str(self._file("vmlinuz")), "-initrd", str(self._file("initrd.img")),
            "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet",
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
