"""A site to install on: booted hosts, an inventory of them, and Ansible and docker run from beside them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from booted_hosts import (
    CACHE,
    RELEASES,
    SUITE,
    BootedHost,
    HostLab,
    etcd_programs,
    eventually,
    remove_what_killed_runs_left,
    run,
)

from swarmlet.demo_image import busybox_archive
from swarmlet.local.images import find_busybox

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
#: Where `./dev test-vm` has put Ansible.
ANSIBLE_PROGRAMS = ROOT / ".dev/ansible/bin"
#: What services run.
IMAGE = "booted:1"
#: A run of a playbook over three hosts, on a busy machine.
PLAYBOOK_S = 1800
DAY_S = 86400


@dataclass
class Recap:
    """What a playbook did, by host (the recap's counters), and all it said."""

    hosts: dict[str, dict[str, int]]
    output: str
    status: int

    def changed(self) -> int:
        return sum(host["changed"] for host in self.hosts.values())

    def bad(self) -> int:
        return sum(host["failed"] + host["unreachable"] for host in self.hosts.values())


@dataclass
class Site:
    """The hosts, an inventory of them, and what runs playbooks and docker against them."""

    lab: HostLab
    inventory: Path
    wheelhouse: Path

    @property
    def hosts(self) -> list[BootedHost]:
        return self.lab.hosts

    def try_play(self, playbook: str | Path, *args: str, source: Path = ROOT) -> Recap:
        self._fill_wheelhouse(source)
        environ = os.environ | {
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
            # Its connections too: hosts of another run have the same addresses.
            "ANSIBLE_HOME": str(self.lab.folder / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.lab.folder / "ways"),
        }
        argv = [
            *self.lab.inside(), str(ANSIBLE_PROGRAMS / "ansible-playbook"), "-i", str(self.inventory),
            "-e", f"swarmlet_source={source}", "-e", f"swarmlet_wheelhouse={self.wheelhouse}", *args,
            str(ANSIBLE / playbook),
        ]
        done = subprocess.run(
            argv, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL, timeout=PLAYBOOK_S, cwd=ANSIBLE
        )
        print(done.stdout, done.stderr)
        return Recap(_recap(done.stdout), done.stdout + done.stderr, done.returncode)

    def play(self, playbook: str | Path, *args: str, source: Path = ROOT) -> Recap:
        recap = self.try_play(playbook, *args, source=source)
        assert recap.status == 0 and recap.hosts and recap.bad() == 0, recap.output[-6000:]
        return recap

    def _fill_wheelhouse(self, source: Path) -> None:
        """Beforehand, since no index of packages is reached from beside the hosts."""
        script = ANSIBLE / "roles/wheelhouse/files/wheelhouse.py"
        run(sys.executable, str(script), f"--source={source}", f"--folder={self.wheelhouse}",
            f"--python={RELEASES[SUITE].python}", f"--machine={os.uname().machine}", timeout_s=300)

    def lose_unfit_etcd(self) -> None:
        """Where the release's own may not be used, its packages (with etcd's user) are not missed."""
        if not RELEASES[SUITE].etcd:
            for host in self.hosts:
                host.ssh("dpkg --purge etcd-server etcd-client")

    def docker(self, *args: str, on: int = 1, socket: str = "manager.sock") -> str:
        with self.lab.socket_of(self.hosts[on - 1], socket) as url:
            return run("docker", "-H", url, *args)

    def nodes(self, on: int = 1) -> dict[str, str]:
        """States by host name, of the nodes that the cluster has."""
        lines = self.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}", on=on).splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def running_on(self, service: str, on: int = 1) -> list[str]:
        """The host names of the service's running tasks."""
        form = ("--format", "{{.Node}} {{.CurrentState}}")
        listed = self.docker("service", "ps", "--filter", "desired-state=running", *form, service, on=on)
        return sorted(line.split()[0] for line in listed.splitlines() if line.split()[1] == "Running")

    def load_image(self) -> None:
        """`IMAGE` onto every node; there is no registry beside the hosts."""
        archive = self.lab.folder / "image.tar"
        archive.write_bytes(busybox_archive(find_busybox(), IMAGE, files={"/var/www/index.html": b"served\n"}))
        self.docker("load", "-i", str(archive))

    def serve(self, name: str, replicas: int, *options: str) -> None:
        """A service of small web servers; returns once all run."""
        command = ("httpd", "-f", "-p", "80", "-h", "/var/www")
        wishes = ("--detach", "--name", name, f"--replicas={replicas}", *options)
        self.docker("service", "create", *wishes, IMAGE, *command)
        eventually(lambda: len(self.running_on(name)) == replicas, 180, f"{replicas} replicas of {name} run")

    def keep_secret(self, name: str, value: str) -> None:
        file = self.lab.folder / name
        file.write_text(value)
        self.docker("secret", "create", name, str(file))
        file.unlink()

    def read_secret(self, name: str, on: int = 1) -> dict[str, str]:
        """What tasks find in it, by the host they run on: a task on each reads it anew."""
        told = "--mode=global", "--hostname={{.Node.Hostname}}", f"--secret={name}"
        command = "sh", "-c", f"echo $(hostname): $(cat /run/secrets/{name}); sleep 1000"
        self.docker("service", "create", "--detach", "--name=reader", *told, IMAGE, *command, on=on)

        def read() -> dict[str, str]:
            lines = self.docker("service", "logs", "--raw", "reader", on=on).splitlines()
            return dict(line.split(": ", 1) for line in lines if ": " in line)

        eventually(lambda: len(read()) == len(self.hosts), 120, f"a task on each host has read {name}")
        found = read()
        self.docker("service", "rm", "reader", on=on)
        return found

    def traces(self, number: int) -> list[str]:
        """What is left of Swarmlet on a host."""
        host = self.hosts[number - 1]
        links = [link["ifname"] for link in json.loads(host.ssh("ip -j link")) if link["ifname"] not in ("lo", "eth0")]
        paths = host.ssh(
            "ls -d /opt/swarmlet /etc/swarmlet /var/lib/swarmlet /var/lib/swarmlet-etcd /run/swarmlet"
            " /usr/local/bin/swarmlet /usr/local/bin/etcd* /etc/systemd/system/swarmlet* 2>/dev/null || true"
        ).split()
        processes = host.ssh("ps -eo args | grep -E '^(/[a-z/]+/)?(conmon|etcd) |[s]warmlet-' || true").splitlines()
        tables = host.ssh("nft list tables").splitlines()
        return [*links, *paths, *processes, *tables]


def _recap(output: str) -> dict[str, dict[str, int]]:
    """host-1 : ok=40 changed=0 unreachable=0 failed=0 …"""
    found: dict[str, dict[str, int]] = {}
    _, _, rows = output.rpartition("PLAY RECAP")
    for row in rows.splitlines():
        name, colon, counters = row.partition(" : ")
        if colon and "unreachable=" in counters:
            pairs = dict(word.split("=") for word in counters.split())
            found[name.strip()] = {kind: int(pairs[kind]) for kind in ("changed", "unreachable", "failed")}
    return found


@contextlib.contextmanager
def open_site(
    kind: Callable[[HostLab, int], BootedHost], groups: Mapping[str, Sequence[int]], count: int = 3,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Site]:
    """Hosts that have booted and have nothing of Swarmlet; the inventory's groups name them by number. settings: of
    every agent."""
    remove_what_killed_runs_left(count, kind)
    lab = HostLab(count, kind)
    try:
        lab.open()
        inventory = lab.folder / "inventory" / "hosts.json"
        inventory.parent.mkdir()
        inventory.write_text(json.dumps(_inventory(lab, groups, settings or {})))
        yield Site(lab, inventory, wheelhouse())
    finally:
        lab.close()


def wheelhouse() -> Path:
    """Archives are named by what they are of, so that runs can share them; those of yesterday's sources go."""
    folder = CACHE / "wheelhouse"
    folder.mkdir(parents=True, exist_ok=True)
    for archive in folder.glob("*.tar"):
        if archive.stat().st_mtime < time.time() - DAY_S:
            archive.unlink()
    return folder


def _inventory(
    lab: HostLab, groups: Mapping[str, Sequence[int]], settings: Mapping[str, object]
) -> dict[str, object]:
    members = {host.number: (host.name, {"ansible_host": host.address}) for host in lab.hosts}
    return {"all": {
        "vars": {
            "ansible_user": "root", "ansible_ssh_private_key_file": str(lab.key),
            "ansible_ssh_common_args": " ".join(lab.ssh_options()[2:]), "swarmlet_settings": dict(settings),
            "swarmlet_etcd_programs": "" if RELEASES[SUITE].etcd else str(etcd_programs()),
        },
        "children": {
            group: {"hosts": dict(members[number] for number in numbers)} for group, numbers in groups.items()
        },
    }}
