"""Secrets and configs from the command to the node: sealed in the store, and given to those alone that need them."""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path

import pytest
from fakes.control_world import Agent, Manager, cluster, running, service_spec, until
from msgspec.structs import replace

from swarmlet.errors import Internal, InvalidArgument, OutOfSequence, Unavailable
from swarmlet.model.common import Driver
from swarmlet.model.dependency import Config, ConfigSpec, Dependency, Kind, Secret, SecretSpec
from swarmlet.model.service import ConfigReference, FileTarget, Placement, SecretReference, ServiceSpec
from swarmlet.model.states import TaskState
from swarmlet.tls import TlsIdentity, client_context
from swarmlet_manager.ca.vault import FILE, Vault
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

VALUE = b"not-to-be-seen-4711"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def make(manager: Manager, kind: Kind, name: str, data: bytes, **more: object) -> Dependency:
    spec = (SecretSpec if kind is Secret else ConfigSpec)(name=name, data=encoded(data), **more)  # type: ignore[arg-type]
    return await manager.control.dependencies.create(kind, spec)


def using(*records: Dependency, name: str = "web", node: str = "node-0", **more: object) -> ServiceSpec:
    """A service on one node with each of these as a file of its name."""
    spec = service_spec(
        name,
        secrets=tuple(
            SecretReference(secret_id=each.id, secret_name=each.name, file=FileTarget(name=each.name))
            for each in records if isinstance(each, Secret)
        ),
        configs=tuple(
            ConfigReference(config_id=each.id, config_name=each.name, file=FileTarget(name=f"/{each.name}"))
            for each in records if isinstance(each, Config)
        ),
        **more,
    )
    placement = Placement(constraints=(f"node.hostname == {node}",))
    return replace(spec, task_template=replace(spec.task_template, placement=placement))


def held(agent: Agent) -> int:
    assert agent.worker is not None
    return len(agent.worker._contents)


async def stored(etcd: MemoryEtcd) -> bytes:
    """Everything that is in the store."""
    client = MemoryClient(etcd)
    page = await client.read(b"/", b"0")
    return b"".join(kv.key + kv.value for kv in page.kvs)


async def test_only_the_node_with_the_task_gets_it_and_only_as_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with cluster(tmp_path) as (etcd, manager, agents):
        secret = await make(manager, Secret, "s", VALUE)
        config = await make(manager, Config, "c", b"open")
        await manager.control.create_service(using(secret, config))
        await until(lambda: len(running(manager)) == 1)
        assert list(agents[0].engine.supplies.values()) == [(VALUE, b"open")]
        assert [file.target for file in agents[0].engine.list()[0].supplied] == ["/run/secrets/s", "/c"]
        assert [held(agent) for agent in agents] == [2, 0, 0]
        await manager.control.create_service(using(secret, name="more"))
        await until(lambda: len(running(manager)) == 2)
        await manager.control.remove_service("web")
        await until(lambda: held(agents[0]) == 1)
        await manager.control.remove_service("more")
        await until(lambda: held(agents[0]) == 0)
        on_disk = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
        assert len(on_disk) > 3
        for kept in (await stored(etcd), caplog.text.encode(), *on_disk):
            assert VALUE not in kept and base64.b64encode(VALUE) not in kept


async def test_templates_are_resolved_for_each_task(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, agents):
        secret = await make(manager, Secret, "s", VALUE)
        text = b'{{.Service.Name}} {{.Node.Hostname}} {{.Task.Slot}} {{env "WHERE"}} {{secret "s"}} {{env "NO"}}.'
        config = await make(manager, Config, "c", text, templating=Driver(name="golang"))
        await manager.control.create_service(using(secret, config, env=("WHERE=at-{{.Node.Hostname}}",)))
        await until(lambda: len(running(manager)) == 1)
        assert list(agents[0].engine.supplies.values()) == [(VALUE, b"web node-0 1 at-node-0 " + VALUE + b" .")]


async def test_a_template_that_needs_what_the_service_has_not_fails_its_task_by_name(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, _agents):
        config = await make(manager, Config, "c", b'{{ secret "other" }}', templating=Driver(name="golang"))
        await manager.control.create_service(using(config))
        await until(lambda: any(
            "secret target other not found" in task.status.err for task in manager.store.state.tasks.values()
        ))


async def test_an_agent_that_was_killed_starts_nothing_before_it_has_its_secrets_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, agents):
        agent = agents[0]
        secret = await make(manager, Secret, "s", VALUE)
        agent.engine.start_error = Unavailable("not yet")
        agent.images.gate = asyncio.Event()
        agent.images.present.clear()
        await manager.control.create_service(using(secret))
        await until(lambda: agent.images.pulls)
        await agent.stop()
        agent.engine.start_error = None
        agent.images.gate.set()
        await agent.start(("127.0.0.1:1",))  # no manager answers
        await until(lambda: agent.worker is not None and TaskState.STARTING in {
            status.state for status in agent.worker.tasks.values()
        })
        await asyncio.sleep(0.2)
        assert held(agent) == 0 and not agent.engine.supplies
        await agent.stop()
        await agent.start((manager.address,))
        await until(lambda: len(running(manager)) == 1)
        assert list(agent.engine.supplies.values()) == [(VALUE,)]


async def test_what_is_sealed_with_a_lost_key_fails_tasks_by_name_and_works_again_with_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, agents):
        secret = await make(manager, Secret, "s", VALUE)
        vault = manager.control.dependencies._vault
        assert isinstance(vault, Vault)
        key, vault._key = vault._key, b""
        with pytest.raises(Unavailable, match="has not got the key"):
            await make(manager, Secret, "t", VALUE)
        await manager.control.create_service(using(secret))
        await until(lambda: any(
            "has not got the key" in task.status.err for task in manager.store.state.tasks.values()
        ))
        vault._key = key
        await until(lambda: len(running(manager)) == 1)
        assert list(agents[0].engine.supplies.values()) == [(VALUE,)]


async def test_a_second_manager_is_handed_the_key_by_the_first_and_no_worker_is(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (etcd, manager, agents):
        secret = await make(manager, Secret, "s", VALUE)
        store = Store(MemoryClient(etcd), Candidate(id="m2", addr="127.0.0.1:2"))
        await store.start()
        try:
            own = tmp_path / "m2"
            own.mkdir()
            vault = Vault(store, own, lambda: ["127.0.0.1:1", manager.address])
            with pytest.raises(Unavailable):
                vault.open(secret.sealed, secret.id)
            worker = client_context(agents[0].identity.tls)
            assert not await vault._ask(manager.address, worker) and not (own / FILE).exists()
            pair = manager.authority.own_certificate("m2", ["127.0.0.1"])
            async with asyncio.timeout(30):
                await vault.fetch(client_context(TlsIdentity(pair, manager.authority.ca_pem())))
            assert vault.open(secret.sealed, secret.id) == VALUE
            assert Vault(store, own).open(secret.sealed, secret.id) == VALUE
            assert (own / FILE).stat().st_mode & 0o777 == 0o600
            with pytest.raises(Internal):
                vault.open(secret.sealed, "another place")
        finally:
            await store.stop()


async def test_labels_change_at_the_version_they_were_read(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, _agents):
        secret = await make(manager, Secret, "s", VALUE)
        update = manager.control.dependencies.update
        spec = SecretSpec(name="s", labels={"a": "b"}, data=encoded(VALUE))
        changed = await update(Secret, "s", secret.version, spec)
        assert changed.labels == {"a": "b"}
        with pytest.raises(OutOfSequence):
            await update(Secret, "s", secret.version, SecretSpec(name="s"))
        with pytest.raises(InvalidArgument):
            await update(Secret, "s", changed.version, SecretSpec(name="s", data=encoded(b"other")))


async def test_a_service_and_a_removal_at_once_do_not_both_succeed(tmp_path: Path) -> None:
    async with cluster(tmp_path, agents=1) as (_, manager, _agents):
        for number in range(5):
            secret = await make(manager, Secret, f"s{number}", VALUE)
            results = await asyncio.gather(
                manager.control.create_service(using(secret, name=f"w{number}")),
                manager.control.dependencies.remove(Secret, secret.id), return_exceptions=True,
            )
            assert sum(isinstance(result, InvalidArgument) for result in results) == 1, results
