"""Containers on a host with SELinux: they have labels for life, and what is mounted into them is labelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_made import LONG, request
from engine_node import Node
from fakes.engine_world import World

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import HostConfig
from swarmlet_agent.api.shapes.inspect import container_inspect
from swarmlet_agent.decide.selinux import NO_LABELS, Labels, level_of, parse_policy, shared
from swarmlet_agent.engine import bringup, supplies
from swarmlet_agent.engine.container import SuppliedFile
from swarmlet_agent.engine.core import HostTraits

LABELLED = HostTraits(selinux=parse_policy(""))
Marks = list[tuple[str, str]]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """On a host with SELinux."""
    node = Node(World(tmp_path), LABELLED)
    await node.engine.start(LABELLED)
    yield node
    await node.engine.close()


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    """What is labelled, and how."""
    found: Marks = []
    monkeypatch.setattr(bringup, "label_source", lambda source, label: found.append((source, label)))
    monkeypatch.setattr(
        bringup, "label_files", lambda files, label: found.extend((file.name, label) for file in files)
    )
    return found


def labels(node: Node, ident: str) -> Labels:
    found = node.engine.get(ident).selinux
    assert found is not None
    return found


async def test_every_container_has_a_level_of_its_own_and_keeps_it(node: Node) -> None:
    one, two = await node.run(*LONG), await node.run(*LONG)
    first = labels(node, one)

    assert first.process.startswith("system_u:system_r:container_t:s0:c")
    assert level_of(first.process) == level_of(first.mount) != level_of(labels(node, two).mount)
    assert node.world.processes[one].plan.labels == first
    assert node.world.root_labels[one] == first.mount
    shown = container_inspect(node.engine.get(one))
    assert (shown["ProcessLabel"], shown["MountLabel"]) == (first.process, first.mount)
    await node.again(reboot=True)
    await node.engine.start_container(one)
    assert node.world.processes[one].plan.labels == labels(node, one) == first


async def test_containers_made_at_once_have_different_levels(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever picks first has it, though its record is written later."""
    picks, picked, both = iter([1, 2, 1, 2, 1, 3]), 0, asyncio.Event()
    creator, journal = node.engine._creator, node.engine._core.journal
    choose, put = creator._labels, journal.put

    def count(*args: Any) -> Labels | None:
        nonlocal picked
        picked += 1
        if picked == 2:
            both.set()
        return choose(*args)

    async def put_later(*args: Any) -> None:
        await both.wait()
        await put(*args)

    monkeypatch.setattr(creator._random, "randrange", lambda _: next(picks))
    monkeypatch.setattr(creator, "_labels", count)
    monkeypatch.setattr(journal, "put", put_later)
    made = await asyncio.gather(node.engine.create("one", request()), node.engine.create("two", request()))
    found = [record.selinux for record, _ in made]
    assert {level_of(each.mount) for each in found if each is not None} == {"s0:c1,c2", "s0:c1,c3"}
    assert creator._levels == {}


async def test_without_a_label_or_privileged_its_processes_are_not_confined(node: Node) -> None:
    for host in (
        HostConfig(security_opt=("label=disable",)), HostConfig(privileged=True), HostConfig(pid_mode="host"),
        HostConfig(ipc_mode="host"),
    ):
        ident = await node.run(*LONG, host=host)
        assert labels(node, ident).process == "" and labels(node, ident).mount.endswith(":c1022,c1023")
        assert "label=disable" in node.engine.get(ident).host.security_opt


async def test_who_has_anothers_processes_has_its_label(node: Node) -> None:
    owner = await node.run(*LONG, host=HostConfig(ipc_mode="shareable"))
    for host in (HostConfig(pid_mode=f"container:{owner}"), HostConfig(ipc_mode=f"container:{owner[:12]}")):
        ident = await node.run(*LONG, host=host)
        assert labels(node, ident) == labels(node, owner)
    other = await node.run(*LONG, host=HostConfig(ipc_mode="shareable"))
    both = request(pid_mode=f"container:{owner}", ipc_mode=f"container:{other}")
    with pytest.raises(InvalidArgument, match="aren't the same"):
        await node.engine.create("", both)


async def test_options_choose_labels_and_wrong_ones_are_refused(node: Node) -> None:
    options = ("label=type:spc_t", "label=level:s0:c5", "label=filetype:x_t")
    record, warnings = await node.engine.create("", request(security_opt=options))
    assert warnings == []
    assert record.selinux == Labels(
        process="system_u:system_r:spc_t:s0:c5", mount="system_u:object_r:x_t:s0:c5"
    )
    with pytest.raises(InvalidArgument, match='bad label option "nested"'):
        await node.engine.create("", request(security_opt=("label=nested",)))


async def test_what_is_mounted_is_labelled_at_each_start(node: Node, marks: Marks, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("shared", "private", "plain")}
    binds = (f"{places['shared']}:/a:z", f"{places['private']}:/b:ro,Z", f"{places['plain']}:/c", "data:/d")
    ident = await node.run(*LONG, host=HostConfig(binds=binds))
    own = labels(node, ident).mount
    volume = next(point.source for point in node.engine.get(ident).mounts if point.name == "data")

    expected = {(places["shared"], shared(own)), (places["private"], own), (volume, shared(own))}
    files = {(name, label) for name, label in marks if "/" not in name}
    assert {mark for mark in marks if "/" in mark[0]} == expected
    assert files and {label for _, label in files} == {own}
    marks.clear()
    await node.engine.restart(ident, 0)
    assert {mark for mark in marks if "/" in mark[0]} == expected


async def test_secrets_lie_in_a_file_system_with_its_label(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(supplies, "_mount", lambda place, options: told.append(options))
    monkeypatch.setattr(supplies.linux, "mount", lambda *_: None)
    file = SuppliedFile(target="/run/secrets/x", uid=os.getuid(), gid=os.getgid())
    record, _ = await node.engine.create("", request(), supplied=(file,))
    await node.engine.supply(record.id, [b"x"])
    assert [options.partition(",context=")[2] for options in told] == [f'"{labels(node, record.id).mount}"']


async def test_files_of_a_network_that_is_shared_are_for_both(node: Node, marks: Marks) -> None:
    owner = await node.run(*LONG)
    marks.clear()
    ident = await node.run(*LONG, host=HostConfig(network_mode=f"container:{owner}"))
    assert {label for _, label in marks} == {shared(labels(node, ident).mount)}


async def test_where_selinux_was_switched_off_or_on_since_there_are_no_labels(node: Node, marks: Marks) -> None:
    before = await node.run(*LONG)
    node.traits = None
    await node.again(reboot=True)
    marks.clear()
    await node.engine.start_container(before)
    unlabelled = await node.run(*LONG)
    assert node.world.processes[before].plan.labels == NO_LABELS
    assert node.world.root_labels[before] == "" and marks == []
    assert node.engine.get(unlabelled).selinux is None
    node.traits = LABELLED
    await node.again(reboot=True)
    for ident in (before, unlabelled):
        await node.engine.start_container(ident)
    assert node.world.processes[unlabelled].plan.labels == NO_LABELS
    assert node.world.processes[before].plan.labels == labels(node, before)


async def test_a_host_without_selinux_takes_any_option_and_says_that_it_has_no_effect(tmp_path: Path) -> None:
    """As dockerd does where SELinux is off: it reads none of them."""
    node = Node(World(tmp_path))
    await node.engine.start(HostTraits())
    record, warnings = await node.engine.create("", request(security_opt=("label=typ:x",)))
    assert record.selinux is None and "label=typ:x" in warnings[0]
    await node.engine.close()
