"""Request bodies as clients send them, made into the model's types."""

from __future__ import annotations

from typing import Any

from swarmlet.engine_api.router import NO_BODY, Call, convert
from swarmlet.engine_api.spelling import spelled
from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ContainerCreate
from swarmlet_agent.api.shapes.older import as_meant, moved
from swarmlet_agent.engine.container import ExecRequest

#: Maps in which a null value means something: a port without bindings, a network without wishes.
_NULLS_MATTER = {("HostConfig", "PortBindings"), ("NetworkingConfig", "EndpointsConfig")}


async def container_create(call: Call) -> tuple[ContainerCreate, list[str]]:
    """The body of POST /containers/create, and what to tell of it. InvalidArgument names the field."""
    body = await call.raw_json(keep_nulls=True)
    if body is None:
        raise InvalidArgument(NO_BODY)
    _check_types(body)
    meant = with_runtime(normalise_create(spelled(body, ContainerCreate)))
    return moved(as_meant(convert(meant, ContainerCreate), call.version), call.version)


async def exec_request(call: Call) -> ExecRequest:
    """The body of POST /containers/{id}/exec. InvalidArgument for one without a command, or no body."""
    body = await call.raw_json()
    if body is None:
        body = {}
    if isinstance(body, dict):
        body = spelled(body, ExecRequest)
        body = {**body, **_words(body, "Cmd")}
    request = convert(body, ExecRequest)
    if not request.cmd:
        raise InvalidArgument("No exec command specified")
    return request


def normalise_create(body: Any) -> Any:
    """Nulls removed where they mean "not given", and strings where lists of words may stand as one."""
    if not isinstance(body, dict):
        return body
    clean: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, dict):
            clean[key] = {name: _clean(item, (key, name)) for name, item in value.items() if item is not None}
        elif value is not None:
            clean[key] = _clean(value, (key,))
    return {**clean, **_words(clean, "Cmd"), **_words(clean, "Entrypoint")}


def _check_types(body: Any) -> None:
    """A mount without a type is none of dockerd's; in our records that is a volume."""
    host = spelled(body, ContainerCreate).get("HostConfig") if isinstance(body, dict) else None
    mounts = host.get("Mounts") if isinstance(host, dict) else None
    for mount in mounts if isinstance(mounts, list) else ():
        if isinstance(mount, dict) and not mount.get("Type"):
            raise InvalidArgument('invalid mount config for type "": mount type unknown')


def with_runtime(body: Any) -> Any:
    """docker-py's low level says `runtime` beside HostConfig, where engines of old read it; HostConfig's own wins."""
    if not isinstance(body, dict) or not (runtime := body.get("Runtime")):
        return body
    host = body.get("HostConfig", {})
    return body if not isinstance(host, dict) else {**body, "HostConfig": {"Runtime": runtime, **host}}


def _clean(value: Any, where: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        keep = where in _NULLS_MATTER
        return {
            key: None if item is None else _clean(item, ())
            for key, item in value.items()
            if keep or item is not None
        }
    if isinstance(value, list):
        return [_clean(item, ()) for item in value]
    return value


def _words(body: dict[str, Any], key: str) -> dict[str, Any]:
    """A single string is one word, as Docker's own types take it."""
    return {key: [body[key]]} if isinstance(body.get(key), str) else {}
