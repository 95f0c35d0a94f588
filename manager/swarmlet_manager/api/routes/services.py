"""/services: create, list, inspect, update, remove."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.router import NO_BODY, Call, Route, convert
from swarmlet.errors import Forbidden, InvalidArgument, NotFound
from swarmlet.model import defaults
from swarmlet.model.service import NetworkAttachmentConfig, Service, ServiceSpec
from swarmlet.model.states import TaskState
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.api.routes.nodes import version_of
from swarmlet_manager.fleet.client import Fleet


class Entries(Protocol):
    """What nodes say of the ports they are to publish (the dispatcher)."""

    async def port_troubles(self, service: Service) -> list[str]: ...


class ServiceRoutes:
    def __init__(self, commands: Commands, fleet: Fleet, entries: Entries) -> None:
        self._commands = commands
        self._fleet = fleet
        self._entries = entries

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/services", self.index),
            Route("POST", "/services/create", self.create),
            Route("GET", "/services/{id}", self.inspect),
            Route("POST", "/services/{id}/update", self.update),
            Route("DELETE", "/services/{id}", self.remove),
        ]

    async def create(self, call: Call) -> web.Response:
        """ServiceCreate: 201; 400 bad spec, 409 name taken, 503 no leader."""
        spec = await self._spec(call)
        service = await self._commands.create_service(spec, call.request.headers.get("X-Registry-Auth", ""))
        return json_answer({"ID": service.id, "Warnings": await self._warnings(service) or None}, status=201)

    async def index(self, call: Call) -> web.Response:
        """ServiceList: filters id, name, label, mode, runtime; status=true adds running and desired counts."""
        filters = call.filters()
        filters.check("id", "name", "label", "mode", "runtime")
        self._commands.cluster()
        with_status = call.boolean("status")
        answer = [
            self._encode(service, with_status)
            for service in sorted(self._commands.services(), key=lambda service: service.spec.name)
            if filters.matches_prefix("id", service.id)
            and _matches_name(filters.get("name"), service.spec.name)
            and filters.matches_labels(service.spec.labels)
            and filters.matches("mode", mode_of(service.spec))
            and filters.matches("runtime", service.spec.task_template.runtime or "container")
        ]
        return json_answer(answer)

    async def inspect(self, call: Call) -> web.Response:
        service = self._commands.service(call.params["id"])
        return json_answer(encode.service(service, insert_defaults=call.boolean("insertDefaults")))

    async def update(self, call: Call) -> web.Response:
        """ServiceUpdate: the whole spec at the version it was read; rollback=previous goes back one spec."""
        version, rollback = version_of(call, "service"), call.text("rollback")
        if rollback not in ("", "previous"):
            raise InvalidArgument(f"unrecognized rollback option {rollback}")
        auth_from = call.text("registryAuthFrom") or "spec"
        if auth_from not in ("spec", "previous-spec"):
            raise InvalidArgument(f"unsupported registryAuthFrom value {auth_from}")
        service = await self._commands.update_service(
            call.params["id"],
            version,
            None if rollback else await self._spec(call),
            rollback=bool(rollback),
            registry_auth=call.request.headers.get("X-Registry-Auth", ""),
            registry_auth_from=auth_from,
        )
        return json_answer({"Warnings": await self._warnings(service) or None})

    async def remove(self, call: Call) -> web.Response:
        await self._commands.remove_service(call.params["id"])
        return web.Response()

    async def _warnings(self, service: Service) -> list[str]:
        """What it asked for and does not get, as far as that is known now."""
        return await self._entries.port_troubles(service) if service.ports else []

    def _encode(self, service: Service, with_status: bool) -> encode.Json:
        if not with_status:
            return encode.service(service)
        tasks = self._commands.state.tasks_of_service(service.id)
        if service.spec.mode.global_ is None:
            desired = defaults.replicas(service)
        else:
            # As Docker counts: the nodes that should run one now.
            desired = sum(1 for task in tasks if task.is_active and task.status.state != TaskState.NEW)
        return encode.service(service, tasks=tasks, desired=desired)

    async def _spec(self, call: Call) -> ServiceSpec:
        body: Any = await call.raw_json()
        if body is None:
            raise InvalidArgument(NO_BODY)
        spec = convert(body, ServiceSpec)
        # Old clients name the networks beside the template: as dockerd, the template's win where there are any.
        task = msgspec.structs.replace(
            spec.task_template, networks=await self._by_name(spec.task_template.networks or spec.networks)
        )
        container = task.container_spec
        if container is not None and container.isolation == "default":
            # Clients send back what they were shown where nobody had said anything.
            task = msgspec.structs.replace(task, container_spec=msgspec.structs.replace(container, isolation=""))
        return msgspec.structs.replace(spec, task_template=task, networks=await self._by_name(spec.networks))

    async def _by_name(self, networks: Iterable[NetworkAttachmentConfig]) -> tuple[NetworkAttachmentConfig, ...]:
        """The cluster's networks by id; those every node has by name, since their ids differ by node. NotFound."""
        named = []
        for network in networks:
            ref = network.target
            name = ref if ref in defaults.NODE_NETWORKS else self._wide(ref) or await self._of_nodes(ref)
            named.append(msgspec.structs.replace(network, target=name))
        return tuple(named)

    async def _of_nodes(self, ref: str) -> str:
        """NotFound; Forbidden for a network that only some node has."""
        path = f"/networks/{quote(ref, safe='')}?scope=local"
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", path) if ref else []
        found: list[str] = [answer.body["Name"] for answer in answers if answer.status < 400]
        if not found:
            raise NotFound("network", ref, f"network {ref} not found")
        for name in found:
            if name in defaults.NODE_NETWORKS:
                return name
        raise Forbidden(
            f"The network {ref} cannot be used with services. Only networks scoped to the swarm can be used, such as "
            "those created with the overlay driver."
        )

    def _wide(self, ref: str) -> str:
        """The id of a network of the cluster, "" if there is none of that name or id."""
        try:
            return self._commands.network(ref).id
        except NotFound:
            return ""


def mode_of(spec: ServiceSpec) -> str:
    """The word `docker service ls` and the mode filter use."""
    if spec.mode.global_ is not None:
        return "global"
    if spec.mode.replicated_job is not None:
        return "replicated-job"
    return "global-job" if spec.mode.global_job is not None else "replicated"


def _matches_name(wanted: tuple[str, ...], name: str) -> bool:
    """Docker's name filter of services matches prefixes."""
    return not wanted or any(name.startswith(prefix) for prefix in wanted)
