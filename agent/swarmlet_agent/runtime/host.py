"""Which OCI runtime runs here, and the thread its processes are started from."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.runtime import linux
from swarmlet_agent.runtime.cgroups import Cgroups
from swarmlet_agent.runtime.facts import CGROUP_ROOT, HostFacts
from swarmlet_agent.runtime.spawner import isolate

RUNTIMES = ("crun", "runc")
SHIM = "io.containerd.runc.v2"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/podman"


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What `docker info` tells. cgroup_version "1" or "2"; init_path "" where `--init` is refused.

    name: the default runtime's; runtimes: every name that a container may ask for.

    seccomp: containers get a filter by default; apparmor_profile: the profile they get by default. The flags say which
    limits this host can apply.
    """

    name: str = ""
    runtimes: tuple[str, ...] = ()
    version: str = ""
    commit: str = ""
    conmon_path: str = ""
    conmon_version: str = ""
    cgroup_version: str = "1"
    cgroup_driver: str = "cgroupfs"
    seccomp: bool = False
    apparmor: bool = False
    apparmor_profile: str = ""
    init_path: str = ""
    memory_limit: bool = False
    swap_limit: bool = False
    cpu_cfs: bool = False
    cpu_shares: bool = False
    cpuset: bool = False
    pids_limit: bool = False
    oom_kill_disable: bool = False


async def choose(wanted: str, facts: HostFacts, cgroups: Cgroups) -> tuple[dict[str, str], RuntimeInfo]:
    """(programs by name, what to tell). InvalidArgument for an unknown name, Internal if one is not installed."""
    if wanted not in ("auto", *RUNTIMES):
        raise InvalidArgument(f'runtime "{wanted}" is not known: use auto, crun or runc')
    conmon = shutil.which("conmon", path=PATH)
    if conmon is None:
        raise Internal("conmon is not installed: install the package conmon")
    found = {name: program for name in RUNTIMES if (program := shutil.which(name, path=PATH)) is not None}
    name = next((name for name in found if wanted in ("auto", name)), None)
    if name is None:
        raise Internal("no OCI runtime is installed: install the package crun or runc")
    (version, commit), (conmon_version, _) = await asyncio.gather(_version(found[name]), _version(conmon))
    # containerd's name for Docker's own.
    found[SHIM] = found.get("runc", found[name])
    is_v1 = facts.cgroup_version == 1
    has_cpu = cgroups.has_controller("cpu")
    info = RuntimeInfo(
        name=name,
        runtimes=tuple(found),
        version=version,
        commit=commit,
        conmon_path=conmon,
        conmon_version=conmon_version,
        cgroup_version=str(facts.cgroup_version),
        seccomp=facts.seccomp and facts.default_profile is not None,
        apparmor=facts.apparmor,
        apparmor_profile=facts.apparmor_profile,
        init_path=facts.init_path,
        memory_limit=cgroups.has_controller("memory"),
        swap_limit=cgroups.has_controller("memory") and facts.swap_accounting,
        cpu_cfs=has_cpu,
        cpu_shares=has_cpu,
        cpuset=cgroups.has_controller("cpuset"),
        pids_limit=cgroups.has_controller("pids"),
        oom_kill_disable=is_v1 and cgroups.has_controller("memory"),
    )
    return found, info


def prepare_thread(cgroups: Cgroups, parent: str, *, isolated: bool, folder: Path) -> Callable[[], None]:
    """For the spawner: conmon's cgroup, its working folder, and, for crun on a hybrid host, no cgroup2 mount.

    folder: conmon leaves a file named "oom" in its working folder when a container runs out of memory.

    On version 1 a thread can be in a cgroup of its own, and what it starts begins there. Version 2 has only
    whole processes, so there each conmon is moved (`ConmonRuntime`).
    """

    def prepare() -> None:
        if cgroups.version == 1:
            for file in cgroups.make_for_threads(f"{parent}/conmon"):
                file.write_text(str(threading.get_native_id()))
        if isolated:
            isolate(str(CGROUP_ROOT / "unified"), str(CGROUP_ROOT))
        linux.unshare(linux.CLONE_FS)  # else the working folder were the whole agent's
        os.chdir(folder)

    return prepare


async def _version(program: str) -> tuple[str, str]:
    """(version, commit) as the program prints them."""
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode(errors="replace")
    version = re.search(r"version\s+(\S+)", output)
    commit = re.search(r"commit:\s+(\S+)", output)
    return version[1] if version else "unknown", commit[1] if commit else ""


def below(path: str | Path, folders: tuple[Path, ...]) -> bool:
    """True if the path lies in one of the folders."""
    return any(Path(path).is_relative_to(folder) for folder in folders)
