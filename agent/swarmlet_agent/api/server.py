"""All routes of the node view, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from swarmlet.engine_api.router import Route
from swarmlet.engine_api.unsupported import UnsupportedRoutes
from swarmlet_agent.api.backends import (
    ContainerBackend,
    EventPublisher,
    EventSource,
    ExecBackend,
    ImageLookup,
    StreamBackend,
)
from swarmlet_agent.api.routes.attach import AttachRoutes
from swarmlet_agent.api.routes.containers import ContainerRoutes
from swarmlet_agent.api.routes.events import ClusterEvents, EventRoutes
from swarmlet_agent.api.routes.execs import ExecRoutes
from swarmlet_agent.api.routes.logs import LogRoutes
from swarmlet_agent.api.routes.stats import StatsRoutes
from swarmlet_agent.api.routes.system import SystemRoutes
from swarmlet_agent.logs.reader import LogReader


class NodeEvents(EventSource, EventPublisher, Protocol):
    """The engine's event bus."""


class NodeEngine(ContainerBackend, StreamBackend, ExecBackend, Protocol):
    """The engine as all routes together use it."""

    @property
    def events(self) -> NodeEvents: ...


class RouteGroup(Protocol):
    def routes(self) -> list[Route]: ...


def node_routes(
    engine: NodeEngine,
    images: ImageLookup,
    logs: LogReader,
    system: SystemRoutes,
    others: Iterable[RouteGroup] = (),
    cluster: ClusterEvents | None = None,
) -> list[Route]:
    """`others` bring their own (images, volumes, networks, swarm) and come first, so they win over a refusal here.
    cluster: what this host's manager, if it runs one, tells of the cluster."""
    groups: list[RouteGroup] = [
        *others,
        system,
        UnsupportedRoutes(),
        ContainerRoutes(engine, images),
        AttachRoutes(engine, logs, engine.events),
        LogRoutes(engine, logs),
        StatsRoutes(engine),
        ExecRoutes(engine),
        EventRoutes(engine.events, cluster),
    ]
    return [route for group in groups for route in group.routes()]
