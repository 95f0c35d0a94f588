"""Containers' cgroups on the host: read, signal, freeze and remove them. Thin; blocking calls, all of them short.

The OCI runtime makes the cgroups. Both layouts are served: version 1 has one folder per hierarchy, version 2 one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.runtime import cgroup_files
from swarmlet_agent.runtime.cgroup_files import Hierarchy
from swarmlet_agent.runtime.types import Usage

_FREEZE_TIMEOUT_S = 5.0
_REMOVE_TIMEOUT_S = 5.0
#: A thread that has ended is in its cgroup for a moment longer.
_LEAVE_TIMEOUT_S = 0.5
_SIGNAL_ROUNDS = 10


class Cgroups:
    """All hierarchies of this host. Paths of cgroups are as the OCI has them ("/swarmlet/<id>")."""

    def __init__(self, hierarchies: Sequence[Hierarchy]) -> None:
        self._hierarchies = tuple(hierarchies)
        self.version = 2 if all(hierarchy.version == 2 for hierarchy in hierarchies) else 1
        self._by_controller = {name: h for h in hierarchies for name in h.controllers}
        self._memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @classmethod
    def of_this_host(cls, mountinfo: Path = Path("/proc/self/mountinfo")) -> Cgroups:
        """Internal if this process sees none."""
        found = cgroup_files.parse_mounts(mountinfo.read_text())
        if not found:
            raise Internal(
                "no cgroups are mounted where this process runs, and containers need them: is it in a mount namespace"
                ' of its own? ("ip netns exec" makes one without them; "nsenter --net=FILE" does not)'
            )
        return cls(found)

    def has_controller(self, name: str) -> bool:
        if self.version == 2:
            return any(name in _words(Path(h.mount_point, "cgroup.controllers")) for h in self._hierarchies)
        return name in self._by_controller

    def folders(self, path: str) -> list[Path]:
        """The cgroup's folder in every hierarchy that has it."""
        every = (Path(h.mount_point + path) for h in self._hierarchies)
        return [folder for folder in every if folder.is_dir()]

    def usage(self, path: str) -> Usage:
        """Counters now; all zero for a cgroup that is gone."""
        layout = cgroup_files.FILES_V2 if self.version == 2 else cgroup_files.FILES_V1
        files: dict[str, str] = {}
        for controller, names in layout.items():
            folder = self._folder(path, controller)
            if folder is None:
                continue
            for name in names:
                with contextlib.suppress(OSError):  # not every kernel has every file
                    files[name] = Path(folder, name).read_text()
        return cgroup_files.usage(files, self.version, now=time.time_ns(), host_memory_bytes=self._memory_bytes)

    def oom_kills(self, path: str) -> int:
        """How often the kernel killed a process there for want of memory; 0 if the cgroup is gone."""
        folder = self._folder(path, "memory")
        if folder is None:
            return 0
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        try:
            return cgroup_files.flat(Path(folder, name).read_text()).get("oom_kill", 0)
        except OSError:
            return 0

    def pids(self, path: str) -> list[int]:
        """Every process in it and below, by number."""
        folder = self._tracking_folder(path)
        if folder is None:
            return []
        found: set[int] = set()
        for parent, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):  # removed while we look
                found.update(int(word) for word in _words(Path(parent, "cgroup.procs")))
        return sorted(found - {0})

    def lift_pids_limit(self, path: str) -> None:
        """Any number of processes from now on. OSError; a host without the controller has no limit to lift."""
        folder = self._folder(path, "pids")
        if folder is not None and (folder / "pids.max").exists():
            (folder / "pids.max").write_text("max")

    def lift_cpu_quota(self, path: str) -> None:
        """All the processor time there is from now on; the period stays. OSError, and hosts without it, as above."""
        folder = self._folder(path, "cpu")
        for name, text in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max")):
            if folder is not None and (folder / name).exists():
                (folder / name).write_text(text)

    def signal_all(self, path: str, number: int) -> None:
        """Every process in it, and those that it makes meanwhile. SIGKILL also beats what forks faster than we look."""
        if number == signal.SIGKILL and self._kill_at_once(path):
            return
        known: set[int] = set()
        for _ in range(_SIGNAL_ROUNDS):
            fresh = set(self.pids(path)) - known
            if not fresh:
                return
            _signal(fresh, number)
            known |= fresh
        if number == signal.SIGKILL:
            self.freeze(path)
            _signal(self.pids(path), number)
            self.thaw(path)

    def freeze(self, path: str) -> None:
        """Internal if the kernel does not finish it in time; everything runs on then."""
        if not self._set_frozen(path, True):
            self._set_frozen(path, False)
            raise Internal(f"the cgroup {path} could not be frozen within {_FREEZE_TIMEOUT_S:g} s")

    def thaw(self, path: str) -> None:
        """A cgroup that is gone or not frozen is fine."""
        self._set_frozen(path, False)

    def remove(self, path: str) -> None:
        """Every folder of it, children first. Internal if something keeps one in use. Nothing there is fine."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        for folder in self.folders(path):
            for parent, _, _ in os.walk(folder, topdown=False):
                _remove_folder(parent, deadline)

    def remove_if_empty(self, path: str) -> None:
        """Its folders that have neither processes nor children; others may belong to someone else and stay."""
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        for folder in self.folders(path):
            with contextlib.suppress(Internal):
                _remove_folder(str(folder), deadline)

    def make_for_threads(self, path: str) -> list[Path]:
        """Make a cgroup in every version 1 hierarchy and give its `tasks` files, to which a thread may be moved."""
        files = []
        for hierarchy in self._hierarchies:
            if hierarchy.version == 1:
                folder = Path(hierarchy.mount_point + path)
                folder.mkdir(parents=True, exist_ok=True)
                if "cpuset" in hierarchy.controllers:
                    _fill_cpuset(Path(hierarchy.mount_point), folder)
                files.append(folder / "tasks")
        return files

    def make_for_processes(self, path: str) -> Path:
        """Make a version 2 cgroup and give its `cgroup.procs` file."""
        folder = Path(self._hierarchies[0].mount_point + path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "cgroup.procs"

    def _folder(self, path: str, controller: str) -> Path | None:
        hierarchy = self._hierarchies[0] if self.version == 2 else self._by_controller.get(controller)
        return None if hierarchy is None else Path(hierarchy.mount_point + path)

    def _tracking_folder(self, path: str) -> Path | None:
        """The hierarchy whose list of processes is asked: any that the OCI runtime puts them in."""
        for controller in ("pids", "memory", "freezer", "cpu"):
            folder = self._folder(path, controller)
            if folder is not None and folder.is_dir():
                return folder
        return None

    def _kill_at_once(self, path: str) -> bool:
        if self.version == 1:
            return False
        try:
            Path(self._hierarchies[0].mount_point + path, "cgroup.kill").write_text("1")
        except OSError:  # older than Linux 5.14, or gone
            return False
        return True

    def _set_frozen(self, path: str, frozen: bool) -> bool:
        folder = self._folder(path, "freezer")
        if folder is None or not folder.is_dir():
            return not frozen
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        while True:
            if self._try_freeze(folder, frozen):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)  # the kernel stops tasks one by one and tells only those who ask

    def _try_freeze(self, folder: Path, frozen: bool) -> bool:
        if self.version == 2:
            (folder / "cgroup.freeze").write_text("1" if frozen else "0")
            return cgroup_files.flat((folder / "cgroup.events").read_text()).get("frozen", 0) == int(frozen)
        wanted = "FROZEN" if frozen else "THAWED"
        # Version 1 may stay FREEZING when a task forks meanwhile; writing again continues it.
        (folder / "freezer.state").write_text(wanted)
        return (folder / "freezer.state").read_text().strip() == wanted


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _remove_folder(folder: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno != errno.EBUSY or time.monotonic() > deadline:
                raise Internal(f"the cgroup {folder} cannot be removed: {err.strerror}") from err
            time.sleep(0.001)  # killed processes are still on their way out
        else:
            return


def _fill_cpuset(root: Path, folder: Path) -> None:
    """A new cpuset has no CPUs and takes no tasks until each level has been given its parent's."""
    for level in _below(root, folder):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (level / name).read_text().strip():
                (level / name).write_text((level.parent / name).read_text())


def _below(root: Path, folder: Path) -> Iterable[Path]:
    parts = folder.relative_to(root).parts
    return (root.joinpath(*parts[: index + 1]) for index in range(len(parts)))
