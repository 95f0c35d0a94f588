"""/etc/hosts, /etc/resolv.conf and /etc/hostname of containers, on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from swarmlet_agent.net.plan_files import ResolvConf, is_loopback, parse_resolv_conf

HOSTS, HOSTNAME, RESOLV = "hosts", "hostname", "resolv.conf"
#: Where systemd-resolved keeps the resolvers that its own loopback address stands for.
_RESOLVED = Path("/run/systemd/resolve/resolv.conf")


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write each, in place: a file that is bound into a container must stay the same file. Readable by all."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True, mode=0o710)
    for name, text in texts.items():
        # Bare system calls: this is on the way of every container's start.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(f"{folder}/{name}", flags, 0o644)
        try:
            if os.fstat(descriptor).st_mode & 0o777 != 0o644:  # a strict umask, or someone's change
                os.fchmod(descriptor, 0o644)
            left = text.encode()
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)


def bound_files(folder: Path) -> dict[str, Path]:
    """Container path -> host file."""
    return {"/etc/hosts": folder / HOSTS, "/etc/hostname": folder / HOSTNAME, "/etc/resolv.conf": folder / RESOLV}


def read_text(path: Path) -> str:
    """"" if there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def host_resolvers(path: Path, resolved: Path = _RESOLVED) -> ResolvConf:
    """What a container outside the embedded DNS can use of the host's resolv.conf."""
    conf = parse_resolv_conf(read_text(path))
    if conf.servers and all(is_loopback(server) for server in conf.servers):
        behind = parse_resolv_conf(read_text(resolved))
        if behind.servers:
            return behind
    return conf
