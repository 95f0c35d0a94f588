"""Engine API route for a container's logs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote_plus

from aiohttp import web

from swarmlet.engine_api.answers import refusal
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import MULTIPLEXED_STREAM, RAW_STREAM
from swarmlet.errors import InvalidArgument
from swarmlet_agent.api.backends import StreamBackend
from swarmlet_agent.decide.log_options import expand_tag, extra_attributes, keeps_log, tag_fields
from swarmlet_agent.engine.container import Container
from swarmlet_agent.logs.k8s_file import LogQuery
from swarmlet_agent.logs.reader import LogReader


class LogRoutes:
    def __init__(self, backend: StreamBackend, logs: LogReader) -> None:
        self._backend = backend
        self._logs = logs

    def routes(self) -> list[Route]:
        return [Route("GET", "/containers/{id:path}/logs", self.logs)]

    async def logs(self, call: Call) -> web.StreamResponse:
        """ContainerLogs: frames, or raw bytes of a terminal; 400 without a stream, 501 for a driver that keeps none."""
        container = self._backend.get(call.params["id"])
        query = log_query(call, container)
        if not container.log_path or not keeps_log(container.host.log_config):
            return refusal("configured logging driver does not support reading", 501)
        response = web.StreamResponse(headers={"Content-Type": _content_type(call, container)})
        response.enable_chunked_encoding()
        # Registered before the first look, so that an end in between is not missed.
        follow = call.flag("follow") and container.is_running
        waiting = self._backend.register_wait(container.id, "next-exit") if follow else None
        try:
            async with WhileConnected(call.request):
                await response.prepare(call.request)
                ended = None if waiting is None else waiting.result()
                async for data in self._logs.read(Path(container.log_path), query, ended):
                    await response.write(data)
                await response.write_eof()
        finally:
            if waiting is not None:
                waiting.close()
        return response


def _content_type(call: Call, container: Container) -> str:
    return RAW_STREAM if container.config.tty or call.version < (1, 42) else MULTIPLEXED_STREAM


def log_query(call: Call, container: Container) -> LogQuery:
    """The parameters; InvalidArgument in dockerd's words."""
    stdout, stderr = call.flag("stdout"), call.flag("stderr")
    if not (stdout or stderr):
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    tail = call.text("tail")
    return LogQuery(
        stdout=stdout,
        stderr=stderr,
        timestamps=call.flag("timestamps"),
        since=call.moment("since"),
        until=call.moment("until"),
        tail=int(tail) if tail.isdecimal() else None,  # "all", "" and what is no number mean all
        framed=not container.config.tty,
        prefix=attributes(container) if call.flag("details") else None,
    )


def attributes(container: Container) -> str:
    """What `--details` shows: the tag if one was asked for, labels and variables that log options name, as k=v,k=v."""
    options = container.host.log_config.config
    found = extra_attributes(container.config, options)
    if options.get("tag"):
        fields = tag_fields(
            ident=container.id, name=container.name, image_id=container.image_id, image_name=container.image_ref
        )
        found["tag"] = expand_tag(options["tag"], fields)
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in sorted(found.items()))
