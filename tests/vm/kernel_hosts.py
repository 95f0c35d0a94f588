"""Virtual machines that have Swarmlet already: what a stock kernel does is looked at, not the playbooks.

The release is installed into the disk before the machine boots, at this machine's speed: a tree with its bytecode, and
the unit and the settings that the playbooks write.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from booted_hosts import RELEASES, SUITE, BootedHost, HostLab, eventually, remove_what_killed_runs_left, run
from booted_site import IMAGE, ROOT, wheelhouse
from virtual_hosts import VirtualHost

from swarmlet.demo_image import busybox_archive
from swarmlet.local.images import find_busybox

WHEELHOUSE = ROOT / "ansible/roles/wheelhouse/files/wheelhouse.py"
UNIT = ROOT / "ansible/roles/agent/templates/swarmlet-agent.service.j2"
PREFIX = "opt/swarmlet/current"
#: What the unit's template asks for (ansible/roles/swarmlet/defaults/main.yml).
SETTINGS = {
    "swarmlet_prefix": "/opt/swarmlet", "swarmlet_config_dir": "/etc/swarmlet", "swarmlet_start_timeout": "300",
}
#: What is waited for at most.
PATIENCE_S = VirtualHost.boot_s


class KernelHost(VirtualHost):
    packages = (*VirtualHost.packages, "nfs-kernel-server", "nfs-common", "apparmor", "wireguard-tools", "tcpdump")
    #: Services of these packages that a scenario starts where it wants them.
    on_demand: tuple[str, ...] = ("nfs-server",)
    settings = ""

    def release(self) -> str:
        return str(wheels_of_this_source()["name"])

    def install(self, root: Path) -> None:
        install_release(root)
        (root / "etc/swarmlet").mkdir()
        unit = re.sub(r"\{\{ (\w+) \}\}", lambda name: SETTINGS[name[1]], UNIT.read_text().partition("\n")[2])
        (root / "etc/systemd/system/swarmlet-agent.service").write_text(unit)
        run("chroot", str(root), "systemctl", "enable", "swarmlet-agent")
        for service in self.on_demand:
            run("chroot", str(root), "systemctl", "disable", service)

    def furnish(self, root: Path) -> None:
        super().furnish(root)
        settings = root / "etc/swarmlet/agent.toml"
        settings.parent.mkdir()
        settings.write_text(f'advertise_addr = "{self.address}"\n{self.settings}')


def wheels_of_this_source() -> dict[str, object]:
    """What the playbooks install: name and archive."""
    told: dict[str, object] = json.loads(run(
        sys.executable, str(WHEELHOUSE), f"--source={ROOT}", f"--folder={wheelhouse()}",
        f"--python={RELEASES[SUITE].python}", f"--machine={os.uname().machine}", timeout_s=300,
    ))
    return told


def install_release(root: Path) -> None:
    """As the playbooks do: a virtual environment of the wheels; with its bytecode, which takes minutes inside."""
    wheels = root / PREFIX / "wheels"
    wheels.mkdir(parents=True)
    run("tar", "-xf", str(wheels_of_this_source()["archive"]), "-C", str(wheels))
    (pip,) = wheels.glob("pip-*.whl")
    run("chroot", str(root), f"python{RELEASES[SUITE].python}", "-m", "venv", "--without-pip", f"/{PREFIX}")
    run(
        "chroot", str(root), f"/{PREFIX}/bin/python", f"/{PREFIX}/wheels/{pip.name}/pip", "install", "--no-index",
        f"--find-links=/{PREFIX}/wheels", "--compile", "--disable-pip-version-check", "--root-user-action=ignore",
        "--quiet", "swarmlet", timeout_s=300,
    )
    shutil.rmtree(wheels)


class Guest:
    """One such machine and the docker client beside it."""

    def __init__(self, host: BootedHost) -> None:
        self.host = host
        self._ways = contextlib.ExitStack()
        self._urls: dict[str, str] = {}

    def url(self, socket: str) -> str:
        """Held open until the machine loses its connections: each new one costs a second or two."""
        if socket not in self._urls:
            self._urls[socket] = self._ways.enter_context(self.host.lab.socket_of(self.host, socket))
        return self._urls[socket]

    def close(self) -> None:
        self._urls.clear()
        self._ways.close()

    def wait_ready(self) -> None:
        eventually(lambda: self.try_docker("ps").returncode == 0, PATIENCE_S, f"the agent of {self.host.name} answers")

    def ssh(self, command: str) -> str:
        return self.host.ssh(command, PATIENCE_S)

    def docker(self, *args: str, socket: str = "agent.sock", timeout_s: float = PATIENCE_S) -> str:
        done = self.try_docker(*args, socket=socket, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}"
        return done.stdout.strip()

    def try_docker(
        self, *args: str, socket: str = "agent.sock", timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        argv = ["docker", "-H", self.url(socket), *args]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s)

    def reboot(self) -> None:
        self.close()
        self.host.reboot()
        self.wait_ready()

    def load_image(self) -> None:
        archive = self.host.lab.folder / "image.tar"
        archive.write_bytes(busybox_archive(find_busybox(), IMAGE, files={"/var/www/index.html": b"served\n"}))
        self.docker("load", "-i", str(archive))


@contextlib.contextmanager
def open_guests(count: int, kind: type[KernelHost] = KernelHost) -> Iterator[list[Guest]]:
    """Machines whose agents answer, with `IMAGE`."""
    remove_what_killed_runs_left(count, kind)
    lab = HostLab(count, kind)
    lab.connect_s = 60
    guests = [Guest(host) for host in lab.hosts]
    try:
        lab.open()
        for guest in guests:
            guest.wait_ready()
            guest.load_image()
        yield guests
    finally:
        for guest in guests:
            guest.close()
        lab.close()
