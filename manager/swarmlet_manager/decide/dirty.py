"""Which tasks run something else than their service now says: what updates, restarts and the API ask."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.model.node import Node
from swarmlet.model.service import Service
from swarmlet.model.task import Task
from swarmlet_manager.decide.nodes import suits


def is_dirty(service: Service, task: Task, node: Node | None) -> bool:
    """Does the task run something else than the service now says? node: where the task is, if anywhere.

    A change of placement alone leaves it clean as long as its node still satisfies the new constraints.
    """
    if task.spec_version == service.spec_version:
        return False
    template = service.spec.task_template
    if task.ports != service.ports:
        return True
    if task.spec is template or task.spec == template:
        return False
    if replace(task.spec, placement=template.placement) == template:
        return node is None or not suits(template.placement, node)
    return True
