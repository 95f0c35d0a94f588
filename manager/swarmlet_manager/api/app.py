"""All routes of the cluster view, put together."""

from __future__ import annotations

from swarmlet.engine_api.router import Route
from swarmlet.engine_api.unsupported import UnsupportedRoutes
from swarmlet.model.dependency import Config, Secret
from swarmlet_manager.api.backend import Commands, Place
from swarmlet_manager.api.routes.containers import ContainerRoutes, Inventory
from swarmlet_manager.api.routes.dependencies import DependencyRoutes
from swarmlet_manager.api.routes.events import ClusterEvents, EventRoutes, Subscribable
from swarmlet_manager.api.routes.images import ImageRoutes
from swarmlet_manager.api.routes.localnets import NodeNetworks
from swarmlet_manager.api.routes.logs import LogRoutes
from swarmlet_manager.api.routes.networks import NetworkRoutes
from swarmlet_manager.api.routes.nodes import NodeRoutes
from swarmlet_manager.api.routes.services import Entries, ServiceRoutes
from swarmlet_manager.api.routes.swarm import SwarmRoutes
from swarmlet_manager.api.routes.system import SystemRoutes
from swarmlet_manager.api.routes.tasks import TaskRoutes
from swarmlet_manager.api.routes.volumes import VolumeRoutes
from swarmlet_manager.fleet.client import Fleet


def cluster_routes(
    commands: Commands, fleet: Fleet, inventory: Inventory, place: Place, store: Subscribable, entries: Entries
) -> list[Route]:
    """The Engine API of the whole cluster."""
    parts = (
        SystemRoutes(commands, fleet, place), UnsupportedRoutes(), SwarmRoutes(commands), NodeRoutes(commands, place),
        LogRoutes(commands, fleet), ServiceRoutes(commands, fleet, entries), TaskRoutes(commands),
        ContainerRoutes(fleet, inventory), ImageRoutes(fleet), NetworkRoutes(commands, NodeNetworks(fleet)),
        VolumeRoutes(fleet, inventory), EventRoutes(fleet, ClusterEvents(store)), DependencyRoutes(commands, Secret),
        DependencyRoutes(commands, Config),
    )
    return [route for part in parts for route in part.routes()]
