"""docker-py's APIClient, call by call: networks, volumes, services, the swarm and what is refused."""

from __future__ import annotations

import gc
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import docker.types
import pytest
from e2e_cluster import Cluster, View, eventually

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:Unclosed response:ResourceWarning"
)
HERE = Path(__file__).parent


@pytest.fixture
def manager_api(cluster: Cluster) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=cluster.view.url, timeout=60)
    yield client
    client.close()
    del client
    gc.collect()


def test_every_call_of_docker_py_is_made_by_a_test() -> None:
    """The exceptions are no calls of the API."""
    not_calls = {
        "create_container_config", "create_container_from_config", "import_image_from_stream", "reload_config",
    }  # fmt: skip
    files = [*HERE.glob("test_e2e_docker_py_*.py"), HERE / "test_e2e_secrets.py", HERE / "test_e2e_configs.py"]
    tests = "".join(file.read_text() for file in files)
    own = {
        name for kind in docker.APIClient.__mro__ if kind.__module__.startswith("docker.api")
        for name, value in vars(kind).items() if callable(value) and not name.startswith("_")
    } - {"get_adapter"}  # fmt: skip
    assert {name for name in own - not_calls if f"api.{name}(" not in tests} == set()


# --- networks and volumes


def test_networks_by_every_option(api: docker.APIClient) -> None:
    pool = docker.types.IPAMPool(
        "172.28.0.0/16", iprange="172.28.5.0/24", gateway="172.28.5.254", aux_addresses={"a": "172.28.1.5"}
    )
    made = api.create_network(
        "low-net", driver="bridge", options={"com.docker.network.bridge.name": "low0"}, labels={"a": "b"},
        internal=True,        ipam=docker.types.IPAMConfig(driver="default", pool_configs=[pool]), check_duplicate=True,
        attachable=True,
    )["Id"]
    try:
        shown = api.inspect_network(made, verbose=False)
        assert (shown["Name"], shown["Driver"], shown["Scope"]) == ("low-net", "bridge", "local") and shown["Internal"]
        assert shown["IPAM"] == {"Driver": "default", "Options": None, "Config": [{
            "Subnet": "172.28.0.0/16", "IPRange": "172.28.5.0/24", "Gateway": "172.28.5.254",
            "AuxiliaryAddresses": {"a": "172.28.1.5"},
        }]}  # fmt: skip
        assert shown["Labels"] == {"a": "b"} and shown["Containers"] == {}
        assert [each["Id"] for each in api.networks(names=["low-net"])] == [made]
        assert [each["Id"] for each in api.networks(ids=[made[:8]])] == [made]
        assert [each["Id"] for each in api.networks(filters={"label": "a=b"})] == [made]
        for options in ({"name": "low-net"}, {"name": "x", "driver": "host"}, {"name": "x", "driver": "nosuch"}):
            with pytest.raises(docker.errors.APIError):
                api.create_network(**options)
    finally:
        api.remove_network(made)
    with pytest.raises(docker.errors.NotFound):
        api.inspect_network(made)


def test_containers_join_and_leave_networks(node_api: docker.APIClient) -> None:
    api = node_api
    ipam = docker.types.IPAMConfig(pool_configs=[
        docker.types.IPAMPool("172.29.0.0/24"), docker.types.IPAMPool("fd00:29::/64")
    ])  # fmt: skip
    network = api.create_network("join-net", ipam=ipam, enable_ipv6=True)["Id"]
    ident = api.create_container(
        "busybox", "sleep 600", name="upstream", host_config=api.create_host_config(network_mode="join-net"),
        networking_config=api.create_networking_config({"join-net": api.create_endpoint_config(
            aliases=["foo", "bar"], ipv4_address="172.29.0.23", ipv6_address="fd00:29::f00d",
            mac_address="02:42:00:00:00:17", driver_opt={"com.docker.network.endpoint.ifname": "lan0"},
        )}),
    )["Id"]  # fmt: skip
    other = api.create_container("busybox", "sleep 600")["Id"]
    try:
        for each in (ident, other):
            api.start(each)
        place = api.inspect_container(ident)["NetworkSettings"]["Networks"]["join-net"]
        assert place["IPAMConfig"] == {"IPv4Address": "172.29.0.23", "IPv6Address": "fd00:29::f00d"}
        assert place["Aliases"] == ["foo", "bar"] and place["MacAddress"] == "02:42:00:00:00:17"
        assert list(api.inspect_network(network)["Containers"]) == [ident]
        api.connect_container_to_network(other, network, links=[("upstream", "alias")], ipv4_address="172.29.0.24")
        assert api.inspect_container(other)["NetworkSettings"]["Networks"]["join-net"]["Links"] == ["upstream:alias"]
        assert b"172.29.0.23" in api.exec_start(api.exec_create(other, "nslookup alias"))
        with pytest.raises(docker.errors.APIError, match="already exists in network"):
            api.connect_container_to_network(other, network)
        api.disconnect_container_from_network(other, network)
        api.disconnect_container_from_network(ident, network, force=True)
        for each in (ident, other):
            with pytest.raises(docker.errors.APIError, match="is not connected to"):
                api.disconnect_container_from_network(each, network)
        assert not api.inspect_network(network)["Containers"]
    finally:
        for each in (ident, other):
            api.remove_container(each, force=True)
        api.remove_network(network)
    unused = api.create_network("unused-net", labels={"unused": "yes"})["Id"]
    assert api.prune_networks({"label": ["unused"]}) == {"NetworksDeleted": ["unused-net"]}
    with pytest.raises(docker.errors.NotFound):
        api.remove_network(unused)


def test_volumes_by_every_option(api: docker.APIClient) -> None:
    options = {"type": "tmpfs", "device": "tmpfs"}
    made = api.create_volume("low-vol", driver="local", labels={"a": "b"}, driver_opts=options)
    try:
        assert made["Name"] == "low-vol" and made["Labels"] == {"a": "b"} and made["Scope"] == "local"
        assert api.inspect_volume("low-vol")["Options"] == options
        assert [each["Name"] for each in api.volumes(filters={"name": "low-vol"})["Volumes"]] == ["low-vol"]
        with pytest.raises(docker.errors.APIError) as refused:
            api.create_volume("other-vol", driver="this-plugin-does-not-exist")
        assert refused.value.status_code in (400, 404)
    finally:
        api.remove_volume("low-vol")
    for call in (api.inspect_volume, api.remove_volume):
        with pytest.raises(docker.errors.NotFound):
            call("low-vol")
    anonymous = api.create_volume()["Name"]
    assert anonymous in api.prune_volumes()["VolumesDeleted"]


# --- services and the swarm


def test_services_by_every_option(manager_api: docker.APIClient, cluster: Cluster) -> None:
    api = manager_api
    networks = [api.create_network(name, driver="overlay", ipam={"Driver": "default"})["Id"] for name in ("s-1", "s-2")]
    try:
        container = docker.types.ContainerSpec(
            "busybox", ["sh", "-c", "echo up; sleep 600"], args=None, hostname="h", env={"A": 1}, workdir="/tmp",
            user="0", labels={"c": "l"}, mounts=[docker.types.Mount("/data", "low-service-volume")],
            stop_grace_period=10**9,
            tty=False, open_stdin=True, read_only=False, stop_signal="SIGTERM", hosts={"here": "10.9.9.9"},
            healthcheck=docker.types.Healthcheck(test="true", interval=10**9),
            dns_config=docker.types.DNSConfig(nameservers=["9.9.9.9"], search=["s"]), init=True, groups=["1000"],
            cap_add=["NET_ADMIN"], cap_drop=["MKNOD"], sysctls={"net.core.somaxconn": "300"},
        )  # fmt: skip
        limits = docker.types.Resources(
            cpu_limit=400000000, mem_limit=64 << 20, cpu_reservation=1000000, mem_reservation=8 << 20
        )
        policy = docker.types.RestartPolicy("any", delay=5 * 10**9, max_attempts=5, window=10**9)
        template = docker.types.TaskTemplate(
            container, resources=limits, restart_policy=policy, log_driver=docker.types.DriverConfig("json-file"),
            placement=docker.types.Placement(
                constraints=["node.role==manager"], preferences=[("spread", "node.labels.rack")], maxreplicas=4,
                platforms=[("amd64", "linux"), ("aarch64", "linux")],
            ), force_update=1, networks=["s-1", docker.types.NetworkAttachmentConfig("s-2", aliases=["al"])],
        )  # fmt: skip
        update = docker.types.UpdateConfig(
            parallelism=10, delay=5, failure_action="pause", monitor=3 * 10**8, max_failure_ratio=0.4,
            order="start-first",
        )
        made = api.create_service(
            template, name="low", labels={"l": "v"}, mode=docker.types.ServiceMode("replicated", 2),
            update_config=update,
            rollback_config=docker.types.RollbackConfig(parallelism=1, delay=0, order="stop-first"),
            endpoint_spec=docker.types.EndpointSpec(
                mode="vip", ports={12357: (1990, "udp"), 12562: (678,), 15324: 8080}
            ),
        )  # fmt: skip
        shown = api.inspect_service("low")
        assert shown["ID"] == made["ID"] and shown["Spec"]["Labels"] == {"l": "v"}
        task = shown["Spec"]["TaskTemplate"]
        assert [network["Target"] for network in task["Networks"]] == networks
        assert task["Networks"][1]["Aliases"] == ["al"] and task["ForceUpdate"] == 1 and task["RestartPolicy"] == policy
        assert task["Resources"] == limits and task["LogDriver"]["Name"] == "json-file"
        assert task["Placement"]["Constraints"] == ["node.role==manager"] and task["Placement"]["MaxReplicas"] == 4
        kept = {  # what is not set is not shown
            key: {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value
            for key, value in container.items() if value
        }
        for key in kept.keys() - {"Image", "Mounts"}:
            assert task["ContainerSpec"].get(key) == kept[key], key
        (mount,) = task["ContainerSpec"]["Mounts"]
        assert mount == {"Type": "volume", "Source": "low-service-volume", "Target": "/data"}
        assert shown["Spec"]["UpdateConfig"] == update and shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
        assert {port["PublishedPort"]: (port["TargetPort"], port["Protocol"]) for port in
                shown["Spec"]["EndpointSpec"]["Ports"]} == {
            12357: (1990, "udp"), 12562: (678, "tcp"), 15324: (8080, "tcp"),
        }  # fmt: skip
        cluster.wait_running("low", 2)
        tasks = api.tasks(filters={"service": "low", "desired-state": "running"})
        assert api.inspect_task(tasks[0]["ID"])["ServiceID"] == made["ID"]
        logs = api.service_logs("low", stdout=True, stderr=True, is_tty=False, tail="all", follow=False)
        assert b"".join(logs).count(b"up\n") == 2
        assert api.services(filters={"name": "low"}, status=True)[0]["ServiceStatus"]["DesiredTasks"] == 2
        version = api.inspect_service("low")["Version"]["Index"]  # its virtual addresses came after it was made
        api.update_service("low", version, task_template=dict(task), mode={"Replicated": {"Replicas": 1}}, name="low",
                           fetch_current_spec=True)  # fmt: skip
        cluster.wait_running("low", 1)
        assert api.inspect_service("low", insert_defaults=True)["Version"]["Index"] > version
        with pytest.raises(docker.errors.APIError, match="update out of sequence"):
            api.update_service("low", 1, task_template=dict(task), name="low")
        assert api.remove_service("low")
        with pytest.raises(docker.errors.NotFound):
            api.remove_service("low")
    finally:
        for service in api.services(filters={"name": "low"}):
            api.remove_service(service["ID"])
        for network in networks:
            eventually(lambda network=network: api.remove_network(network) is None)
        for number in (1, 2, 3):
            cluster.node(number).run("volume", "rm", "low-service-volume")


def test_the_swarm_and_its_nodes(manager_api: docker.APIClient) -> None:
    api = manager_api
    nodes = api.nodes()
    assert len(nodes) == 3 and api.nodes(filters={"role": "manager"})[0]["ManagerStatus"]["Leader"]
    node = api.inspect_node(nodes[0]["ID"])
    assert (node["ID"], node["Version"]) == (nodes[0]["ID"], nodes[0]["Version"])
    labelled = {**node["Spec"], "Labels": {"new.label": "new value"}}
    assert api.update_node(node["ID"], node["Version"]["Index"], labelled)
    assert api.inspect_node(node["ID"])["Spec"] == labelled
    assert api.update_node(node["ID"], api.inspect_node(node["ID"])["Version"]["Index"], node["Spec"])
    assert api.inspect_node(node["ID"])["Spec"] == node["Spec"]
    with pytest.raises(docker.errors.NotFound):
        api.remove_node("foobar01")
    leader = api.nodes(filters={"role": "manager"})[0]["ID"]
    for force in (False, True):
        with pytest.raises(docker.errors.APIError):
            api.remove_node(leader, force)
    with pytest.raises(docker.errors.APIError, match="already part of a swarm"):
        api.init_swarm(advertise_addr="127.0.0.1")
    with pytest.raises(docker.errors.APIError, match="already part of a swarm"):
        api.join_swarm(["127.0.0.1:2377"], "SWMTKN-1-x")
    with pytest.raises(docker.errors.APIError, match="force"):
        api.leave_swarm()
    before = api.inspect_swarm()
    spec = api.create_swarm_spec(
        task_history_retention_limit=7, node_cert_expiry=7776000000000000, snapshot_interval=5000, election_tick=9,
        dispatcher_heartbeat_period=int(before["Spec"]["Dispatcher"]["HeartbeatPeriod"]),
    )
    assert api.update_swarm(before["Version"]["Index"], spec, rotate_worker_token=True)
    try:
        after = api.inspect_swarm()
        assert after["Version"]["Index"] > before["Version"]["Index"]
        assert after["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 7
        raft = before["Spec"]["Raft"] | {"SnapshotInterval": 5000, "ElectionTick": 9}
        assert after["Spec"]["Raft"] == raft  # kept, though it has no effect
        assert after["JoinTokens"]["Manager"] == before["JoinTokens"]["Manager"]
        assert after["JoinTokens"]["Worker"] != before["JoinTokens"]["Worker"]
    finally:
        api.update_swarm(api.inspect_swarm()["Version"]["Index"], before["Spec"])
    assert api.get_unlock_key()["UnlockKey"] in ("", None)
    with pytest.raises(docker.errors.APIError):
        api.unlock_swarm("SWMKEY-1-xxx")


# --- the engine, and what it does not have


def test_the_engine_tells_of_itself(api: docker.APIClient, view: View, cluster: Cluster) -> None:
    assert api.ping() is True or api.ping() == "OK"
    assert api.version()["ApiVersion"] == "1.50" and api.version(api_version=False)["Version"]
    info, listed = api.info(), {each["Id"] for each in api.images(all=True)}
    # A cluster's nodes need not have the same images: it tells how many the one with most of them has.
    assert info["ID"] and 0 < info["Images"] <= len(listed)
    assert info["Images"] == len(listed) or view.url == cluster.view.url
    usage = api.df()
    assert {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"} <= set(usage)
    past = api.events(since=1, until=2, decode=True)
    assert list(past) == []
    with pytest.raises(docker.errors.APIError):
        api.search("anything-on-a-hub-that-is-not-there", limit=5)


def test_plugins_are_refused_in_the_apis_form(api: docker.APIClient) -> None:
    assert api.plugins() == []
    with pytest.raises(docker.errors.NotFound):
        api.inspect_plugin("vieux/sshfs")
    for call in (
        lambda: api.plugin_privileges("vieux/sshfs"), lambda: list(api.pull_plugin("vieux/sshfs", [])),
        lambda: api.enable_plugin("vieux/sshfs"), lambda: api.disable_plugin("vieux/sshfs"),
        lambda: api.remove_plugin("vieux/sshfs"), lambda: api.configure_plugin("vieux/sshfs", {"DEBUG": "1"}),
        lambda: list(api.upgrade_plugin("vieux/sshfs", "vieux/sshfs", [])),
        lambda: list(api.push_plugin("vieux/sshfs")),
    ):
        with pytest.raises(docker.errors.APIError):
            call()


def test_a_plugin_cannot_be_made(api: docker.APIClient, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(docker.errors.APIError, match="plugins are not supported by this engine"):
        api.create_plugin("dummy", str(tmp_path))


def test_an_exported_root_is_a_tar(node_api: docker.APIClient) -> None:
    ident = node_api.create_container("busybox", "true")["Id"]
    with tarfile.open(fileobj=io.BytesIO(b"".join(node_api.export(ident)))) as archive:
        assert "bin/busybox" in archive.getnames()
