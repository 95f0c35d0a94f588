"""What the engine needs of its neighbours, as it uses them.

Images, the runtime, networks and volumes implement these without knowing the engine; `app.py` puts them
together. All `ensure`-like calls may be repeated: they look first and change only what differs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from swarmlet.model.common import Driver
from swarmlet_agent.decide.remap import MappedIds, Remap
from swarmlet_agent.images.types import Image
from swarmlet_agent.net.types import Attachment, InterfaceCounters, NetworkWish
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, Exit, Usage


class Images(Protocol):
    def get(self, ref: str) -> Image:
        """By name[:tag], name@digest, id or id prefix. NotFound ("No such image: …")."""
        ...

    async def ensure_rootfs(
        self, container_id: str, image_id: str, ids: MappedIds | None = None, label: str = ""
    ) -> Path:
        """The container's writable root: overlay of the image's layers and its own upper folder, mounted.

        ids: whose ids its files show, and are made with by the agent; None: as on disk. label: of SELinux, which all
        its files show; "": as on disk.
        """
        ...

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount; the container's own changes stay. Nothing mounted is fine."""
        ...

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete the container's own changes. Nothing there is fine."""
        ...

    async def rootfs_size(self, container_id: str) -> int:
        """Bytes in the container's own writable layer."""
        ...


class Streams(Protocol):
    """The standard streams of a running container or exec, as one client sees them."""

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1 = stdout or TTY, 2 = stderr, data) until the end. Reading slowly slows the process, not memory."""
        ...

    async def write(self, data: bytes) -> None:
        """To its stdin; waits while the pipe is full. Ignored once stdin is closed."""
        ...

    async def close_stdin(self) -> None: ...

    async def close(self) -> None:
        """Detach. The container goes on; its stdin stays open."""
        ...


class ExecProcess(Protocol):
    """A started exec."""

    @property
    def pid(self) -> int: ...

    @property
    def streams(self) -> Streams: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def wait(self) -> int:
        """Its exit code (128 + signal when killed)."""
        ...


class Runtime(Protocol):
    async def user_namespace(self, remap: Remap) -> str:
        """The file of a user namespace with this mapping, kept until the agent is taken down. Internal."""
        ...

    """Containers' processes, by container id, under conmon: they outlive this agent."""

    async def create(self, plan: ContainerPlan, *, log_path: Path) -> int:
        """conmon + OCI create; returns the (not yet started) init process's pid. StartFailed."""
        ...

    async def start(self, container_id: str) -> None:
        """Run the user's program. StartFailed."""
        ...

    async def attach(self, container_id: str, *, tty: bool) -> Streams:
        """Before start nothing is lost; later, from now on. Several at once are fine. Conflict if it is not running."""
        ...

    async def resize(self, container_id: str, rows: int, columns: int) -> None: ...

    async def reopen_log(self, container_id: str) -> None:
        """Its log file was renamed: go on with a new one of the old name. Conflict if it is not running."""
        ...

    async def exec(self, container_id: str, plan: ExecPlan) -> ExecProcess:
        """StartFailed with 126/127 as Docker has them; Conflict if the container is not running."""
        ...

    async def kill(self, container_id: str, signal: int, *, everything: bool = False) -> None:
        """Signal init (or every process of the container). A process that is gone is fine."""
        ...

    async def pause(self, container_id: str) -> None: ...

    async def resume(self, container_id: str) -> None: ...

    async def wait(self, container_id: str) -> Exit:
        """The exit, whenever it comes; at once if it already came. Works after an agent's restart (adopts)."""
        ...

    async def alive(self, container_id: str) -> int | None:
        """The pid of init if the container runs (or is created), else None. Truth from the kernel, not from memory."""
        ...

    async def delete(self, container_id: str) -> None:
        """Kill what is left, remove the runtime's and conmon's files and the cgroup. Nothing there is fine."""
        ...

    async def usage(self, container_id: str) -> Usage: ...

    async def pids(self, container_id: str) -> list[int]:
        """Host pids of every process of the container."""
        ...

    async def update(self, plan: ContainerPlan) -> None:
        """Apply plan.host's resource limits to a running container."""
        ...


class Networks(Protocol):
    async def attach(self, wish: NetworkWish) -> Attachment:
        """Namespace, interfaces, addresses, published ports and files; all or nothing.

        NotFound for an unknown network; Conflict ("port is already allocated", address in use, pool full).
        Called again for the same container (after a reboot) it makes the same again.
        """
        ...

    async def detach(self, container_id: str) -> None:
        """Undo all of attach. Nothing there is fine."""
        ...

    async def renamed(self, container_id: str, name: str) -> None:
        """The container goes by another name now, in lookups too. One that is not attached is fine."""
        ...

    async def counters(self, container_id: str) -> Sequence[InterfaceCounters]: ...


class Volumes(Protocol):
    async def ensure(self, name: str, driver: Driver | None, labels: dict[str, str]) -> Path:
        """The host folder of a named volume, made if needed. InvalidArgument for a bad name or unknown driver."""
        ...

    async def create_anonymous(self, labels: dict[str, str]) -> tuple[str, Path]:
        """A volume with a 64-hex-digit name, and its folder."""
        ...

    async def copy_up(self, name: str, image_folder: Path, subpath: str = "") -> None:
        """Fill a volume (or a folder in it) that is empty with what the image has at the mount point, owners and modes
        included. InvalidArgument for a subpath that is not there, or leads out."""
        ...

    async def use(self, name: str, container_id: str) -> None:
        """Remember that this container refers to the volume: it cannot be removed then."""
        ...

    async def release(self, container_id: str, *, remove_anonymous: bool) -> None:
        """Forget the container's references; with remove_anonymous delete its anonymous volumes no one else uses."""
        ...
