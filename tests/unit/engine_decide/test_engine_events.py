"""The event bus: order, filters, and listeners that are too slow."""

from __future__ import annotations

import asyncio
import time

import pytest

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument, Unavailable
from swarmlet_agent.engine.events import Event, EventBus, matches

WEB = Event("container", "die", "abc123", {"name": "web", "image": "nginx:1", "exitCode": "0", "team": "x"})


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, True),
        ({"type": ("container",)}, True),
        ({"type": ("image",)}, False),
        ({"event": ("start", "die")}, True),
        ({"container": ("web",)}, True),
        ({"container": ("abc",)}, True),
        ({"container": ("other",)}, False),
        ({"image": ("nginx",)}, True),
        ({"image": ("nginx:2",)}, False),
        ({"label": ("team=x",)}, True),
        ({"label": ("team=y",)}, False),
        ({"volume": ("v",)}, False),
        ({"service": ("s",)}, False),
        ({"scope": ("swarm",)}, False),
        ({"container": ("web",), "event": ("start",)}, False),
    ],
)
def test_filters(filters, expected):
    assert matches(WEB, Filters(filters)) is expected


def test_an_action_with_arguments_is_matched_by_its_name_too():
    assert matches(Event("container", "exec_create: ls", "a"), Filters({"event": ("exec_create",)}))


def test_the_event_of_a_network_tells_of_its_container():
    assert matches(Event("network", "connect", "n", {"container": "abc"}), Filters({"container": ("abc",)}))


async def test_a_listener_gets_what_it_asked_for_in_order():
    bus = EventBus()
    first = bus.publish("image", "pull", "x")
    with bus.subscribe(since=first.at, filters=Filters({"type": ("image",)})) as listener:
        bus.publish("container", "create", "c")
        bus.publish("image", "tag", "y")
        assert [(await anext(listener)).action for _ in range(2)] == ["pull", "tag"]
    assert bus.listeners == 0


async def test_times_grow_with_every_event():
    bus = EventBus()
    times = [bus.publish("image", "pull", "x", at=5).at for _ in range(3)]
    assert times == [5, 6, 7]


async def test_until_in_the_past_ends_at_once_and_in_the_future_then():
    bus = EventBus()
    bus.publish("image", "pull", "x", at=10)
    assert [event.action async for event in bus.subscribe(since=1, until=20)] == ["pull"]
    soon = bus.subscribe(until=time.time_ns() + 30_000_000)
    assert [event async for event in soon] == []
    assert bus.listeners == 0


async def test_a_slow_listener_is_cut_off_and_told():
    bus = EventBus(queue_size=3)
    listener = bus.subscribe()
    for number in range(5):
        bus.publish("image", "pull", str(number))
    got = [(await anext(listener)).actor_id for _ in range(3)]

    assert got == ["0", "1", "2"]
    with pytest.raises(Unavailable, match="too slowly"):
        await anext(listener)
    assert bus.listeners == 0


async def test_closing_ends_every_stream():
    bus = EventBus()
    listener = bus.subscribe()
    reading = asyncio.create_task(_all(listener))
    await asyncio.sleep(0)
    bus.close()

    assert await reading == []
    assert [event async for event in bus.subscribe()] == []


def test_unknown_filters_are_refused():
    with pytest.raises(InvalidArgument, match="invalid filter 'colour'"):
        EventBus().subscribe(filters=Filters({"colour": ("red",)}))


async def _all(listener) -> list[Event]:
    return [event async for event in listener]
