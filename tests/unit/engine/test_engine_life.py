"""A container's life, on a make-believe machine."""

from __future__ import annotations

import asyncio

import pytest
from engine_made import LONG, request
from fakes.engine_world import image
from msgspec.structs import replace

from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound, NotModified
from swarmlet.model.common import Mount
from swarmlet.model.container import (
    ContainerCreate,
    HostConfig,
    LogConfig,
    RestartPolicy,
)
from swarmlet_agent.images.machine import this_machine
from swarmlet_agent.runtime.types import StartFailed


async def test_a_created_container_is_found_by_id_name_and_prefix(node):
    record, warnings = await node.engine.create("web", request())

    for ref in (record.id, "web", "/web", record.id[:12]):
        assert node.engine.get(ref) == record
    assert warnings == []
    assert record.state.status == "created"
    assert record.request.hostname == record.id[:12]
    assert record.request.host_config.network_mode == "bridge"
    assert [event.action for event in node.engine.events._ring] == ["create"]


async def test_an_unknown_reference_is_not_found(node):
    with pytest.raises(NotFound, match="No such container: nobody"):
        node.engine.get("nobody")


async def test_a_prefix_of_two_ids_is_ambiguous(node):
    ids = [(await node.engine.create("", request()))[0].id for _ in range(17)]
    letter = next(i[0] for i in ids if sum(other[0] == i[0] for other in ids) > 1)

    with pytest.raises(InvalidArgument, match="multiple IDs found"):
        node.engine.get(letter)


async def test_a_taken_name_is_refused_in_dockers_words(node):
    record, _ = await node.engine.create("web", request())

    with pytest.raises(Conflict) as caught:
        await node.engine.create("web", request())

    assert str(caught.value) == (
        f'Conflict. The container name "/web" is already in use by container "{record.id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


async def test_two_creations_of_one_name_at_once_make_one_container(node):
    results = await asyncio.gather(
        *(node.engine.create("web", request()) for _ in range(5)), return_exceptions=True
    )

    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert len(node.engine.list()) == 1


async def test_a_failed_creation_leaves_nothing_and_frees_the_name(node):
    mount = Mount(type="volume", target="/data", source="data")
    bad = Mount(type="volume", target="/other", source="other", volume_options=None)
    with pytest.raises(InvalidArgument):
        await node.engine.create("web", request(mounts=(mount, bad), volume_driver="", binds=("x:/y:bogus",)))
    other = replace(request(binds=("vol:/v",), volume_driver="nosuch"))
    with pytest.raises(InvalidArgument, match="error looking up volume plugin nosuch"):
        await node.engine.create("web", other)

    assert node.engine.list() == []
    assert list((node.world.root / "data" / "containers").iterdir()) == []
    await node.engine.create("web", request())


async def test_an_unknown_image_is_not_found(node):
    with pytest.raises(NotFound, match="No such image: nothing:latest"):
        await node.engine.create("", ContainerCreate(image="nothing", cmd=("true",)))


async def test_another_platform_than_the_images_is_not_found_so_that_clients_pull(node):
    with pytest.raises(NotFound, match=r"\(linux/\w+\) does not match the specified platform \(linux/s390x\)"):
        await node.engine.create("", request(), platform="linux/s390x")
    with pytest.raises(InvalidArgument, match="platform specifier component must match"):
        await node.engine.create("", request(), platform="linux/s390x,linux/arm64")
    await node.engine.create("", request(), platform=str(this_machine()))


async def test_start_runs_the_program_and_journals_it(node):
    ident = await node.run(*LONG)

    record = node.engine.get(ident)
    assert record.state.status == "running"
    assert record.state.pid == node.world.processes[ident].pid
    assert record.endpoints["bridge"].ip_address == "172.17.0.2"
    assert node.world.processes[ident].plan.env == ("PATH=/bin", f"HOSTNAME={ident[:12]}")
    assert (await node.again()).get(ident) == record


async def test_one_short_run_costs_three_journal_writes(node):
    ident = await node.run("true", host=HostConfig(auto_remove=True))
    await node.engine.wait(ident, "removed") if ident in node.engine._core.units else None
    await node.settle()

    assert node.world.journal_writes == 3  # created, running, gone


async def test_starting_twice_changes_nothing(node):
    ident = await node.run(*LONG)

    with pytest.raises(NotModified):
        await node.engine.start_container(ident)

    assert node.world.starts[ident] == 1


async def test_the_end_keeps_the_exit_code_and_frees_the_network(node):
    ident = await node.run(*LONG)
    waiter = node.engine.register_wait(ident, "next-exit")
    node.world.end(ident, 3)

    assert (await waiter.result()).exit_code == 3
    await node.settle()
    record = node.engine.get(ident)
    assert (record.state.status, record.state.exit_code, record.state.pid) == ("exited", 3, 0)
    assert record.endpoints["bridge"].ip_address == ""
    assert node.world.networks == {}
    assert node.world.mounted == set()
    assert list((node.world.root / "run" / "engine").iterdir()) == []


async def test_out_of_memory_is_told(node):
    ident = await node.run(*LONG)
    node.world.end(ident, 137, oom=True)
    await node.settle()

    assert node.engine.get(ident).state.oom_killed
    assert [event.action for event in node.engine.events._ring][-2:] == ["oom", "die"]


@pytest.mark.parametrize(("program", "code"), [("nosuch", 127), ("/etc", 126), ("broken", 128)])
async def test_a_program_that_cannot_start_undoes_everything(node, program, code):
    record, _ = await node.engine.create("web", request(program))

    with pytest.raises(StartFailed):
        await node.engine.start_container("web")

    state = node.engine.get("web").state
    assert (state.status, state.exit_code) == ("created", code)
    assert "executable file not found" in state.error
    assert node.world.networks == {}
    assert node.world.mounted == set()
    assert node.engine.get(record.id).endpoints["bridge"].ip_address == ""


async def test_a_failed_start_of_a_passing_container_removes_it(node):
    await node.engine.create("web", request("nosuch", auto_remove=True))
    waiter = node.engine.register_wait("web", "removed")

    with pytest.raises(StartFailed):
        await node.engine.start_container("web")

    assert (await waiter.result()).exit_code == 127
    assert node.engine.list() == []


async def test_stop_sends_the_images_signal_and_kills_who_does_not_listen(node):
    node.world.images["x"] = image("x", cmd=("stubborn",), stop_signal="SIGQUIT")
    record, _ = await node.engine.create("", ContainerCreate(image="x"))
    await node.engine.start_container(record.id)

    await node.engine.stop(record.id, timeout_s=0)

    kills = [call for call in node.world.calls if call.startswith("runtime.kill")]
    assert kills == ["runtime.kill 3", "runtime.kill 9"]
    assert node.engine.get(record.id).state.exit_code == 137
    with pytest.raises(NotModified):
        await node.engine.stop(record.id)


async def test_a_signal_by_request_goes_before_the_configured_one(node):
    ident = await node.run(*LONG, stop_signal="SIGQUIT")
    await node.engine.stop(ident, signal="SIGINT")

    assert node.engine.get(ident).state.exit_code == 130


async def test_kill_reaches_a_container_that_stop_is_waiting_for(node):
    ident = await node.run("stubborn")
    stopping = asyncio.create_task(node.engine.stop(ident, timeout_s=-1))
    await node.settle()
    await node.engine.kill(ident)

    await stopping
    assert node.engine.get(ident).state.exit_code == 137


async def test_killing_what_does_not_run_is_a_conflict(node):
    record, _ = await node.engine.create("", request())
    with pytest.raises(Conflict, match="is not running"):
        await node.engine.kill(record.id)


async def test_an_unknown_signal_is_refused(node):
    ident = await node.run(*LONG)
    with pytest.raises(InvalidArgument, match="invalid signal: NOPE"):
        await node.engine.kill(ident, "NOPE")


async def test_a_paused_container_can_be_stopped_but_not_entered(node):
    ident = await node.run(*LONG)
    await node.engine.pause(ident)

    with pytest.raises(Conflict, match="already paused"):
        await node.engine.pause(ident)
    with pytest.raises(Conflict, match="unpause and then stop"):
        await node.engine.remove(ident)
    await node.engine.stop(ident)
    assert node.engine.get(ident).state.status == "exited"
    with pytest.raises(Internal, match="is not paused"):
        await node.engine.unpause(ident)


async def test_a_running_container_is_removed_by_force_only(node):
    ident = await node.run(*LONG, name="web")

    with pytest.raises(Conflict, match='cannot remove container "/web": container is running'):
        await node.engine.remove("web")
    await node.engine.remove("web", force=True)
    await node.settle()

    assert node.engine.list() == []
    assert ident not in node.world.roots
    assert node.world.journal == {}
    await node.engine.create("web", request())


async def test_an_anonymous_volume_goes_with_its_container_and_a_named_one_stays(node):
    node.world.images["db"] = image("db", cmd=("true",), volumes={"/data": {}})
    record, _ = await node.engine.create("", ContainerCreate(image="db", host_config=HostConfig(binds=("keep:/k",))))
    assert len(node.world.volumes) == 2
    await node.engine.remove(record.id, volumes=True)

    assert list(node.world.volumes) == ["keep"]
    assert node.world.volumes["keep"] == set()


async def test_run_rm_leaves_nothing(node):
    ident = await node.run(*LONG, host=HostConfig(auto_remove=True))
    waiter = node.engine.register_wait(ident, "removed")
    node.world.end(ident, 5)

    assert (await waiter.result()).exit_code == 5
    await node.settle()
    assert node.engine.list() == []
    assert node.world.roots == set()


async def test_run_rm_is_off_its_networks_before_its_end_is_told(node):
    ident = await node.run(*LONG, host=HostConfig(auto_remove=True))
    waiter = node.engine.register_wait(ident, "next-exit")
    node.world.end(ident, 0)
    await waiter.result()

    assert [event.action for event in node.engine.events._ring][-1] == "die"
    assert node.world.networks == {}


async def test_restart_keeps_a_passing_container(node):
    ident = await node.run(*LONG, host=HostConfig(auto_remove=True))
    await node.engine.restart(ident, timeout_s=0)

    assert node.engine.get(ident).state.status == "running"
    assert node.world.starts[ident] == 2


async def test_waiting_for_what_does_not_run_answers_at_once(node):
    record, _ = await node.engine.create("", request())
    assert (await node.engine.wait(record.id)).exit_code == 0
    with pytest.raises(InvalidArgument, match="invalid condition"):
        node.engine.register_wait(record.id, "sometime")


async def test_an_unknown_user_fails_the_start(node):
    record, _ = await node.engine.create("", replace(request(), user="ghost"))
    with pytest.raises(Internal, match="unable to find user ghost: no matching entries in passwd file"):
        await node.engine.start_container(record.id)
    assert node.world.networks == {}


async def test_rename_moves_the_name(node):
    await node.engine.create("name-a", request())
    await node.engine.create("name-b", request())

    await node.engine.rename("name-a", "name-c")
    assert node.engine.get("name-c").name == "name-c"
    assert "networks.renamed" in node.world.calls
    with pytest.raises(NotFound):
        node.engine.get("name-a")
    with pytest.raises(Conflict, match="Error when allocating new name"):
        await node.engine.rename("name-c", "name-b")
    with pytest.raises(InvalidArgument, match="Invalid container name"):
        await node.engine.rename("name-c", "no good")


async def test_update_reaches_the_running_container_and_the_record(node):
    ident = await node.run(*LONG)
    await node.engine.update(ident, HostConfig(memory=64 << 20, restart_policy=RestartPolicy(name="always")))

    assert node.world.processes[ident].plan.host.memory == 64 << 20
    assert (await node.again()).get(ident).host.restart_policy.name == "always"
    with pytest.raises(InvalidArgument, match="6MB"):
        await node.engine.update(ident, HostConfig(memory=1))


async def test_a_bind_without_source_folder_is_made_and_a_mount_refused(node, tmp_path):
    missing = tmp_path / "made"
    await node.run(*LONG, host=HostConfig(binds=(f"{missing}:/x",)))
    assert missing.is_dir()

    mount = Mount(type="bind", source=str(tmp_path / "gone"), target="/x")
    with pytest.raises(InvalidArgument, match="bind source path does not exist"):
        await node.engine.create("", request(mounts=(mount,)))


async def test_options_that_are_not_honoured_are_refused_by_name(node):
    for option, name in (
        ({"userns_mode": "private"}, "invalid userns mode: private"),
        ({"storage_opt": {"size": "1g"}}, "storage-opt"),
        ({"isolation": "hyperv"}, "Invalid isolation"),
        ({"runtime": "kata"}, "unknown or invalid runtime name: kata"),
        ({"annotations": {"": "x"}}, "annotation key"),
        ({"log_config": LogConfig(type="fluentd")}, "log driver"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            await node.engine.create("", request(**option))


@pytest.mark.looptime
async def test_the_policy_restarts_with_growing_delays_until_a_user_stops_it(node):
    ident = await node.run("exit", "3", host=HostConfig(restart_policy=RestartPolicy(name="always")))
    await asyncio.sleep(0.4)

    assert node.world.starts[ident] == 3  # at 0, 0.1 and 0.3 s
    assert node.engine.get(ident).state.status == "restarting"
    await node.engine.stop(ident)
    assert node.engine.get(ident).state.status == "exited"
    await asyncio.sleep(0.5)
    assert node.world.starts[ident] == 3


@pytest.mark.looptime
async def test_on_failure_gives_up_after_its_count(node):
    policy = RestartPolicy(name="on-failure", maximum_retry_count=2)
    ident = await node.run("exit", "3", host=HostConfig(restart_policy=policy))
    await asyncio.sleep(0.6)

    assert node.world.starts[ident] == 3
    record = node.engine.get(ident)
    assert (record.state.status, record.restart_count) == ("exited", 2)


async def test_a_client_that_goes_away_does_not_cut_its_operation(node):
    record, _ = await node.engine.create("", request())
    starting = asyncio.create_task(node.engine.start_container(record.id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    await node.settle()
    assert starting.cancelled()

    assert node.engine.get(record.id).state.status == "running"


async def test_a_container_that_cannot_be_killed_is_told(node, monkeypatch):
    monkeypatch.setattr("swarmlet_agent.engine.signals.KILL_WAIT_S", 0.05)
    ident = await node.run(*LONG)

    async def deaf(*_args, **_kw):
        return None

    node.engine._core.runtime.kill = deaf
    with pytest.raises(Internal, match="did not receive an exit event"):
        await node.engine.kill(ident)
    assert node.engine.get(ident).state.status == "running"


async def test_a_shared_ipc_namespace_needs_a_donor_that_shares(node):
    await node.run(*LONG, name="closed")
    open_id = await node.run(*LONG, name="open", host=HostConfig(ipc_mode="shareable"))
    with pytest.raises(Conflict, match="non-shareable IPC"):
        await node.run(*LONG, host=HostConfig(ipc_mode="container:closed"))
    guest = await node.run(*LONG, host=HostConfig(ipc_mode="container:open"))

    pid = node.engine.get(open_id).state.pid
    assert node.world.processes[guest].plan.joined == {"ipc": f"/proc/{pid}/ns/ipc"}


async def test_prune_takes_only_what_does_not_run(node):
    from swarmlet.engine_api.filters import Filters

    running = await node.run(*LONG)
    record, _ = await node.engine.create("", replace(request(), labels={"a": "1"}))
    await node.engine.create("kept", request())
    report = await node.engine.prune(Filters({"label": ("a",)}))

    assert report.containers_deleted == (record.id,)
    assert report.space_reclaimed == 4096
    assert {item.id for item in node.engine.list()} == {running, node.engine.get("kept").id}
