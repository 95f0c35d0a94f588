"""What a service spec may not say, and the words for it."""

from __future__ import annotations

import pytest
from decide_make import make_service, make_template
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.common import BindOptions, HealthConfig, Mount
from swarmlet.model.service import (
    CredentialSpec,
    DiscreteResource,
    EndpointSpec,
    GenericResource,
    GlobalMode,
    Limit,
    NetworkAttachmentConfig,
    PlacementPreference,
    PortConfig,
    Privileges,
    ReplicatedJobMode,
    ReplicatedMode,
    Reservation,
    ResourceRequirements,
    SeLinuxContext,
    ServiceMode,
    ServiceSpec,
    TaskRestartPolicy,
    UpdateConfig,
)
from swarmlet_manager.decide.validate import check_service_spec, check_update

OF_SWARMKIT = "rpc error: code = InvalidArgument desc = "
GOOD = make_service().spec
HOST = PortConfig(target_port=80, published_port=80, publish_mode="host")


def with_task(**task: object) -> ServiceSpec:
    return replace(GOOD, task_template=replace(GOOD.task_template, **task))


def with_container(**container: object) -> ServiceSpec:
    return with_task(container_spec=replace(GOOD.task_template.container_spec, **container))


def limits(**amounts: int) -> ServiceSpec:
    return with_task(resources=ResourceRequirements(limits=Limit(**amounts)))


def reserves(**amounts: int) -> ServiceSpec:
    return with_task(resources=ResourceRequirements(reservations=Reservation(**amounts)))


def mounting(**mount: object) -> ServiceSpec:
    return with_container(mounts=(Mount(**mount),))


@pytest.mark.parametrize(
    "spec",
    [
        GOOD,
        replace(GOOD, mode=ServiceMode()),
        replace(GOOD, mode=ServiceMode(global_=GlobalMode())),
        replace(GOOD, name="My_Web-2"),
        replace(GOOD, endpoint_spec=EndpointSpec(ports=(HOST, replace(HOST, protocol="udp")))),
        replace(GOOD, endpoint_spec=EndpointSpec(mode="dnsrr", ports=(HOST,))),
        replace(GOOD, networks=(NetworkAttachmentConfig(target="host"),)),
        limits(nano_cpus=1_000_000, memory_bytes=4 << 20, pids=0),
        limits(pids=-1),
        with_container(env=("A={{.Service.Name}}-{{.Task.Slot}}",), hostname='{{.Node.Hostname}}'),
        mounting(type="bind", source="/srv", target="/srv"),
        mounting(type="volume", source="data", target="/data"),
        mounting(type="volume", target="/anonymous"),
        mounting(type="tmpfs", target="/tmp"),
        with_container(image="registry.example.com:5000/team/app:1.2@sha256:" + "a" * 64),
        with_container(image="localhost:5000/app"),
    ],
)
def test_a_sound_spec_is_taken(spec: ServiceSpec) -> None:
    check_service_spec(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(GOOD, name=""), "meta: name must be provided"),
        (replace(GOOD, name="-web"), "name must be valid as a DNS name component"),
        (replace(GOOD, name="we b"), "name must be valid as a DNS name component"),
        (replace(GOOD, name="web."), "name must be valid as a DNS name component"),
        (replace(GOOD, name="a" * 64), "name must be 63 characters or fewer"),
        (
            replace(GOOD, mode=ServiceMode(replicated=ReplicatedMode(replicas=-1))),
            "Number of replicas must be non-negative",
        ),
        (
            replace(GOOD, mode=ServiceMode(replicated=ReplicatedMode(), global_=GlobalMode())),
            "must specify only one service mode",
        ),
        (with_task(container_spec=None), "mismatched Runtime and *Spec fields"),
        (with_container(image=""), "ContainerSpec: image reference must be provided"),
        (with_container(image="Bad Image"), 'ContainerSpec: "Bad Image" is not a valid repository/tag'),
        (limits(memory_bytes=1000), "invalid memory value 1000: Must be at least 4MiB"),
        (reserves(memory_bytes=-1), "invalid memory value -1: Must be at least 4MiB"),
        (limits(nano_cpus=999_999), "invalid cpu value 0.000999999: Must be at least 0.001"),
        (reserves(nano_cpus=-5), "invalid cpu value -5e-09: Must be at least 0.001"),
        (with_task(runtime="podman"), "unsupported runtime"),
        (with_task(network_attachment_spec={"ContainerID": "x"}), "unsupported runtime"),
        (replace(GOOD, endpoint_spec=EndpointSpec(mode="ipvs")), 'invalid resolution mode: "ipvs"'),
        (with_task(restart_policy=TaskRestartPolicy(delay=-1)), "TaskSpec: restart-delay cannot be negative"),
        (with_task(restart_policy=TaskRestartPolicy(window=-1)), "TaskSpec: restart-window cannot be negative"),
        (with_task(restart_policy=TaskRestartPolicy(condition="often")), 'invalid RestartCondition: "often"'),
        (replace(GOOD, update_config=UpdateConfig(delay=-1)), "TaskSpec: update-delay cannot be negative"),
        (replace(GOOD, update_config=UpdateConfig(monitor=-1)), "TaskSpec: update-monitor cannot be negative"),
        (
            replace(GOOD, rollback_config=UpdateConfig(parallelism=-1)),
            "TaskSpec: update-parallelism cannot be negative",
        ),
        (
            replace(GOOD, update_config=UpdateConfig(max_failure_ratio=1.5)),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            replace(GOOD, update_config=UpdateConfig(failure_action="explode")),
            "unrecognized update failure action explode",
        ),
        (replace(GOOD, update_config=UpdateConfig(order="both")), "unrecognized update order both"),
        (
            with_task(placement=replace(make_template().placement, constraints=("node.role is x",))),
            "rpc error: code = Unknown desc = constraint expected one operator from ==, !=",
        ),
        (
            with_task(placement=replace(make_template().placement, preferences=(PlacementPreference(),))),
            "TaskSpec: a placement preference must name what to spread over",
        ),
        (
            replace(GOOD, endpoint_spec=EndpointSpec(ports=(HOST, replace(HOST, target_port=81)))),
            "EndpointSpec: duplicate published ports provided",
        ),
        (
            replace(GOOD, endpoint_spec=EndpointSpec(mode="dnsrr", ports=(PortConfig(target_port=80),))),
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            replace(GOOD, endpoint_spec=EndpointSpec(ports=(replace(HOST, target_port=0),))),
            "invalid target port 0: must be between 1 and 65535",
        ),
        (mounting(target=""), "invalid mount: target must not be empty"),
        (mounting(target="data"), "invalid mount target, must be an absolute path: data"),
        (mounting(type="bind", target="/a"), "invalid bind mount at /a: source must not be empty"),
        (
            mounting(type="bind", target="/a", source="b"),
            "invalid bind mount source, must be an absolute path: b",
        ),
        (
            mounting(type="volume", target="/a", source="/b"),
            "invalid volume mount source, must not be an absolute path: /b",
        ),
        (mounting(type="tmpfs", target="/a", source="b"), "invalid tmpfs mount, source must be empty"),
        (mounting(type="floppy", target="/a"), 'invalid MountType: "floppy"'),
        (
            mounting(type="bind", target="/a", source="/b", bind_options=BindOptions(propagation="up")),
            'invalid MountPropagation: "up"',
        ),
        (
            mounting(type="volume", target="/a", bind_options=BindOptions()),
            "cannot mix 'bind-*' options with mount type 'volume'",
        ),
        (
            with_container(mounts=(Mount(target="/a"), Mount(target="/a", type="tmpfs"))),
            "ContainerSpec: duplicate mount point: /a",
        ),
        (
            with_container(healthcheck=HealthConfig(interval=1)),
            "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
        ),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_by_name(spec: ServiceSpec, message: str) -> None:
    with pytest.raises(InvalidArgument) as err:
        check_service_spec(spec)
    assert str(err.value).removeprefix(OF_SWARMKIT) == message and not isinstance(err.value, NotSupported)


@pytest.mark.parametrize(
    "spec",
    [
        replace(GOOD, name="-web"), limits(memory_bytes=1000), with_container(image=""),
        with_container(healthcheck=HealthConfig(interval=1)), replace(GOOD, update_config=UpdateConfig(delay=-1)),
        with_container(env=("A={{.Service.Nmae}}",)), with_container(hostname="{{.Task.Slot"),
        mounting(type="volume", source="{{index .Service.Labels 5}}", target="/a"),
    ],
)
def test_what_swarmkit_refuses_is_shown_as_dockerd_shows_it(spec: ServiceSpec) -> None:
    with pytest.raises(InvalidArgument) as err:
        check_service_spec(spec)
    assert str(err.value).startswith(OF_SWARMKIT)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (
            with_task(networks=(NetworkAttachmentConfig(target="backend"), NetworkAttachmentConfig(target="host"))),
            "network host",
        ),
        (replace(GOOD, mode=ServiceMode(replicated_job=ReplicatedJobMode())), "service mode replicated job"),
        (with_container(privileges=Privileges(credential_spec=CredentialSpec(file="x"))), "credential specs"),
        (with_task(plugin_spec={"Name": "x"}), "plugins"),
        (with_task(runtime="plugin"), "plugins"),
        (mounting(type="npipe", target="/a"), "mounts of type npipe"),
        (
            with_task(
                resources=ResourceRequirements(
                    reservations=Reservation(
                        generic_resources=(
                            GenericResource(discrete_resource_spec=DiscreteResource(kind="gpu", value=1)),
                        )
                    )
                )
            ),
            "generic resources",
        ),
    ],
)
def test_what_is_not_there_yet_is_refused_and_not_ignored(spec: ServiceSpec, word: str) -> None:
    with pytest.raises(NotSupported) as err:
        check_service_spec(spec)
    assert word in str(err.value)


def test_an_update_may_change_neither_name_nor_mode() -> None:
    with pytest.raises(NotSupported, match="renaming services is not supported"):
        check_update(GOOD, replace(GOOD, name="other"))
    with pytest.raises(NotSupported, match="service mode change is not allowed"):
        check_update(GOOD, replace(GOOD, mode=ServiceMode(global_=GlobalMode())))
    check_update(replace(GOOD, mode=ServiceMode()), GOOD)


@pytest.mark.timeout(10)
@given(st.text(alphabet="ab0-_./:@ ", max_size=300))
def test_names_of_any_length_are_judged_in_no_time(text: str) -> None:
    for spec in (replace(GOOD, name=text * 3), with_container(image=text * 3), with_container(image="a" * 900 + text)):
        try:
            check_service_spec(spec)
        except SwarmletError as err:
            assert str(err)


@pytest.mark.parametrize("context", [SeLinuxContext(disable=True), SeLinuxContext(type="t", level="s0:c1,c2")])
def test_a_service_may_have_selinux_labels_or_none(context: SeLinuxContext) -> None:
    check_service_spec(with_container(privileges=Privileges(selinux_context=context)))
