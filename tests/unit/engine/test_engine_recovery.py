"""What the next engine makes of what the last one left: adoption, repair, restart policies, and random crashes."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from engine_node import Node
from fakes.engine_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.errors import SwarmletError
from swarmlet.model.container import ContainerCreate, HostConfig, RestartPolicy
from swarmlet_agent.engine.container import ExecRequest

LONG = ("sleep", "1000")


def policy(name: str, count: int = 0) -> HostConfig:
    return HostConfig(restart_policy=RestartPolicy(name=name, maximum_retry_count=count))


async def test_a_running_container_is_adopted_and_its_exit_code_is_right(node):
    ident = await node.run(*LONG)
    await node.again()

    assert node.engine.get(ident).state.status == "running"
    waiter = node.engine.register_wait(ident)
    node.world.end(ident, 9)
    assert (await waiter.result()).exit_code == 9
    assert node.world.starts[ident] == 1


async def test_an_end_while_no_agent_ran_is_noticed(node):
    ident = await node.run(*LONG)
    node.world.crash()
    node.world.end(ident, 4)
    await node.again()

    state = node.engine.get(ident).state
    assert (state.status, state.exit_code) == ("exited", 4)
    assert node.world.mounted == set()
    assert node.world.networks == {}


async def test_a_paused_container_stays_paused(node):
    ident = await node.run(*LONG)
    await node.engine.pause(ident)
    await node.again()

    assert node.engine.get(ident).state.status == "paused"
    await node.engine.unpause(ident)
    assert node.engine.get(ident).state.status == "running"


@pytest.mark.looptime
async def test_after_a_reboot_policies_decide_who_runs_again(node):
    ids = {
        name: await node.run(*LONG, name=name, host=host)
        for name, host in {
            "never": HostConfig(), "always": policy("always"), "unless": policy("unless-stopped"),
            "failing": policy("on-failure"), "stopped": policy("unless-stopped"), "stubborn": policy("always"),
            "passing": HostConfig(auto_remove=True),
        }.items()
    }  # fmt: skip
    await node.engine.stop("stopped")
    await node.engine.stop("stubborn")
    await node.engine.create("fresh", ContainerCreate(image="busybox", host_config=policy("always")))
    await node.again(reboot=True)
    await asyncio.sleep(0.3)  # those that ran wait for their first delay

    status = {record.name: record.state.status for record in node.engine.list()}
    assert status == {
        "never": "exited", "always": "running", "unless": "running", "failing": "running", "stopped": "exited",
        "stubborn": "running", "fresh": "created",
    }  # fmt: skip
    assert node.engine.get("never").state.exit_code == 255
    assert ids["passing"] not in node.world.roots


@pytest.mark.parametrize("calls", range(6))
async def test_a_removal_that_was_cut_is_finished_or_had_not_begun(node, calls):
    record, _ = await node.engine.create("", ContainerCreate(image="busybox", volumes={"/v": {}}))
    node.world.crash_after(calls)
    with pytest.raises(asyncio.CancelledError):
        await node.engine.remove(record.id, volumes=True)
    await node.again()
    await node.settle()

    begun = calls >= 1  # by then it is in the journal
    assert node.engine.list() == ([] if begun else [record])
    assert len(node.world.volumes) == (0 if begun else 1)


async def test_a_creation_that_was_cut_leaves_nothing(node):
    node.world.crash_after(5)
    with pytest.raises(asyncio.CancelledError):
        await node.engine.create("", ContainerCreate(image="busybox", volumes={"/v": {}, "/w": {}}))
    assert node.world.volumes
    await node.again()
    await node.settle()

    assert node.world.volumes == {}
    assert list((node.world.root / "data" / "containers").iterdir()) == []


@pytest.mark.parametrize("calls", range(10))
async def test_a_start_that_was_cut_is_either_whole_or_undone(node, calls):
    record, _ = await node.engine.create("", ContainerCreate(image="busybox", cmd=LONG))
    node.world.crash_after(calls)
    with pytest.raises(asyncio.CancelledError):
        await node.engine.start_container(record.id)
    await node.again()

    running = node.engine.get(record.id).state.status == "running"
    assert running == (record.id in node.world.processes)
    assert running == (record.id in node.world.mounted)
    assert running == (record.id in node.world.networks)


async def test_a_record_that_cannot_be_read_does_not_stop_the_others(node):
    ident = await node.run(*LONG)
    node.world.journal["containers", "f" * 64] = b"\xc1"
    await node.again()

    assert node.engine.get(ident).state.status == "running"
    assert len(node.engine.list()) == 1


@pytest.mark.parametrize("calls", range(3))
async def test_a_pause_that_was_cut_is_undone_or_whole(node, calls):
    ident = await node.run(*LONG)
    node.world.crash_after(calls)
    with pytest.raises(asyncio.CancelledError):
        await node.engine.pause(ident)
    await node.again()

    assert node.world.processes[ident].state == node.engine.get(ident).state.status


@pytest.mark.looptime
async def test_closing_during_a_start_does_not_wait_for_the_container(node):
    record, _ = await node.engine.create("", ContainerCreate(image="busybox", cmd=LONG))
    starting = asyncio.create_task(node.engine.start_container(record.id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await node.engine.close()
    await starting

    assert (await node.again()).get(record.id).state.status == "running"


@pytest.mark.looptime
async def test_closing_does_not_wait_for_what_runs_on(node):
    ident = await node.run(*LONG)
    await node.engine.exec_start(node.engine.exec_create(ident, ExecRequest(cmd=("sleep",))), detach=True)
    await node.engine.attach(ident)
    stopped = asyncio.create_task(node.engine.wait(ident))
    await node.settle()
    async with asyncio.timeout(2):
        await node.engine.close()

    assert node.world.processes[ident].state == "running"
    stopped.cancel()


NAMES = st.sampled_from(["aa", "bb", "cc"])
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.sampled_from(["sleep", "exit", "nosuch", "stubborn"]),
              st.sampled_from(["no", "always", "on-failure", "rm"])),
    st.tuples(st.sampled_from(
        ["start", "stop", "kill", "restart", "pause", "unpause", "remove", "force", "end"]), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("together"), NAMES),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(script=st.lists(st.tuples(OPERATIONS, st.one_of(st.none(), st.integers(0, 12)), st.booleans()), max_size=14))
def test_whatever_happens_and_whenever_the_agent_dies_journal_and_kernel_agree(script):
    asyncio.run(_play(script))


async def _play(script) -> None:
    with tempfile.TemporaryDirectory(prefix="swl-engine-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("swarmlet_agent.decide.restart.FIRST_DELAY_S", 0.02)
        patch.setattr("swarmlet_agent.decide.restart.LONGEST_DELAY_S", 0.04)
        # A dead engine waits in vain for exits that no monitor of it sees any more.
        patch.setattr("swarmlet_agent.engine.signals.KILL_WAIT_S", 0.3)
        patch.setattr("swarmlet_agent.engine.core.CLOSE_TIMEOUT_S", 0.3)
        node = Node(World(Path(folder)))
        await node.engine.start()
        try:
            for operation, crash, reboot in script:
                if crash is not None:
                    node.world.crash_after(crash)
                started = {record.id: record.state.pid for record in node.engine.list() if record.has_process}
                try:
                    await _apply(node, *operation)
                except SwarmletError:
                    pass
                except asyncio.CancelledError:
                    assert crash is not None
                if crash is not None:
                    await node.again(reboot=reboot)
                await _at_rest(node, started, rebooted=crash is not None and reboot)
        finally:
            await node.engine.close()


async def _apply(node: Node, action: str, name: str, *rest: str) -> None:
    engine = node.engine
    if action == "create":
        program, kind = rest
        host = HostConfig(auto_remove=True) if kind == "rm" else policy(kind)
        cmd = (program, "3") if program == "exit" else (program,)
        await engine.create(name, ContainerCreate(image="busybox", cmd=cmd, host_config=host, volumes={"/v": {}}))
        await engine.start_container(name)
    elif action == "rename":
        await engine.rename(name, rest[0])
    elif action == "end":
        node.world.end(engine.get(name).id, 7)
    elif action == "together":
        results = await asyncio.gather(
            engine.restart(name, 0), engine.stop(name, 0), engine.start_container(name),
            engine.remove(name, force=True), return_exceptions=True,
        )  # fmt: skip
        for result in results:
            if isinstance(result, BaseException):
                raise result
    else:
        await {
            "start": lambda: engine.start_container(name),
            "stop": lambda: engine.stop(name, 0),
            "kill": lambda: engine.kill(name),
            "restart": lambda: engine.restart(name, 0),
            "pause": lambda: engine.pause(name),
            "unpause": lambda: engine.unpause(name),
            "remove": lambda: engine.remove(name),
            "force": lambda: engine.remove(name, force=True, volumes=True),
        }[action]()


async def _at_rest(node: Node, started: dict[str, int], *, rebooted: bool) -> None:
    """Restarting containers come and go, so agreement is to be reached soon, between two of their runs."""
    for _ in range(500):
        await asyncio.sleep(0.001)
        units = node.engine._core.units.values()
        tasks = {task.get_name().split()[0] for task in node.engine._core._tasks}
        if any(unit.lock.locked() or unit.removing or unit.keep for unit in units):
            continue
        if tasks <= {"monitor", "restart", "log"}:
            try:
                _check(node, started, rebooted=rebooted)
            except AssertionError:
                continue
            return
    _check(node, started, rebooted=rebooted)


def _check(node: Node, started: dict[str, int], *, rebooted: bool) -> None:
    world, records = node.world, {record.id: record for record in node.engine.list()}
    assert {key for table, key in world.journal if table == "containers"} == set(records)
    assert len({record.name for record in records.values()}) == len(records)
    assert node.engine._core.names == {record.name: ident for ident, record in records.items()}
    running = {ident for ident, record in records.items() if record.has_process}
    assert running == set(world.processes)
    assert {ident: world.processes[ident].state for ident in running} == {
        ident: records[ident].state.status for ident in running
    }
    assert all(records[ident].state.pid == world.processes[ident].pid for ident in running)
    assert set(world.networks) == running
    assert world.mounted == running
    assert {path.name for path in (world.root / "run" / "engine").iterdir()} == running
    assert {path.name for path in (world.root / "data" / "containers").iterdir()} == set(records)
    assert world.roots <= set(records)
    for users in world.volumes.values():
        assert users <= set(records)
    for ident, pid in started.items():  # known to run before: its end, if it came, is told truly
        record = records.get(ident)
        if record is not None and record.state.status == "exited" and record.host.restart_policy.name == "no":
            assert record.state.exit_code == (255 if rebooted else world.exit_codes.get(pid, record.state.exit_code))
