"""Attaching, detaching, restarts, exhaustion: nothing is lost and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Mapping

import pytest
from net_lab import HOST, OUTSIDE, PATIENCE_S, Lab, in_own_network

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound
from swarmlet.ipam import PoolExhausted
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings, PortBinding
from swarmlet_agent.net.mesh.plan import Backend, MeshNode, MeshState, Published
from swarmlet_agent.net.records import AddressTaken, PortTaken
from swarmlet_agent.net.requests import Ipam, IpamConfig, NetworkConnect, NetworkCreate, NetworkDisconnect
from swarmlet_agent.net.types import ContainerView, NetworkWish
from swarmlet_agent.net.wireguard.kernel import GROUP as WAYS

pytestmark = pytest.mark.kernel
PORT_8080 = {"80/tcp": (PortBinding(host_port="8080"),)}


async def eventually_gone(lab: Lab, *names: str) -> None:
    """The kernel reaps dropped namespaces in its own time."""
    async with asyncio.timeout(PATIENCE_S):
        while lab.links() & set(names):
            await asyncio.sleep(0.02)


async def command(*words: str) -> str:
    """What a program prints; it must succeed."""
    result = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=True, timeout=60)
    return str(result.stdout)


def veths(lab: Lab) -> set[str]:
    return {name for name in lab.links() if name.startswith("veth")}


@in_own_network
async def test_a_detached_container_leaves_nothing_behind(lab: Lab) -> None:
    ident, web = await lab.attach("web", ports=PORT_8080)
    made = veths(lab)
    assert len(made) == 1

    await lab.networks.detach(ident)
    await lab.networks.detach(ident)

    await eventually_gone(lab, *made)
    assert not os.path.exists(web.netns_path or "")
    assert "elements" not in await command("nft", "list", "map", "ip", "swl", "pubany")
    with socket.create_server(("0.0.0.0", 8080)):
        pass  # the port is free again
    assert lab.events == [("connect", "bridge"), ("disconnect", "bridge")]


@in_own_network
async def test_teardown_removes_everything_and_a_new_start_makes_it_again(lab: Lab) -> None:
    before = lab.links()
    await lab.networks.create(NetworkCreate(name="app"))
    await lab.attach("web", "app", ports=PORT_8080)

    await lab.networks.teardown()

    assert lab.links() == before - {"swl0"}
    assert "swl" not in await command("nft", "list", "tables")
    assert not (lab.root / "run" / "netns").exists()
    await lab.restart()
    assert "swl0" in lab.links()
    assert lab.networks.get("app").bridge in lab.links()


@in_own_network
async def test_teardown_takes_the_mesh_and_the_encrypted_ways_along(lab: Lab) -> None:
    before, rules = lab.links(), await command("ip", "rule")
    await command("ip", "link", "add", "swlwg1", "group", str(WAYS), "type", "bridge")
    await command("ip", "link", "add", "swlwg9", "type", "bridge")  # by name alone it is not ours
    own, other = MeshNode(1, HOST), MeshNode(2, OUTSIDE)
    port = Published("tcp", 8080, (Backend("10.9.0.2", 80, 2),))
    ground = lab.networks._ground
    await ground.run(ground.kernel.mesh.ensure, MeshState(own, 1450, (other,), (port,)))
    assert "ing0" in lab.links() and await command("ip", "rule") != rules

    await lab.networks.teardown()

    assert lab.links() == (before - {"swl0"}) | {"swlwg9"}
    assert await command("ip", "rule") == rules
    assert await command("nft", "list", "tables") == ""
    await lab.restart()


@in_own_network
async def test_open_connections_live_on_while_the_agent_is_replaced(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    ident, web = await lab.attach("web", "app", ports=PORT_8080)
    _, peer = await lab.attach("peer", "app")
    address = web.endpoints["app"].ip_address

    async with lab.serve(web.netns_path, 80, "web"):
        published, inside = await lab.connect(lab.outside, HOST, 8080), await lab.connect(peer.netns_path, address, 80)
        assert await published.ask() == f"web {OUTSIDE}"
        await lab.close()
        assert await published.ask() == f"web {OUTSIDE}"
        assert (await lab.ask(lab.outside, HOST, 8080)) == f"web {OUTSIDE}"  # no agent, yet it answers
        lab.networks = lab.make()
        await lab.networks.start()
        assert await published.ask() == f"web {OUTSIDE}"
        assert (await inside.ask()).startswith("web ")
        published.close()
        inside.close()

    assert lab.networks.inspect("app").containers[ident].ipv4_address.startswith(address)
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("0.0.0.0", 8080))
    _, third = await lab.attach("third", "app")
    assert third.endpoints["app"].ip_address not in (address, peer.endpoints["app"].ip_address)


@in_own_network
async def test_what_a_crash_left_half_made_is_removed_at_start(lab: Lab) -> None:
    ident, _ = await lab.attach("web")
    stray_id, _ = await lab.attach("stray")
    ground = lab.networks._ground
    kept = ground.sandboxes[ident].endpoints[0].veth
    await ground.forget(stray_id)  # as if the journal's entry had never been written

    await lab.restart()

    assert veths(lab) == {kept}
    assert set(os.listdir(lab.root / "run" / "netns")) == {ident}
    assert lab.networks._ground.live == {ident}


@in_own_network
async def test_after_a_reboot_the_same_is_made_again(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app"))
    ident, first = await lab.attach("web", "app", ports={"80/tcp": (PortBinding(),)})
    wish = NetworkWish(
        container_id=ident, container_name="web", hostname="web", mode="app", ports={"80/tcp": (PortBinding(),)}
    )
    await lab.networks._ground.run(lab.networks._ground.kernel.teardown)

    await lab.restart()
    again = await lab.networks.attach(wish)

    assert again.endpoints["app"].ip_address == first.endpoints["app"].ip_address
    assert again.ports == first.ports
    async with lab.serve(again.netns_path, 80, "web"):
        assert await lab.ask(lab.outside, HOST, int(again.ports["80/tcp"][0].host_port)) == f"web {OUTSIDE}"


@in_own_network
async def test_attaching_again_what_is_attached_changes_nothing(lab: Lab) -> None:
    ident, first = await lab.attach("web", ports=PORT_8080)
    wish = NetworkWish(container_id=ident, container_name="web", hostname="web", mode="bridge", ports=PORT_8080)
    async with lab.serve(first.netns_path, 80, "web"):
        line = await lab.connect(lab.outside, HOST, 8080)
        assert await lab.networks.attach(wish) == first
        assert await line.ask() == f"web {OUTSIDE}"
        line.close()


@in_own_network
async def test_a_small_network_fills_up_and_frees_up(lab: Lab) -> None:
    small = Ipam(config=(IpamConfig(subnet="10.9.0.0/29"),))
    await lab.networks.create(NetworkCreate(name="small", ipam=small))
    made = [await lab.attach(f"c{number}", "small") for number in range(5)]

    assert len({attachment.endpoints["small"].ip_address for _, attachment in made}) == 5
    with pytest.raises(PoolExhausted, match="no available IPv4 addresses"):
        await lab.attach("c5", "small")
    for round_ in range(3):
        await lab.networks.detach(made.pop()[0])
        made.append(await lab.attach(f"again{round_}", "small"))


@in_own_network
async def test_addresses_and_ports_that_are_taken_are_refused_and_nothing_stays(lab: Lab) -> None:
    chosen = Ipam(config=(IpamConfig(subnet="10.9.0.0/24", gateway="10.9.0.254"),))
    await lab.networks.create(NetworkCreate(name="app", ipam=chosen))
    settings = EndpointSettings(
        ipam_config=EndpointIPAMConfig(ipv4_address="10.9.0.7"), mac_address="02:00:00:00:00:07"
    )
    _, one = await lab.attach("one", "app", endpoints={"app": settings}, ports=PORT_8080)
    before = (veths(lab), len(lab.networks._ground.sandboxes))

    assert one.endpoints["app"].ip_address == "10.9.0.7"
    assert one.endpoints["app"].mac_address == "02:00:00:00:00:07"
    with pytest.raises(AddressTaken, match="Address already in use"):
        await lab.attach("two", "app", endpoints={"app": settings})
    with pytest.raises(PortTaken, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        await lab.attach("two", "app", ports=PORT_8080)
    with socket.create_server(("127.0.0.1", 8081)), pytest.raises(PortTaken, match="address already in use"):
        await lab.attach("two", "app", ports={"80/tcp": (PortBinding(host_port="8081"),)})
    with pytest.raises(InvalidArgument, match="user defined networks only"):
        await lab.attach("two", endpoints={"bridge": settings})
    with pytest.raises(NotFound, match="network nowhere not found"):
        await lab.attach("two", "nowhere")
    assert (veths(lab), len(lab.networks._ground.sandboxes)) == before
    _, ranged = await lab.attach("two", "app", ports={"80/tcp": (PortBinding(host_port="8080-8082"),)})
    assert ranged.ports["80/tcp"][0].host_port == "8081"


@in_own_network
async def test_an_address_of_ones_own_is_had_again_at_once(lab: Lab) -> None:
    chosen = Ipam(config=(IpamConfig(subnet="10.9.0.0/24", gateway="10.9.0.254"),))
    await lab.networks.create(NetworkCreate(name="app", ipam=chosen))
    settings = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.9.0.7"))
    for _ in range(3):
        ident, made = await lab.attach("one", "app", endpoints={"app": settings})
        assert made.endpoints["app"].ip_address == "10.9.0.7"
        await lab.networks.detach(ident)
    engine = Engine()
    lab.networks.bind(engine)
    ident, two = await lab.attach("two")
    engine.add(ident, "two", two.endpoints)
    for _ in range(3):
        await lab.networks.connect("app", NetworkConnect(container="two", endpoint_config=settings))
        await lab.networks.disconnect("app", NetworkDisconnect(container="two"))


@in_own_network
async def test_a_failed_attach_is_undone(lab: Lab) -> None:
    ground = lab.networks._ground
    real = ground.kernel.change_ports

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "the rules cannot be changed")

    ground.kernel.change_ports = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="cannot be changed"):
        await lab.attach("web", ports=PORT_8080)
    ground.kernel.change_ports = real  # type: ignore[method-assign]

    await eventually_gone(lab, *veths(lab))
    assert ground.sandboxes == {} and ground.live == set()
    assert os.listdir(lab.root / "run" / "netns") == []
    assert ground.journal.items("endpoints") == []
    await lab.attach("web", ports=PORT_8080)


@in_own_network
async def test_a_cancelled_attach_is_undone(lab: Lab) -> None:
    for delay in (0.0, 0.0005, 0.001, 0.002):
        task = asyncio.create_task(lab.attach("web", ports=PORT_8080))
        await asyncio.sleep(delay)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, tuple):  # it was quicker
            await lab.networks.detach(result[0])
    assert lab.networks._ground.sandboxes == {}
    assert os.listdir(lab.root / "run" / "netns") == []
    await lab.attach("web", ports=PORT_8080)


class Engine:
    """Just the containers' records."""

    def __init__(self) -> None:
        self.views: dict[str, ContainerView] = {}

    def view(self, ref: str) -> ContainerView:
        for view in self.views.values():
            if ref in (view.name, view.id):
                return view
        raise NotFound("container", ref)

    def add(self, ident: str, name: str, endpoints: Mapping[str, EndpointSettings]) -> None:
        self.views[ident] = ContainerView(ident, name, "bridge", dict(endpoints))

    async def endpoint_changed(self, container_id: str, network: str, settings: EndpointSettings | None) -> None:
        view = self.views[container_id]
        endpoints = {name: known for name, known in view.endpoints.items() if name != network}
        if settings is not None:
            endpoints[network] = settings
        self.views[container_id] = ContainerView(view.id, view.name, view.network_mode, endpoints)


@in_own_network
async def test_a_running_container_is_connected_and_disconnected(lab: Lab) -> None:
    engine = Engine()
    lab.networks.bind(engine)
    await lab.networks.create(NetworkCreate(name="app"))
    ident, web = await lab.attach("web", ports=PORT_8080)
    engine.add(ident, "web", web.endpoints)
    _, peer = await lab.attach("peer", "app")
    async with lab.serve(web.netns_path, 80, "web"):
        await lab.networks.connect(
            "app", NetworkConnect(container="web", endpoint_config=EndpointSettings(aliases=("www",)))
        )
        given = engine.views[ident].endpoints["app"]
        assert (await lab.ask(peer.netns_path, given.ip_address, 80)).startswith("web ")
        assert (await lab.ask(lab.outside, HOST, 8080)) == f"web {OUTSIDE}"
        assert "127.0.0.11" in web.files["/etc/resolv.conf"].read_text()
        assert given.ip_address in web.files["/etc/hosts"].read_text()
        with pytest.raises(Forbidden, match="endpoint with name web already exists in network app"):
            await lab.networks.connect("app", NetworkConnect(container="web"))
        with pytest.raises(Forbidden, match="has active endpoints"):
            await lab.networks.remove("app")

        await lab.networks.disconnect("bridge", NetworkDisconnect(container="web"))
        assert (await lab.ask(lab.outside, HOST, 8080)) == f"web {OUTSIDE}"  # ports moved to the other network
        await lab.restart()
        lab.networks.bind(engine)
        assert (await lab.ask(lab.outside, HOST, 8080)) == f"web {OUTSIDE}"
        await lab.networks.disconnect("app", NetworkDisconnect(container="web"))
        assert await lab.cut_off(lab.outside, HOST, 8080)
        with pytest.raises(Conflict, match="is not connected to network app"):
            await lab.networks.disconnect("app", NetworkDisconnect(container="web"))
    assert engine.views[ident].endpoints == {}


@in_own_network
async def test_a_stopped_container_is_connected_at_its_next_start(lab: Lab) -> None:
    engine = Engine()
    lab.networks.bind(engine)
    network = await lab.networks.create(NetworkCreate(name="app"))
    engine.add("c" * 64, "idle", {"bridge": EndpointSettings()})

    await lab.networks.connect(
        "app", NetworkConnect(container="idle", endpoint_config=EndpointSettings(aliases=("x",)))
    )

    assert engine.views["c" * 64].endpoints["app"] == EndpointSettings(aliases=("x",), network_id=network.id)
    await lab.networks.connect("app", NetworkConnect(container="idle"))  # once more changes nothing
    assert engine.views["c" * 64].endpoints["app"].aliases == ("x",)
    await lab.networks.disconnect("app", NetworkDisconnect(container="idle"))
    assert list(engine.views["c" * 64].endpoints) == ["bridge"]


@in_own_network
async def test_an_interface_that_something_still_holds_is_removed_all_the_same(lab: Lab) -> None:
    ident, web = await lab.attach("web")
    holder = os.open(web.netns_path or "", os.O_RDONLY)  # as a process left behind in the namespace would
    address = web.endpoints["bridge"].ip_address

    await lab.networks.detach(ident)
    assert lab.networks._ground.catalog.pool(lab.networks.get("bridge").id).taken == 1  # it rests

    async with asyncio.timeout(PATIENCE_S):
        while veths(lab) or lab.networks._ground.catalog.pool(lab.networks.get("bridge").id).taken:
            await asyncio.sleep(0.02)
    os.close(holder)
    assert address == "172.17.0.2"


@in_own_network
async def test_rules_that_someone_flushed_come_back_with_the_next_change(lab: Lab) -> None:
    _, web = await lab.attach("web", ports=PORT_8080)
    await command("nft", "flush", "ruleset")
    await lab.attach("other", ports={"80/tcp": (PortBinding(host_port="8081"),)})

    async with lab.serve(web.netns_path, 80, "web"):
        assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"


@in_own_network
async def test_counters_show_the_containers_own_traffic(lab: Lab) -> None:
    ident, web = await lab.attach("web")
    async with lab.serve(web.netns_path, 80, "web"):
        await lab.ask(None, web.endpoints["bridge"].ip_address, 80)

    (eth0,) = await lab.networks.counters(ident)

    assert eth0.name == "eth0"
    assert eth0.rx_packets >= 3 and eth0.tx_packets >= 3
    assert eth0.rx_bytes > eth0.rx_packets * 50


@in_own_network
async def test_a_bridge_that_someone_removed_is_made_again_with_its_ports(lab: Lab) -> None:
    _, web = await lab.attach("web", ports=PORT_8080)
    await command("ip", "link", "del", "swl0")

    await lab.restart()

    async with lab.serve(web.netns_path, 80, "web"):
        assert await lab.ask(lab.outside, HOST, 8080) == f"web {OUTSIDE}"


@in_own_network
async def test_a_default_subnet_that_the_host_routes_elsewhere_is_not_taken(lab: Lab) -> None:
    await lab.networks.teardown()
    await lab.close()
    (lab.root / "journal.sqlite").unlink()
    await command("ip", "address", "add", "172.17.0.1/16", "dev", "uplink")  # as another engine's bridge has it

    lab.networks = lab.make()
    await lab.networks.start()

    assert lab.networks.get("bridge").subnet == "172.18.0.0/16"
    await command("ip", "address", "del", "172.17.0.1/16", "dev", "uplink")
    await lab.restart()
    assert lab.networks.get("bridge").subnet == "172.18.0.0/16"  # what was chosen stays


@in_own_network
async def test_changed_settings_reach_the_default_network_once_nobody_uses_it(lab: Lab) -> None:
    ident, web = await lab.attach("web")
    for subnet, used in (("172.17.0.0/16", True), ("10.44.0.0/16", False)):
        if not used:
            await lab.networks.detach(ident)
        await lab.close()
        lab.networks = lab.make(default_subnet="10.44.0.0/16")
        await lab.networks.start()
        assert lab.networks.get("bridge").subnet == subnet
    assert web.endpoints["bridge"].network_id == lab.networks.get("bridge").id
    assert "172.17." not in await command("ip", "address", "show", "swl0")
    _, again = await lab.attach("again")
    async with lab.serve(again.netns_path, 80, "again"):
        assert await lab.ask(None, again.endpoints["bridge"].ip_address, 80) == "again 10.44.0.1"


@in_own_network
async def test_who_starts_again_has_the_addresses_it_had(lab: Lab) -> None:
    await lab.networks.create(NetworkCreate(name="app", enable_ipv6=True))
    wish = NetworkWish(container_id="c" * 64, container_name="web", hostname="web", mode="app")
    first = await lab.networks.attach(wish)
    _, other = await lab.attach("other", "app")
    for _ in range(3):
        await lab.networks.detach(wish.container_id)
        _, newcomer = await lab.attach("newcomer", "app")
        again = await lab.networks.attach(wish)
        assert again.endpoints["app"].ip_address == first.endpoints["app"].ip_address
        assert again.endpoints["app"].global_ipv6_address == first.endpoints["app"].global_ipv6_address
        assert newcomer.endpoints["app"].ip_address not in (again.endpoints["app"].ip_address, "")
        async with lab.serve(again.netns_path, 80, "web"):
            address = again.endpoints["app"].ip_address
            assert (await lab.ask(other.netns_path, address, 80)).startswith("web ")  # at once


@in_own_network
async def test_an_endpoints_options_name_its_interface_set_its_switches_and_give_it_further_addresses(lab: Lab) -> None:
    await lab.networks.create(
        NetworkCreate(name="app", options={"com.docker.network.container_iface_prefix": "net"})
    )
    options = {
        "com.docker.network.endpoint.ifname": "wan",
        "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1,"
        "net.ipv4.neigh.IFNAME.app_solicit=3",
    }
    further = EndpointIPAMConfig(link_local_ips=("169.254.7.7", "fe80::77"))
    settings = {
        "bridge": EndpointSettings(driver_opts=options),
        "app": EndpointSettings(driver_opts={"colour": "red"}, ipam_config=further),
    }
    _, web = await lab.attach("web", endpoints=settings)

    links = await command("nsenter", f"--net={web.netns_path}", "ip", "-o", "addr")
    assert "inet 169.254.7.7/16" in links and "inet6 fe80::77/64" in links
    assert " wan " in links and " net0 " in links and " eth0 " not in links
    show = ("nsenter", f"--net={web.netns_path}", "sysctl", "-n")
    assert await command(*show, "net.ipv4.conf.wan.log_martians") == "1\n"
    assert await command(*show, "net.ipv4.neigh.wan.app_solicit") == "3\n"
    assert web.endpoints["app"].driver_opts == {"colour": "red"}
    assert "default via 172.17.0.1 dev wan" not in await command("nsenter", f"--net={web.netns_path}", "ip", "route")
