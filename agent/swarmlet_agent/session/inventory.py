"""Keeps the manager's list of this node's containers up to date, from the engine's events."""

from __future__ import annotations

from typing import Protocol

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import SwarmletError, Unavailable
from swarmlet.log import get_logger
from swarmlet.wire.messages import ContainerRef
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.events import EventBus

log = get_logger(__name__)


class Containers(Protocol):
    """The engine, as far as it is needed here."""

    @property
    def events(self) -> EventBus: ...

    def get(self, ref: str) -> Container: ...


class Listener(Protocol):
    """The session."""

    def container_changed(self, ref: ContainerRef) -> None: ...

    def container_removed(self, ident: str) -> None: ...

    def inventory_lost(self) -> None: ...


async def follow_containers(engine: Containers, session: Listener) -> None:
    """Tell the session of containers that come, go, or change their name, until the engine closes."""
    while True:
        with engine.events.subscribe(filters=Filters({"type": ("container",)})) as events:
            session.inventory_lost()  # whatever happened before we listened
            try:
                async for event in events:
                    match event.action:
                        case "create" | "rename":
                            _tell(engine, session, event.actor_id)
                        case "destroy":
                            session.container_removed(event.actor_id)
                return
            except Unavailable:
                log.warning("the inventory missed events")


def _tell(engine: Containers, session: Listener, ident: str) -> None:
    try:
        container = engine.get(ident)
    except SwarmletError:  # gone already: its destroy event follows
        return
    session.container_changed(ContainerRef(id=container.id, name=container.name))
