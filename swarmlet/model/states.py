"""Enumerations of the cluster: task states, node states, roles. Values are SwarmKit's."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class TaskState(IntEnum):
    """States only grow; desired state is the manager's, observed state the agent's (SwarmKit task model)."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800  # a desired state only: stop, then forget the task
    ORPHANED = 832

    @property
    def api_name(self) -> str:
        """The word the Engine API uses."""
        return self.name.lower()

    @property
    def is_terminal(self) -> bool:
        """True once nothing will run for this task any more."""
        return self > TaskState.RUNNING


class NodeState(StrEnum):
    UNKNOWN = "unknown"
    DOWN = "down"
    READY = "ready"
    DISCONNECTED = "disconnected"


class Availability(StrEnum):
    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


class Role(StrEnum):
    WORKER = "worker"
    MANAGER = "manager"
