"""A task's container: every field of its spec arrives, templates are resolved, the rest is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import Driver, HealthConfig, Mount, Ulimit, VolumeOptions
from swarmlet.model.container import EndpointIPAMConfig, PortBinding
from swarmlet.model.network import NetworkAttachment
from swarmlet.model.service import (
    AppArmorOptions,
    ContainerSpec,
    CredentialSpec,
    DnsConfig,
    Limit,
    NetworkAttachmentConfig,
    PortConfig,
    Privileges,
    Reservation,
    ResourceRequirements,
    SeccompOptions,
    SeLinuxContext,
    TaskSpec,
)
from swarmlet.model.task import Task
from swarmlet.model.template import NodeFacts, expand, fields_of
from swarmlet_agent.images.auth import decode_auth
from swarmlet_agent.worker.convert import container_for, published

NODE = NodeFacts("n1", "host-1", "linux", "aarch64")


def places(**addresses: str) -> dict[str, NetworkAttachment]:
    return {name: NetworkAttachment(network_id=name, address=address) for name, address in addresses.items()}


def task(spec: ContainerSpec | None = None, slot: int = 2, **more: object) -> Task:
    ports = more.pop("ports", ())
    return Task(
        id="t1", service_id="s1", service_name="web", slot=slot, node_id="n1", ports=ports,  # type: ignore[arg-type]
        spec=TaskSpec(container_spec=spec or ContainerSpec(image="busybox"), **more),  # type: ignore[arg-type]
    )


def test_everything_of_a_spec_arrives() -> None:
    made = container_for(
        task(
            ContainerSpec(
                image="busybox:1", labels={"mine": "1"}, command=("/bin/sh",), args=("-c", "true"), hostname="h",
                env=("A=1",), dir="/work", user="7:8", groups=("9",), stop_signal="SIGQUIT", tty=True,
                open_stdin=True, read_only=True, mounts=(Mount(type="bind", source="/a", target="/b"),),
                healthcheck=HealthConfig(test=("CMD", "true")), hosts=("10.0.0.1 db",),
                dns_config=DnsConfig(nameservers=("1.1.1.1",), search=("x",), options=("ndots:1",)), init=True,
                sysctls={"net.core.somaxconn": "10"}, capability_add=("CAP_SYS_TIME",), capability_drop=("ALL",),
                ulimits=(Ulimit(name="nofile", soft=1, hard=2),), oom_score_adj=5,
                privileges=Privileges(
                    no_new_privileges=True, seccomp=SeccompOptions(mode="unconfined"),
                    app_armor=AppArmorOptions(mode="disabled"), selinux_context=SeLinuxContext(type="t"),
                ),
            ),
            resources=ResourceRequirements(
                limits=Limit(nano_cpus=5, memory_bytes=6, pids=7), reservations=Reservation(memory_bytes=4)
            ),
            log_driver=Driver(name="local", options={"max-size": "1m"}),
        ),
        NODE,
    )
    host = made.host_config
    assert (made.image, made.entrypoint, made.cmd) == ("busybox:1", ("/bin/sh",), ("-c", "true"))
    assert (made.hostname, made.env, made.working_dir, made.user) == ("h", ("A=1",), "/work", "7:8")
    assert (made.tty, made.open_stdin, made.stop_signal) == (True, True, "SIGQUIT")
    assert made.healthcheck == HealthConfig(test=("CMD", "true"))
    assert made.labels == {
        "mine": "1", "com.docker.swarm.task": "", "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "web.2.t1", "com.docker.swarm.node.id": "n1",
        "com.docker.swarm.service.id": "s1", "com.docker.swarm.service.name": "web",
    }
    assert (host.memory, host.nano_cpus, host.pids_limit, host.memory_reservation) == (6, 5, 7, 4)
    assert host.mounts == (Mount(type="bind", source="/a", target="/b"),)
    assert (host.group_add, host.readonly_rootfs, host.init, host.oom_score_adj) == (("9",), True, True, 5)
    assert (host.extra_hosts, host.dns) == (("db:10.0.0.1",), ("1.1.1.1",))
    assert (host.dns_search, host.dns_options) == (("x",), ("ndots:1",))
    assert (host.cap_add, host.cap_drop) == (("CAP_SYS_TIME",), ("ALL",))
    assert host.sysctls == {"net.core.somaxconn": "10"}
    assert host.ulimits == (Ulimit(name="nofile", soft=1, hard=2),)
    assert (host.log_config.type, host.log_config.config) == ("local", {"max-size": "1m"})
    assert host.security_opt == (
        "no-new-privileges=true", "label=type:t", "seccomp=unconfined", "apparmor=unconfined",
    )


def test_the_users_labels_cannot_pass_for_the_systems() -> None:
    made = container_for(task(ContainerSpec(image="x", labels={"com.docker.swarm.task.id": "fake"})), NODE)
    assert made.labels["com.docker.swarm.task.id"] == "t1"


def test_args_alone_keep_the_images_entrypoint_and_a_command_alone_drops_its_arguments() -> None:
    only_args = container_for(task(ContainerSpec(image="x", args=("a",))), NODE)
    assert (only_args.entrypoint, only_args.cmd) == (None, ("a",))
    only_command = container_for(task(ContainerSpec(image="x", command=("c",))), NODE)
    assert (only_command.entrypoint, only_command.cmd) == (("c",), ())
    neither = container_for(task(), NODE)
    assert (neither.entrypoint, neither.cmd) == (None, None)


def test_templates_are_resolved_in_env_hostname_and_mounts() -> None:
    made = container_for(
        task(
            ContainerSpec(
                image="x", hostname="{{.Service.Name}}-{{.Task.Slot}}",
                env=(
                    "WHERE={{ .Node.Hostname }}/{{.Node.ID}}", "ARCH={{.Node.Platform.Architecture}}",
                    "N={{.Task.Name}}",
                ),
                mounts=(
                    Mount(
                        source="data-{{.Task.Slot}}", target="/data",
                        volume_options=VolumeOptions(labels={"of": "{{.Service.ID}}"}),
                    ),
                ),
            )
        ),
        NODE,
    )
    assert made.hostname == "web-2"
    assert made.env == ("WHERE=host-1/n1", "ARCH=aarch64", "N=web.2.t1")
    [mount] = made.host_config.mounts
    assert mount.source == "data-2"
    assert mount.volume_options is not None and mount.volume_options.labels == {"of": "s1"}


def test_a_global_tasks_slot_is_its_node() -> None:
    made = container_for(task(ContainerSpec(image="x", env=("S={{.Task.Slot}}",)), slot=0), NODE)
    assert made.env == ("S=n1",)


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_templates_stays_as_it_is(text: str) -> None:
    assert expand(text, fields_of(task(), NODE), "env") == text


@pytest.mark.parametrize("text", ["{{.Nope}}", "{{ if .Task.Slot }}", '{{index .Service.Labels "a"}}'])
def test_a_template_that_cannot_be_resolved_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expanding env failed"):
        container_for(task(ContainerSpec(image="x", env=(f"A={text}",))), NODE)


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        (ContainerSpec(image="x", isolation="hyperv"), {}),
        (ContainerSpec(image="x", privileges=Privileges(credential_spec=CredentialSpec(file="f"))), {}),
    ],
)
def test_what_cannot_be_honoured_is_refused(spec: ContainerSpec, more: dict[str, object]) -> None:
    with pytest.raises(NotSupported):
        container_for(task(spec, **more), NODE)


def test_ports_of_the_routing_mesh_are_not_the_containers_own_and_its_answers_leave_by_the_meshs_network() -> None:
    port = PortConfig(target_port=80, published_port=8080)
    both = task(ContainerSpec(image="x"), networks=(NetworkAttachmentConfig(target="id1"),), ports=(port,))
    made = container_for(both, NODE, places(ingress="10.0.0.5/20", back="10.0.16.5/20"))
    endpoints = made.networking_config.endpoints_config
    assert made.host_config.port_bindings == {} and set(made.exposed_ports) == {"80/tcp"}
    assert [(name, one and one.gw_priority) for name, one in endpoints.items()] == [("ingress", 1), ("back", 0)]


def test_a_task_comes_into_the_clusters_networks_with_the_addresses_it_was_given() -> None:
    wide = task(ContainerSpec(image="x"), networks=(NetworkAttachmentConfig(target="id1"),))
    place = NetworkAttachment(network_id="id1", address="10.0.1.5/24", address6="fd00::5/64")
    made = container_for(wide, NODE, {"back": place})
    assert made.host_config.network_mode == "back"
    (endpoint,) = made.networking_config.endpoints_config.values()
    both = EndpointIPAMConfig(ipv4_address="10.0.1.5", ipv6_address="fd00::5")
    assert endpoint is not None and endpoint.ipam_config == both
    with pytest.raises(InvalidArgument, match="no address in some of its networks"):
        container_for(wide, NODE)


def test_a_seccomp_profile_of_ones_own_is_passed_on_as_text() -> None:
    profile = base64.b64encode(b'{"defaultAction": "SCMP_ACT_ALLOW"}').decode()
    custom = Privileges(seccomp=SeccompOptions(mode="custom", profile=profile))
    made = container_for(task(ContainerSpec(image="x", privileges=custom)), NODE)
    assert made.host_config.security_opt == ('seccomp={"defaultAction": "SCMP_ACT_ALLOW"}',)


def test_host_mode_ports_are_bound_and_told_as_they_were_published() -> None:
    ports = (
        PortConfig(target_port=80, published_port=8080, publish_mode="host"),
        PortConfig(target_port=53, protocol="udp", publish_mode="host"),
        PortConfig(target_port=90, published_port=8090, publish_mode="host", host_ip="192.0.2.1"),
    )
    made = container_for(task(ports=ports), NODE)
    assert made.host_config.port_bindings == {
        "80/tcp": (PortBinding(host_port="8080"),), "53/udp": (PortBinding(host_port=""),),
        "90/tcp": (PortBinding(host_ip="192.0.2.1", host_port="8090"),),
    }
    real = {"80/tcp": (PortBinding(host_port="8080"),), "53/udp": (PortBinding(host_port="40001"),)}
    assert [port.published_port for port in published(real, ports)] == [8080, 40001]


def test_credentials_are_read_from_the_header_value_and_never_quoted_in_errors() -> None:
    encoded = base64.urlsafe_b64encode(b'{"username": "anna", "password": "s?same", "serveraddress": "r:1"}').decode()
    auth = decode_auth(encoded.rstrip("="))
    assert auth is not None
    assert (auth.username, auth.password, auth.server_address) == ("anna", "s?same", "r:1")
    assert decode_auth("") is None
    assert decode_auth(base64.urlsafe_b64encode(b"{}").decode()) is None
    with pytest.raises(InvalidArgument) as caught:
        decode_auth("c2VzYW1l")
    assert "sesame" not in str(caught.value) and "c2VzYW1l" not in str(caught.value)
