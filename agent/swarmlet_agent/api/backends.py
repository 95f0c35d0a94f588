"""What the routes need of the engine and its neighbours: only the calls they make (as moby's routers declare)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from swarmlet.engine_api.filters import Filters
from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet_agent.engine.container import (
    Container,
    ExecRecord,
    ExecRequest,
    PruneReport,
    WaitResult,
)
from swarmlet_agent.engine.events import Event
from swarmlet_agent.engine.ports import Streams
from swarmlet_agent.images.types import Image
from swarmlet_agent.net.types import InterfaceCounters
from swarmlet_agent.runtime.types import Usage


class Waiting(Protocol):
    """A registered wait: nothing that happens after its making is missed."""

    async def result(self) -> WaitResult: ...

    def close(self) -> None: ...


class ContainerReader(Protocol):
    """Looking at containers."""

    def get(self, ref: str) -> Container: ...

    def list(self) -> Sequence[Container]: ...


class ContainerBackend(ContainerReader, Protocol):
    """The life of containers."""

    async def create(
        self, name: str, request: ContainerCreate, *, platform: str = "", shallow: bool = False
    ) -> tuple[Container, Sequence[str]]: ...

    async def start_container(self, ref: str) -> None: ...

    async def stop(self, ref: str, timeout_s: int | None = None, signal: str | None = None) -> None: ...

    async def restart(self, ref: str, timeout_s: int | None = None, signal: str | None = None) -> None: ...

    async def kill(self, ref: str, signal: str) -> None: ...

    async def pause(self, ref: str) -> None: ...

    async def unpause(self, ref: str) -> None: ...

    async def rename(self, ref: str, name: str) -> None: ...

    async def update(self, ref: str, changes: HostConfig) -> Sequence[str]: ...

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None: ...

    async def prune(self, filters: Filters) -> PruneReport: ...

    async def resize(self, ref: str, rows: int, columns: int) -> None: ...

    async def top(self, ref: str, ps_args: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]: ...

    def exec_ids(self, ref: str) -> Sequence[str]: ...

    def apparmor_profile(self, ref: str) -> str: ...

    async def size(self, ref: str) -> int: ...


class StreamBackend(ContainerReader, Protocol):
    """Waiting for containers and talking with their processes."""

    async def attach(self, ref: str) -> Streams: ...

    def register_wait(self, ref: str, condition: str = ...) -> Waiting: ...

    async def usage(self, ref: str) -> tuple[Usage, Sequence[InterfaceCounters]]: ...


class ExecBackend(Protocol):
    def get(self, ref: str) -> Container: ...

    def exec_create(self, ref: str, request: ExecRequest) -> str: ...

    async def exec_start(
        self, ident: str, *, detach: bool, tty: bool | None = None, console_size: tuple[int, int] | None = None
    ) -> Streams | None: ...

    def exec_inspect(self, ident: str) -> ExecRecord: ...

    async def exec_resize(self, ident: str, rows: int, columns: int) -> None: ...


class EventStream(Protocol):
    def __aiter__(self) -> EventStream: ...

    async def __anext__(self) -> Event: ...

    def close(self) -> None: ...


class EventSource(Protocol):
    @property
    def listeners(self) -> int: ...

    def subscribe(self, since: int = 0, until: int = 0, filters: Filters | None = None) -> EventStream: ...


class EventPublisher(Protocol):
    def publish(self, type: str, action: str, actor_id: str, attributes: dict[str, str] | None = None) -> object: ...


class ImageLookup(Protocol):
    @property
    def revision(self) -> int:
        """Grows with every change of images or their names."""
        ...

    def get(self, ref: str) -> Image: ...

    def size_below(self, container_id: str, image_id: str) -> int:
        """Bytes in the layers that a container stands on. NotFound."""
        ...

    def root_folders(self, container_id: str, image_id: str = "") -> tuple[Path, tuple[Path, ...]]:
        """The folder of a container's own changes, and those of the layers below, highest first. NotFound.

        With its image, also of one that was never started.
        """
        ...
