"""Engine API EventMessage, with the flat fields of before API 1.22 that clients still read."""

from __future__ import annotations

from typing import Any

from swarmlet.model.times import NS
from swarmlet_agent.engine.events import Event


def event_message(event: Event) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if event.type in ("container", "image"):
        shown = {"status": event.action, "id": event.actor_id}
    if event.type == "container":
        shown["from"] = event.attributes.get("image", "")
    return shown | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor_id, "Attributes": dict(event.attributes)},
        "scope": event.scope,
        "time": event.at // NS,
        "timeNano": event.at,
    }
