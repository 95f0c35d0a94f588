"""What a cluster has of this machine: processes, mounts, namespaces, cgroups, links, tables, files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from swarmlet.local.layout import CGROUP_ROOT, DATA_ROOT, NETNS_ROOT, RUN_ROOT, plan_cluster

CGROUPS = Path("/sys/fs/cgroup")


def traces(name: str) -> list[str]:
    """One line for each thing that is there; empty once the cluster is gone."""
    cluster = plan_cluster(name, 1, 0)
    folders = (f"{DATA_ROOT}/{name}", f"{RUN_ROOT}/{name}")
    return sorted(
        [
            *_processes(name, folders),
            *(f"mount {line}" for line in _mounts() if any(_below(line, folder) for folder in folders)),
            *(f"netns {file.name}" for file in NETNS_ROOT.glob(f"swl-{name}-node-*")),
            *(f"cgroup {folder}" for folder in _cgroups(f"{CGROUP_ROOT}/{name}")),
            *(f"link {link}" for link in os.listdir("/sys/class/net") if link.startswith(cluster.bridge)),
            *(f"table {table}" for table in _tables() if table == cluster.nft_table),
            *(f"folder {folder}" for folder in folders if os.path.lexists(folder)),
            *(f"record {file}" for file in (cluster.record,) if file.exists()),
        ]
    )


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _processes(name: str, folders: tuple[str, ...]) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            groups = (entry / "cgroup").read_text().splitlines()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        inside = any(_below(line.split(":", 2)[2], f"{CGROUP_ROOT}/{name}") for line in groups)
        # A zombie holds nothing; whether it is still listed is up to its parent.
        if state != "Z" and (inside or any(_below(word, folder) for word in words for folder in folders)):
            found.append(f"process {entry.name} {' '.join(words)}")
    return found


def _mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _cgroups(path: str) -> list[str]:
    """In whatever hierarchy, and however deep."""
    found = []
    for top, folders, _ in os.walk(CGROUPS):
        inner = top.removeprefix(str(CGROUPS))
        if path in inner:
            found.append(top)
            folders.clear()
    return found


def _tables() -> list[str]:
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines()]
