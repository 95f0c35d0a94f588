"""Engine API routes for containers: everything that is one question and one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from msgspec.structs import replace

from swarmlet.engine_api.answers import empty, json_answer, ready_answer
from swarmlet.engine_api.quick import QuickAnswer, QuickCall
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import Internal, InvalidArgument, NotFound, SwarmletError
from swarmlet.model.container import HostConfig
from swarmlet_agent.api.backends import ContainerBackend, ImageLookup
from swarmlet_agent.api.shapes import decode
from swarmlet_agent.api.shapes.inspect import container_inspect
from swarmlet_agent.api.shapes.summary import container_summary
from swarmlet_agent.api.summaries import Summaries, names_by_links
from swarmlet_agent.engine.container import Container

#: Links give names with a slash ("parent/alias").
_ONE = "/containers/{id:path}"


@contextmanager
def _said_first(
    words: str, kind: type[SwarmletError], *, but: tuple[type[SwarmletError], ...] = ()
) -> Iterator[None]:
    """Errors of that kind begin with these words, as dockerd's do; their status stays."""
    try:
        yield
    except kind as err:
        if not isinstance(err, but):
            err.args = (f"{words}: {err}", *err.args[1:])
        raise


class ContainerRoutes:
    def __init__(self, backend: ContainerBackend, images: ImageLookup) -> None:
        self._backend = backend
        self._images = images
        self._summaries = Summaries(backend, images)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/containers/create", self.create),
            Route("GET", "/containers/json", self.list_all, self.list_quickly),
            Route("POST", "/containers/prune", self.prune),
            Route("GET", f"{_ONE}/json", self.inspect),
            Route("POST", f"{_ONE}/start", self.start),
            Route("POST", f"{_ONE}/stop", self.stop),
            Route("POST", f"{_ONE}/restart", self.restart),
            Route("POST", f"{_ONE}/kill", self.kill),
            Route("POST", f"{_ONE}/pause", self.pause),
            Route("POST", f"{_ONE}/unpause", self.unpause),
            Route("POST", f"{_ONE}/rename", self.rename),
            Route("POST", f"{_ONE}/update", self.update),
            Route("POST", f"{_ONE}/resize", self.resize),
            Route("GET", f"{_ONE}/top", self.top),
            Route("DELETE", "/containers/{id:path}", self.remove),
        ]

    async def create(self, call: Call) -> web.StreamResponse:
        """ContainerCreate: 201; 400 bad parameter, 404 no such image, 409 name taken."""
        request, told = await decode.container_create(call)
        container, warnings = await self._backend.create(
            call.text("name"), request, platform=call.text("platform"), shallow=call.version < (1, 44)
        )
        return json_answer({"Id": container.id, "Warnings": [*warnings, *told]}, 201)

    async def list_all(self, call: Call) -> web.StreamResponse:
        """ContainerList."""
        if not call.flag("size"):
            return ready_answer(QuickAnswer(self._summaries.body(call, call.request.rel_url.raw_query_string)))
        every, now = self._backend.list(), time.time_ns()
        linked = names_by_links(every)
        chosen = self._summaries.select(call, every)
        sizes = await self._sizes(chosen)
        return json_answer([
            container_summary(each, self._summaries.image_name(each), now, sizes[each.id], linked.get(each.name, ()))
            for each in chosen
        ])

    def list_quickly(self, call: QuickCall) -> QuickAnswer | None:
        """ContainerList, where no size has to be measured."""
        return None if "size" in call.raw_query else QuickAnswer(self._summaries.body(call, call.raw_query))

    async def inspect(self, call: Call) -> web.StreamResponse:
        """ContainerInspect."""
        container = self._backend.get(call.params["id"])
        sizes = await self._sizes([container]) if call.flag("size") else {}
        exec_ids = self._backend.exec_ids(container.id)
        return json_answer(container_inspect(
            container, exec_ids=exec_ids, sizes=sizes.get(container.id), version=call.version,
            folders=self._folders(container), apparmor=self._backend.apparmor_profile(container.id),
        ))

    async def start(self, call: Call) -> web.StreamResponse:
        """ContainerStart: 204; 304 already started."""
        await self._backend.start_container(call.params["id"])
        return empty()

    async def stop(self, call: Call) -> web.StreamResponse:
        """ContainerStop: 204; 304 already stopped. `t` in seconds, -1 waits for ever."""
        ref = call.params["id"]
        with _said_first(f"cannot stop container: {ref}", Internal):
            await self._backend.stop(ref, call.number("t"), _stop_signal(call))
        return empty()

    async def restart(self, call: Call) -> web.StreamResponse:
        """ContainerRestart."""
        ref = call.params["id"]
        with _said_first(f"Cannot restart container {ref}", SwarmletError, but=(NotFound, InvalidArgument)):
            await self._backend.restart(ref, call.number("t"), _stop_signal(call))
        return empty()

    async def kill(self, call: Call) -> web.StreamResponse:
        """ContainerKill: 204; 409 not running."""
        ref = call.params["id"]
        with _said_first(f"cannot kill container: {ref}", SwarmletError):
            await self._backend.kill(ref, call.text("signal") or "SIGKILL")
        return empty()

    async def pause(self, call: Call) -> web.StreamResponse:
        await self._backend.pause(call.params["id"])
        return empty()

    async def unpause(self, call: Call) -> web.StreamResponse:
        await self._backend.unpause(call.params["id"])
        return empty()

    async def rename(self, call: Call) -> web.StreamResponse:
        """ContainerRename: 204; 409 name taken."""
        name = call.text("name")
        if not name:
            raise InvalidArgument("Neither old nor new names may be empty")
        await self._backend.rename(call.params["id"], name)
        return empty()

    async def update(self, call: Call) -> web.StreamResponse:
        """ContainerUpdate: limits and restart policy of a container, running or not."""
        changes = await call.json(HostConfig)
        if call.version < (1, 40):  # they had no such limit to change
            changes = replace(changes, pids_limit=None)
        warnings = await self._backend.update(call.params["id"], changes)
        return json_answer({"Warnings": list(warnings) or None})

    async def resize(self, call: Call) -> web.StreamResponse:
        """ContainerResize."""
        rows, columns = dimensions(call)
        await self._backend.resize(call.params["id"], rows, columns)
        return empty(200)

    async def top(self, call: Call) -> web.StreamResponse:
        """ContainerTop."""
        titles, processes = await self._backend.top(call.params["id"], call.text("ps_args", "-ef") or "-ef")
        return json_answer({"Titles": titles, "Processes": processes})

    async def remove(self, call: Call) -> web.StreamResponse:
        """ContainerDelete: 204; 409 running and not forced."""
        await self._backend.remove(
            call.params["id"], force=call.flag("force"), volumes=call.flag("v"), link=call.flag("link")
        )
        return empty()

    async def prune(self, call: Call) -> web.StreamResponse:
        """ContainerPrune."""
        report = await self._backend.prune(call.filters())
        return json_answer(
            {"ContainersDeleted": list(report.containers_deleted) or None, "SpaceReclaimed": report.space_reclaimed}
        )

    def _folders(self, container: Container) -> tuple[Path, Sequence[Path]] | None:
        try:
            return self._images.root_folders(container.id, container.image_id)
        except NotFound:  # its image was removed by force
            return None

    async def _sizes(self, containers: list[Container]) -> dict[str, tuple[int, int]]:
        """(own bytes, image's bytes) by container id; measured a few at a time."""
        gate = asyncio.Semaphore(4)

        async def measure(container: Container) -> tuple[int, int]:
            async with gate:
                own = await self._backend.size(container.id)
            try:
                return own, self._images.size_below(container.id, container.image_id)
            except NotFound:  # a record of before such images' layers were kept
                return own, 0

        sizes = await asyncio.gather(*(measure(each) for each in containers))
        return {each.id: size for each, size in zip(containers, sizes, strict=True)}


def _stop_signal(call: Call) -> str | None:
    """Clients before API 1.42 had none to choose."""
    return call.text("signal") or None if call.version >= (1, 42) else None


def dimensions(call: Call) -> tuple[int, int]:
    """`h` and `w` of a terminal. InvalidArgument unless both are numbers a terminal can have."""
    rows, columns = call.number("h"), call.number("w")
    if rows is None or columns is None:
        raise InvalidArgument("the parameters h and w are required")
    for name, value in (("h", rows), ("w", columns)):
        if not 0 <= value <= 0xFFFF:
            raise InvalidArgument(f"invalid value {value} for parameter {name}: expected 0 to 65535")
    return rows, columns
