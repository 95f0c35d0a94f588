"""Attaching to a container and commands in it, on a make-believe machine."""

from __future__ import annotations

import asyncio

import pytest
from engine_made import LONG, request

from swarmlet.errors import Conflict, InvalidArgument, NotFound
from swarmlet_agent.runtime.types import StartFailed


async def test_who_attaches_before_the_start_misses_nothing(node):
    record, _ = await node.engine.create("", request("echo", "hello"))
    streams = await node.engine.attach(record.id)
    reading = asyncio.create_task(_read(streams))
    await node.settle()
    await node.engine.start_container(record.id)

    assert await reading == b"hello\n"


async def test_an_attachment_ends_with_a_start_that_fails(node):
    record, _ = await node.engine.create("", request("nosuch"))
    streams = await node.engine.attach(record.id)
    with pytest.raises(StartFailed):
        await node.engine.start_container(record.id)

    assert await _read(streams) == b""
    await streams.close()


async def test_a_closed_attachment_is_forgotten(node):
    record, _ = await node.engine.create("", request())
    streams = await node.engine.attach(record.id)
    await streams.close()
    await node.engine.start_container(record.id)

    assert "runtime.attach" not in node.world.calls


async def test_exec_streams_end_with_the_exit_code_known(node):
    ident = await node.run(*LONG)
    run = node.engine.exec_create(ident, _exec("echo", "hi"))
    streams = await node.engine.exec_start(run)
    assert streams is not None

    assert await _read(streams) == b"hi\n"
    assert node.engine.exec_inspect(run).exit_code == 0
    assert not node.engine.exec_inspect(run).running
    with pytest.raises(Conflict, match="has already run"):
        await node.engine.exec_start(run)


async def test_a_detached_exec_runs_by_itself(node):
    ident = await node.run(*LONG)
    run = node.engine.exec_create(ident, _exec("exit", "4"))

    assert await node.engine.exec_start(run, detach=True) is None
    await node.settle()
    assert node.engine.exec_inspect(run).exit_code == 4
    told = [event.action for event in node.engine.events._ring]
    assert told[-3:] == ["exec_create: exit 4", "exec_start: exit 4", "exec_die"]


async def test_an_exec_that_cannot_start_has_its_code_too(node):
    ident = await node.run(*LONG)
    run = node.engine.exec_create(ident, _exec("nosuch"))

    with pytest.raises(StartFailed):
        await node.engine.exec_start(run)
    assert node.engine.exec_inspect(run).exit_code == 127


async def test_exec_needs_a_running_container_and_a_command(node):
    ident = await node.run(*LONG)
    with pytest.raises(InvalidArgument, match="No exec command specified"):
        node.engine.exec_create(ident, _exec())
    await node.engine.pause(ident)
    with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
        node.engine.exec_create(ident, _exec("ls"))
    await node.engine.stop(ident)
    with pytest.raises(Conflict, match="is not running"):
        node.engine.exec_create(ident, _exec("ls"))
    with pytest.raises(NotFound, match="No such exec instance: x"):
        node.engine.exec_inspect("x")


async def test_exec_runs_as_the_user_asked_for(node):
    ident = await node.run(*LONG, user="web")
    assert node.engine.get(ident).uid == 33
    plans = []
    runtime = node.engine._core.runtime
    original = runtime.exec

    async def spy(container_id, plan):
        plans.append(plan)
        return await original(container_id, plan)

    runtime.exec = spy
    for user in ("", "root", "7:10"):
        await node.engine.exec_start(node.engine.exec_create(ident, _exec("echo", user=user, env=("A=1",))))

    assert [(plan.uid, plan.gid, plan.groups) for plan in plans] == [(33, 34, (34,)), (0, 0, (0, 10)), (7, 10, (10,))]
    assert plans[0].env[-1] == "A=1"


async def _read(streams) -> bytes:
    return b"".join([piece async for _, piece in streams])


def _exec(*cmd: str, **options: object):
    from swarmlet_agent.engine.container import ExecRequest

    return ExecRequest(cmd=cmd, attach_stdout=True, **options)  # type: ignore[arg-type]
