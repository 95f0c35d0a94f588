"""/tasks: list and inspect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import InvalidArgument
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet_manager.api import encode
from swarmlet_manager.api.backend import Commands
from swarmlet_manager.decide.update import is_dirty

#: The encoder's memory is swept when it holds this many more tasks than there are.
STALE_ENTRIES = 1000

_DESIRED = {"running": TaskState.RUNNING, "shutdown": TaskState.SHUTDOWN, "accepted": TaskState.ACCEPTED}


class TaskRoutes:
    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._encoder = encode.TaskEncoder()

    def routes(self) -> list[Route]:
        return [Route("GET", "/tasks", self.index), Route("GET", "/tasks/{id}", self.inspect)]

    async def index(self, call: Call) -> web.Response:
        """TaskList: filters desired-state, id, label, name, node, service, runtime, _up-to-date."""
        filters = call.filters()
        filters.check("desired-state", "id", "label", "name", "node", "service", "runtime", "_up-to-date")
        self._commands.cluster()
        tasks = sorted(self._select(filters), key=lambda task: (task.created_at, task.id))
        if len(self._encoder) > len(self._commands.state.tasks) + STALE_ENTRIES:
            self._encoder.forget_all_but(self._commands.state.tasks)
        body = self._encoder.encode(tasks, self._commands.state.networks)
        return web.Response(body=body, content_type="application/json")

    async def inspect(self, call: Call) -> web.Response:
        return json_answer(encode.task(self._commands.task(call.params["id"]), self._commands.state.networks))

    def _select(self, filters: Filters) -> Iterable[Task]:
        desired = {_desired(word) for word in filters.get("desired-state")}
        nodes = self._ids(filters, "node")
        services = self._ids(filters, "service")
        up_to_date = filters.flag("_up-to-date")
        for task in self._candidates(services, nodes):
            if desired and task.desired_state not in desired:
                continue
            if nodes is not None and task.node_id not in nodes:
                continue
            if up_to_date and not self._is_up_to_date(task):
                continue
            if (
                filters.matches_prefix("id", task.id)
                and _matches_name(filters.get("name"), task)
                and filters.matches_labels(self._labels(task))
                and filters.matches("runtime", task.spec.runtime or "container")
            ):
                yield task

    def _labels(self, task: Task) -> Mapping[str, str]:
        """Those of its service, as SwarmKit filters tasks: `docker stack ps` finds a stack's tasks by them."""
        service = self._commands.state.services.get(task.service_id)
        return {} if service is None else service.spec.labels

    def _is_up_to_date(self, task: Task) -> bool:
        """Does it run what its service says now? (What the client's progress display counts.)"""
        state = self._commands.state
        service = state.services.get(task.service_id)
        return service is not None and not is_dirty(service, task, state.nodes.get(task.node_id))

    def _candidates(self, services: set[str] | None, nodes: set[str] | None) -> Iterable[Task]:
        """By the narrowest index that applies."""
        state = self._commands.state
        if services is not None:
            return [task for ident in services for task in state.tasks_of_service(ident)]
        if nodes is not None:
            return [task for ident in nodes for task in state.tasks_on_node(ident)]
        return state.tasks.values()

    def _ids(self, filters: Filters, key: str) -> set[str] | None:
        """Ids of the services or nodes that a filter names. NotFound as dockerd, which looks them up first."""
        if key not in filters:
            return None
        find = self._commands.state.find_service if key == "service" else self._commands.state.find_node
        return {find(ref).id for ref in filters.get(key)}


def _desired(word: str) -> TaskState:
    """As Docker: running covers what is on its way there."""
    try:
        return _DESIRED.get(word) or TaskState[word.upper()]
    except KeyError as err:
        raise InvalidArgument(f"Invalid desired-state filter: '{word}'") from err


def _matches_name(wanted: tuple[str, ...], task: Task) -> bool:
    return not wanted or any(task.name.startswith(name) for name in wanted)
