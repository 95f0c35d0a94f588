"""What stages say at the same time is told one after another."""

from __future__ import annotations

import asyncio
from typing import Any

from swarmlet_agent.builder.output import Lane


async def test_a_stage_waits_for_its_turn_and_one_far_ahead_never_stands_still() -> None:
    told: list[str] = []

    async def listen(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        told.append(message["stream"])

    first, second = Lane(listen), Lane(listen)
    turn = asyncio.create_task(first.drain())
    await second.say("second")
    await first.say("first")
    await asyncio.sleep(0.01)
    assert told == ["first"]

    async with asyncio.timeout(5):
        for number in range(1000):  # nobody has come to it yet
            await second.say(str(number))
    assert len(told) > 700
    await first.end()
    await turn
    await second.end()
    await second.drain()
    assert told == ["first", "second", *map(str, range(1000))]


async def test_a_slow_reader_slows_the_stage_whose_turn_it_is() -> None:
    may_read = asyncio.Event()

    async def listen(_message: dict[str, Any]) -> None:
        await may_read.wait()

    lane, said = Lane(listen), 0
    reading = asyncio.create_task(lane.drain())
    await asyncio.sleep(0)

    async def talk() -> None:
        nonlocal said
        for _ in range(10_000):
            await lane.say("x")
            said += 1
        await lane.end()

    talking = asyncio.create_task(talk())
    for _ in range(2000):
        await asyncio.sleep(0)
    assert said < 1000
    may_read.set()
    await asyncio.gather(talking, reading)
    assert said == 10_000
