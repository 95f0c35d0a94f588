"""A container's networks and ports, on a make-believe machine."""

from __future__ import annotations

import pytest
from engine_made import LONG, request

from swarmlet.errors import Conflict, Internal, NotFound
from swarmlet.model.container import (
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
    PortBinding,
)


async def test_an_unknown_network_fails_the_start_and_names_it(node):
    await node.engine.create("web", request(network_mode="nowhere"))

    with pytest.raises(NotFound, match="network nowhere not found"):
        await node.engine.start_container("web")

    assert node.world.mounted == set()


async def test_a_taken_port_fails_the_second_start(node):
    ports = {"80/tcp": (PortBinding(host_port="8080"),)}
    await node.run(*LONG, host=HostConfig(port_bindings=ports))
    record, _ = await node.engine.create("", request(port_bindings=ports))

    with pytest.raises(Conflict, match="port is already allocated"):
        await node.engine.start_container(record.id)


async def test_a_port_is_free_again_once_stop_has_answered(node):
    ports = {"80/tcp": (PortBinding(host_port="8080"),)}
    first = await node.run(*LONG, host=HostConfig(port_bindings=ports))
    await node.engine.stop(first)

    await node.run(*LONG, host=HostConfig(port_bindings=ports))


async def test_a_containers_network_can_be_shared_while_it_runs(node):
    first = await node.run(*LONG, name="first")
    shared = HostConfig(network_mode="container:first")
    second = await node.run(*LONG, host=shared)

    assert node.engine.get(second).host.network_mode == f"container:{first}"
    assert node.world.networks[second].share_with == first
    await node.engine.stop(second)
    await node.engine.stop(first)
    with pytest.raises(Conflict, match="cannot join network namespace of a non running container"):
        await node.engine.start_container(second)


@pytest.mark.parametrize(("field", "word"), [("pid_mode", "PID"), ("ipc_mode", "IPC")])
async def test_a_namespace_of_what_does_not_run_cannot_be_joined(node, field, word):
    first = await node.run(*LONG, host=HostConfig(ipc_mode="shareable"))
    await node.engine.stop(first)
    second, _ = await node.engine.create("", request(**{field: f"container:{first}"}))

    with pytest.raises(Internal, match=f"failed to join {word} namespace: container {first} is not running"):
        await node.engine.start_container(second.id)


async def test_networks_and_usage(node):
    ident = await node.run(*LONG)
    usage, counters = await node.engine.usage(ident)

    assert usage.memory_bytes == 1000
    assert counters[0].rx_bytes == 7
    assert node.engine.users_of(node.engine.get(ident).image_id) == [(ident, True)]


async def test_every_network_asked_for_is_wished(node):
    wishes = NetworkingConfig(endpoints_config={"default": None, "web": None})
    ident = await node.run(*LONG, networking_config=wishes)

    assert sorted(node.engine.get(ident).endpoints) == ["bridge", "web"]


async def test_a_connected_network_is_shown_at_once_and_asked_for_at_each_start(node):
    ident = await node.run(*LONG)
    given = EndpointSettings(aliases=("me",), endpoint_id="e", ip_address="10.0.0.9", mac_address="02:42:0a:00:00:09")
    await node.engine.endpoint_changed(ident, "web", given)
    assert node.engine.get(ident).endpoints["web"] == given

    await node.engine.stop(ident)
    await node.again()
    assert node.engine.view(ident).endpoints["web"] == EndpointSettings(aliases=("me",))
    await node.engine.start_container(ident)
    assert node.engine.get(ident).endpoints["web"].ip_address == "172.17.0.2"
    await node.engine.endpoint_changed(ident, "web", None)
    assert sorted(node.engine.get(ident).endpoints) == ["bridge"]
