"""A container's files under the run folder: what another agent needs to go on with a container it did not make.

    containers/<id>/  config.json  meta  pidfile  conmon.pid  attach  ctl  winsz  persist/  [shm/]
    exits/<id>        written by conmon when init has ended: the exit code
    oci/<id>/         the OCI runtime's own
    execs/            short-lived files of execs

A pid is believed only together with the start time it had: numbers are used again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Internal, NotFound
from swarmlet.model.base import Record
from swarmlet_agent.decide.selinux import with_option
from swarmlet_agent.runtime import linux
from swarmlet_agent.runtime.types import Exit


class Meta(Record, frozen=True, kw_only=True):
    """What cannot be read off the container itself. program: argv[0]; stdin_closes: with its first client.

    runtime: the OCI runtime that made it; "" the default one.
    """

    cgroup_path: str
    program: str
    stdin_closes: bool = False
    runtime: str = ""


class _Linux(msgspec.Struct):
    cgroups_path: str = msgspec.field(name="cgroupsPath")


class _Config(msgspec.Struct):
    process: dict[str, Any]
    linux: _Linux


@dataclass(frozen=True, slots=True)
class Process:
    """A process by number and start time (clock ticks since boot)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Neither gone, nor a zombie, nor another process with the same number."""
        found = look(self.pid)
        return found is not None and found.started == self.started


def look(pid: int) -> Process | None:
    """The process with this number now; None if there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; state is the first field after it, the start time the 20th.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else Process(pid, int(fields[19]))


def _parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


class Bundle:
    """Paths and small files of one container."""

    __slots__ = ("exit_file", "id", "path", "state")

    def __init__(self, run_dir: Path, container_id: str) -> None:
        self.id = container_id
        self.path = run_dir / "containers" / container_id
        self.exit_file = run_dir / "exits" / container_id
        self.state = run_dir / "oci" / container_id

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    def write(self, config: bytes, meta: Meta) -> None:
        """A fresh bundle. OSError."""
        (self.path / "persist").mkdir(parents=True)
        (self.path / "config.json").write_bytes(config)
        # Complete or not there: whoever finds it may rely on it.
        (self.path / ".meta").write_bytes(msgspec.msgpack.encode(meta))
        (self.path / ".meta").rename(self.path / "meta")

    def meta(self) -> Meta:
        """NotFound if the container has no bundle."""
        try:
            return msgspec.msgpack.decode((self.path / "meta").read_bytes(), type=Meta)
        except FileNotFoundError as err:
            raise NotFound("container", self.id) from err
        except msgspec.DecodeError as err:  # cut off in the middle of being made
            raise Internal(f"the files of container {self.id} are damaged") from err

    def cgroup_path(self) -> str:
        """For cleaning up: from whatever file says it; "" if creation did not come that far."""
        try:
            return self.meta().cgroup_path
        except (NotFound, Internal):
            pass
        try:
            return msgspec.json.decode((self.path / "config.json").read_bytes(), type=_Config).linux.cgroups_path
        except (FileNotFoundError, msgspec.DecodeError):  # not even that was written: nothing was started
            return ""

    def process_config(self) -> dict[str, Any]:
        """`process` of config.json."""
        return msgspec.json.decode((self.path / "config.json").read_bytes(), type=_Config).process

    def save(self, name: str, process: Process) -> None:
        """Remember a process ("init" or "conmon") with its start time, in one step."""
        temporary = self.path / f".{name}"
        temporary.write_text(f"{process.pid} {process.started}")
        temporary.rename(self.path / name)

    def remember(self, name: str, pid: int) -> None:
        """`save` for a process of that number; one that has ended already is not remembered."""
        if (process := look(pid)) is not None:
            self.save(name, process)

    def process(self, name: str) -> Process | None:
        """A remembered process if it still lives."""
        try:
            pid, started = (self.path / name).read_text().split()
        except FileNotFoundError:
            return self._unremembered_init() if name == "init" else self._unremembered_conmon()
        known = Process(int(pid), int(started))
        return known if known.alive else None

    def _unremembered_init(self) -> Process | None:
        """An agent died between the start of a process and `save`. The runtime's pid file has only the number, so
        the process must also be where only this container's are."""
        try:
            pid = int((self.path / "pidfile").read_text())
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        path = self.cgroup_path()
        return look(pid) if path and f"{path}\n" in groups else None

    def _unremembered_conmon(self) -> Process | None:
        """It is init's parent, and has the container's id among its arguments."""
        init = self.process("init")
        try:
            parent = _parent(init.pid) if init is not None else 0
            words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return None
        return look(parent) if self.id.encode() in words else None

    def open_gate(self) -> bool:
        """What `crun start` does, without a process for it: crun's init waits for a byte in this fifo, and a container
        is "created" as long as the fifo is there. False, and nothing done, if it is not as expected."""
        gate = self.state / "exec.fifo"
        try:
            if not stat.S_ISFIFO(gate.lstat().st_mode):
                return False
            descriptor = os.open(gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # another layout, or nobody waits: let the runtime say what is wrong
            return False
        try:
            os.write(descriptor, b"\0")  # first: were we to die in between, it must not wait for ever
            gate.unlink()
        finally:
            os.close(descriptor)
        return True

    def exit(self) -> Exit | None:
        """What conmon wrote; None as long as it has not."""
        try:
            code = int(self.exit_file.read_text())
            at = self.exit_file.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            return None
        return Exit(code & 0xFF, at, (self.path / "persist" / "oom").exists())

    def make_shm(self, size_bytes: int, owner: tuple[int, int] = (0, 0), label: str = "") -> Path:
        """A /dev/shm on the host, for containers that share it. label: of SELinux. OSError."""
        folder = self.path / "shm"
        folder.mkdir()
        data = f"mode=1777,size={size_bytes},uid={owner[0]},gid={owner[1]}"
        linux.mount("shm", str(folder), "tmpfs", 2 | 4 | 8, with_option(data, label))  # nosuid nodev noexec
        return folder

    def mapped(self, number: int) -> Path:
        """Where the source of a mount with mapped ids is shown."""
        return self.path / "mapped" / str(number)

    def map(self, sources: Mapping[int, str], namespace: str) -> None:
        """Show these files and folders with a user namespace's ids. Blocking. OSError."""
        handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for number, source in sources.items():
                place = self.mapped(number)
                place.parent.mkdir(exist_ok=True)
                if os.path.isdir(source):
                    place.mkdir()
                else:
                    place.touch()
                clone = linux.idmapped_clone(Path(source), handle)
                try:
                    linux.attach_mount(clone, place)
                finally:
                    os.close(clone)
        finally:
            os.close(handle)

    def remove(self) -> None:
        """All files; nothing there is fine. Blocking. OSError."""
        for place in (self.path / "shm", *(self.path / "mapped").glob("*")):
            if not place.exists():
                continue
            try:
                linux.umount(str(place), linux.MNT_DETACH)
            except OSError as err:
                if err.errno != errno.EINVAL:  # not mounted (any more)
                    raise
        for folder in (self.state, self.path):
            if folder.exists():
                shutil.rmtree(folder, onerror=_gone_is_fine)
        self.exit_file.unlink(missing_ok=True)


def _gone_is_fine(function: object, path: str, info: tuple[object, BaseException, object]) -> None:
    """conmon removes its socket as it ends."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def write_control(fifo: Path, line: str) -> None:
    """A line for one of conmon's fifos. FileNotFoundError or OSError (ENXIO) if conmon does not listen."""
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
