"""Hosts that boot: systemd as their first process, an SSH server, and no way out but to each other.

They are on a bridge in a network namespace of the tests', from where Ansible and SSH reach them: nothing touches the
machine's own network. Two kinds: containers of systemd-nspawn with all capabilities (their own systemd, file system,
mounts, processes and network, on this machine's kernel, at its speed), and virtual machines (their release's kernel,
cgroup v2, ten times slower where the processor is emulated).
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

#: What a freshly installed server has, and the packages that the playbooks install: there is no mirror inside.
PACKAGES = (
    "systemd-sysv", "dbus", "udev", "openssh-server", "python3", "python3-apt", "iproute2", "iputils-ping", "procps",
    "kmod", "netbase", "sudo", "ca-certificates", "conmon", "crun", "runc", "golang-github-containers-common",
    "nftables", "tini", "etcd-server", "etcd-client",
)

UBUNTU_KERNEL = ("linux-image-virtual", "initramfs-tools", "zstd")


@dataclass(frozen=True)
class Release:
    """One that hosts may have. python: Swarmlet's; etcd: whether its own may keep a cluster's state; wireguard: what
    the program of the package wireguard-go is called."""

    python: str
    packages: tuple[str, ...] = PACKAGES
    ubuntu: bool = False
    #: What makes it a virtual machine's: a kernel, and what makes its initial file system.
    kernel: tuple[str, ...] = ("linux-image-cloud-amd64",)
    etcd: bool = True
    wireguard: str = "wireguard-go"


RELEASES = {
    "bookworm": Release("3.11"),
    "trixie": Release("3.13"),
    "noble": Release("3.12", ubuntu=True, kernel=UBUNTU_KERNEL),
    "jammy": Release(
        "3.11", (*PACKAGES, "python3.11", "python3.11-venv"), ubuntu=True, kernel=UBUNTU_KERNEL, etcd=False,
        wireguard="wireguard",
    ),
}
#: The release that hosts have, unless they are told otherwise.
SUITE = os.environ.get("SWARMLET_VM_RELEASE", "bookworm")
UBUNTU = "http://archive.ubuntu.com/ubuntu"
UBUNTU_KEYS = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
CACHE = Path("/var/cache/swarmlet-tests")
#: Hosts have 10.77.0.11 and on; the bridge, where Ansible runs, has .1.
NETWORK, BRIDGE = "10.77.0", "vmbr0"
#: A lab's name begins so, and ends with the process whose it is.
LAB = "swlvm"


def run(*argv: str, timeout_s: float = 120, **more: object) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}"
    return str(done.stdout)


def eventually(check: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.5)  # what is asked is seldom cheap


def base_image(*further: str) -> Path:
    """The file system of a fresh host, as a tar archive; made once of its release's packages."""
    packages = (*RELEASES[SUITE].packages, *further)
    name = hashlib.sha256(f"{SUITE} {' '.join(packages)}".encode()).hexdigest()[:12]

    def make(partial: Path) -> None:
        wishes = ["--variant=minbase", "--include=" + ",".join(packages)]
        if RELEASES[SUITE].ubuntu:
            with ubuntu_keys() as keys:
                # As a server has it whose updates are installed: with what it was released with alone, some of its
                # packages have faults that no host has any more.
                pockets = [SUITE, f"{SUITE}-updates", f"{SUITE}-security"]
                lines = [f"deb {UBUNTU} {pocket} main universe" for pocket in pockets]
                run("mmdebstrap", *wishes, f"--keyring={keys}", SUITE, str(partial), *lines, timeout_s=900)
        else:
            run("mmdebstrap", *wishes, "--components=main", SUITE, str(partial), timeout_s=900)

    return made_once(CACHE / f"{SUITE}-{name}.tar", make)


def etcd_programs() -> Path:
    """Those of Debian 12, in a folder, as a release of etcd unpacks them: for releases whose own may not be used."""

    def make(partial: Path) -> None:
        partial.mkdir()
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            os.chmod(scratch, 0o755)  # apt reads it as a user of its own
            wishes = ("--variant=extract", "--include=etcd-server,etcd-client")
            run("mmdebstrap", *wishes, "bookworm", f"{scratch}/root", timeout_s=900)
            for name in ("etcd", "etcdctl"):
                shutil.copy(f"{scratch}/root/usr/bin/{name}", partial)

    return made_once(CACHE / "etcd-of-bookworm", make)


@contextlib.contextmanager
def ubuntu_keys() -> Iterator[Path]:
    """The keys of Ubuntu's archive: this machine's, or those that Debian 13 has in a package, believed by Debian's."""
    if UBUNTU_KEYS.exists():
        yield UBUNTU_KEYS
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        os.chmod(scratch, 0o755)  # apt reads them as a user of its own
        run("mmdebstrap", "--variant=extract", "--include=ubuntu-keyring", "trixie", f"{scratch}/root", timeout_s=900)
        yield Path(f"{scratch}/root{UBUNTU_KEYS}")


def base_folder() -> Path:
    """The same, unpacked: what hosts that share this machine's kernel lay their own files over. That kernel may have no
    WireGuard, so they have a program for it."""
    archive = base_image("wireguard-go")

    def unpack(partial: Path) -> None:
        partial.mkdir()
        run("tar", "-xf", str(archive), "-C", str(partial), timeout_s=300)

    return made_once(archive.with_suffix(""), unpack)


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Of several runs at once, one makes it, the others wait for it; it has another name until it is whole."""
    if path.exists():  # whoever makes another one meanwhile is not waited for
        return path
    partial = path.with_name(f"partial-{path.name}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            if partial.is_dir():  # of a run that was killed
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
            make(partial)
            partial.replace(path)
    return path


def leave_etcd_off(root: Path) -> None:
    """The packages' own service; the playbooks keep it off where they install it."""
    units = root / "etc/systemd/system"
    for enabled in (*units.glob("*.wants/etcd*.service"), *units.glob("etcd*.service")):  # wants, and its aliases
        enabled.unlink()


class BootedHost(abc.ABC):
    """One machine. Its disk outlives `power_off`."""

    #: How long a boot takes at most.
    boot_s = 300.0

    def __init__(self, lab: HostLab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"host-{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self.port = f"port-{self.name}"
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def prepare(self) -> None:
        """What all hosts of its kind are made from."""

    @abc.abstractmethod
    def make(self) -> None:
        """Its disk, with the lab's key let in."""

    @abc.abstractmethod
    def boot(self) -> subprocess.Popen[bytes]: ...

    @abc.abstractmethod
    def power_off(self) -> None:
        """As pulling the plug: nothing is told to end."""

    @abc.abstractmethod
    def dispose(self) -> None:
        """What its disk is besides files, once it has no power."""

    def power_on(self) -> None:
        """Returns once it answers SSH."""
        self._process = self.boot()
        eventually(lambda: self.try_ssh("true").returncode == 0, self.boot_s, f"{self.name} answers SSH")

    def furnish(self, root: Path) -> None:
        """What every disk has besides the packages."""
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/machine-id").write_text("")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(f"{self.lab.key}.pub", root / "root/.ssh/authorized_keys")
        leave_etcd_off(root)

    def reboot(self) -> None:
        """`reboot`, as an administrator types it; returns once it answers again."""
        boot = "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat"
        before = self.ssh(boot)
        self.try_ssh("systemctl reboot")

        def is_another() -> bool:
            done = self.try_ssh(boot)
            return done.returncode == 0 and done.stdout != before

        eventually(is_another, self.boot_s, f"{self.name} comes back")

    def ssh(self, command: str, timeout_s: float = 120) -> str:
        done = self.try_ssh(command, timeout_s)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr.strip() or done.stdout.strip()}"
        return done.stdout

    def try_ssh(self, command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        argv = [*self.lab.inside(), "ssh", *self.lab.ssh_options(), f"root@{self.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s)


class HostLab:
    """The hosts, their network and the key to them; `close` leaves nothing."""

    def __init__(self, count: int, kind: Callable[[HostLab, int], BootedHost], owner: int | None = None) -> None:
        """owner: the process whose lab it is, this one by default."""
        self.name = f"{LAB}{owner or os.getpid()}"
        self.folder = Path("/var/tmp", self.name)
        self.key = self.folder / "id"
        self.connect_s = 5  # what SSH waits for a host at most
        self._ways = 0  # each has a socket of its own: several may lead to one host at once
        self.hosts: list[BootedHost] = [kind(self, number) for number in range(1, count + 1)]

    def open(self) -> None:
        self.folder.mkdir(mode=0o700)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        run("ip", "netns", "add", self.name)
        for argv in (
            ("link", "set", "lo", "up"), ("link", "add", BRIDGE, "type", "bridge"),
            ("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE), ("link", "set", BRIDGE, "up"),
        ):
            run("ip", "-n", self.name, *argv)
        for host in self.hosts:
            host.prepare()
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(lambda host: (host.make(), host.power_on()), self.hosts))

    def close(self) -> None:
        """Also after an `open` that did not come far; what cannot be removed keeps nothing else from going."""
        with contextlib.ExitStack() as last_first:
            if self.folder.exists():
                last_first.callback(shutil.rmtree, self.folder)
            last_first.callback(self._remove_network)
            for host in self.hosts:
                last_first.callback(host.dispose)
                last_first.callback(host.power_off)

    def _remove_network(self) -> None:
        if Path("/run/netns", self.name).exists():
            self._end_what_runs_beside()
            run("ip", "netns", "delete", self.name)

    def _end_what_runs_beside(self) -> None:
        """Ansible keeps its connections open for a minute."""
        def pids() -> list[int]:
            return [int(word) for word in run("ip", "netns", "pids", self.name).split()]

        for pid in pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not pids(), 10, f"nothing runs in {self.name}")

    def inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def ssh_options(self) -> list[str]:
        known = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        options = (*known, f"ConnectTimeout={self.connect_s}")
        return ["-i", str(self.key), *(word for option in options for word in ("-o", option))]

    @contextlib.contextmanager
    def socket_of(self, host: BootedHost, name: str) -> Iterator[str]:
        """A DOCKER_HOST for a socket of the host's run folder, carried by SSH as an administrator would."""
        self._ways += 1
        local = self.folder / f"{host.name}-{self._ways}-{name}"
        way = ["-L", f"{local}:/run/swarmlet/{name}", f"root@{host.address}"]
        carrier = subprocess.Popen(
            [*self.inside(), "ssh", "-N", *self.ssh_options(), *way],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: local.exists() or carrier.poll() is not None, 90, f"{local} is forwarded")
            assert carrier.poll() is None, f"{host.name} cannot be reached by SSH"
            yield f"unix://{local}"
        finally:
            carrier.terminate()
            carrier.communicate(timeout=10)
            local.unlink(missing_ok=True)


def remove_what_killed_runs_left(count: int, kind: Callable[[HostLab, int], BootedHost]) -> None:
    """Labs whose owner did not live to close them."""
    names = {path.name for folder in ("/run/netns", "/var/tmp") for path in Path(folder).glob(f"{LAB}*")}
    owners = {int(name.removeprefix(LAB).partition("-")[0]) for name in names}
    for owner in owners:
        if not Path(f"/proc/{owner}").exists():
            HostLab(count, kind, owner).close()
