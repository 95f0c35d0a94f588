"""Engine API routes for further processes in running containers."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from swarmlet.engine_api.answers import empty, json_answer
from swarmlet.engine_api.router import Call, Route, convert
from swarmlet.engine_api.streams import STDOUT, frame, hijack
from swarmlet.errors import Conflict, SwarmletError
from swarmlet.model.base import ApiStruct
from swarmlet_agent.api.backends import ExecBackend
from swarmlet_agent.api.detach import parse_keys
from swarmlet_agent.api.pump import PumpPlan, pump
from swarmlet_agent.api.routes.containers import dimensions
from swarmlet_agent.api.shapes import decode
from swarmlet_agent.engine.container import ExecRecord


class ExecStart(ApiStruct, frozen=True, kw_only=True):
    """The body of POST /exec/{id}/start."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


class ExecRoutes:
    def __init__(self, backend: ExecBackend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/containers/{id:path}/exec", self.create),
            Route("POST", "/exec/{id}/start", self.start),
            Route("POST", "/exec/{id}/resize", self.resize),
            Route("GET", "/exec/{id}/json", self.inspect),
        ]

    async def create(self, call: Call) -> web.StreamResponse:
        """ContainerExec: 201; 409 if the container does not run or is paused."""
        request = await decode.exec_request(call)
        parse_keys(request.detach_keys)
        return json_answer({"Id": self._backend.exec_create(call.params["id"], request)}, 201)

    async def start(self, call: Call) -> web.StreamResponse:
        """ExecStart: 200 when detached, else the connection becomes the process's streams.

        A program that cannot be started is told in the stream, as dockerd does: clients then ask for the exit
        code, which is 126 or 127.
        """
        body = await call.raw_json()
        wish = convert({} if body is None else body, ExecStart)
        record = self._backend.exec_inspect(call.params["id"])
        self._check_startable(record)
        size = wish.console_size if wish.console_size and all(wish.console_size) else None
        if wish.detach:
            await self._backend.exec_start(record.id, detach=True, console_size=size)
            return empty(200)
        # The head goes out before the program runs, as with dockerd: some clients (docker-py) lose output that
        # comes in one packet with it.
        client, response = await hijack(call, tty=wish.tty)
        try:
            try:
                streams = await self._backend.exec_start(record.id, detach=False, console_size=size)
            except SwarmletError as err:
                text = f"{err}\r\n".encode()
                await client.write(text if wish.tty else frame(STDOUT, text))
            else:
                if streams is not None:
                    await pump(client, streams, _plan(record, framed=not wish.tty))
        except ConnectionResetError:
            pass  # the client has gone; the process goes on, as Docker has it
        finally:
            client.close()
        return response

    def _check_startable(self, record: ExecRecord) -> None:
        """What can be known before the head is sent. Conflict."""
        if record.running or record.exit_code is not None:
            state = "is already running" if record.running else "has already run"
            raise Conflict(f"Error: Exec command {record.id} {state}")
        status = self._backend.get(record.container_id).state.status
        if status == "paused":
            raise Conflict(f"Container {record.container_id} is paused, unpause the container before exec")
        if status != "running":
            raise Conflict(f"container {record.container_id} is not running")

    async def resize(self, call: Call) -> web.StreamResponse:
        """ExecResize."""
        rows, columns = dimensions(call)
        await self._backend.exec_resize(call.params["id"], rows, columns)
        return empty(200)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """ExecInspect: ExitCode is null while it runs."""
        return json_answer(_shown(self._backend.exec_inspect(call.params["id"])))


def _plan(record: ExecRecord, *, framed: bool) -> PumpPlan:
    request = record.request
    return PumpPlan(
        stdout=request.attach_stdout,
        stderr=request.attach_stderr,
        stdin=request.attach_stdin,
        framed=framed,
        ends_stdin=True,
        detach_keys=parse_keys(request.detach_keys) if request.tty else b"",
    )


def _shown(record: ExecRecord) -> dict[str, Any]:
    request = record.request
    process: dict[str, Any] = {
        "arguments": list(request.cmd[1:]),
        "entrypoint": request.cmd[0],
        "privileged": request.privileged,
        "tty": request.tty,
    }
    if request.user:
        process["user"] = request.user
    return {
        "ID": record.id,
        "ContainerID": record.container_id,
        "Running": record.running,
        "ExitCode": record.exit_code,
        "Pid": record.pid,
        "ProcessConfig": process,
        "OpenStdin": request.attach_stdin,
        "OpenStdout": request.attach_stdout,
        "OpenStderr": request.attach_stderr,
        "CanRemove": False,  # of dockerd's own tidying, minutes later
        "DetachKeys": request.detach_keys,
    }
