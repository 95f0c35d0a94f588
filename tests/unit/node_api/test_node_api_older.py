"""Requests of older clients are taken as their version of the API meant them."""

from __future__ import annotations

import pytest

from swarmlet.engine_api.versions import NEWEST, ApiVersion
from swarmlet.errors import InvalidArgument
from swarmlet.model.common import BindOptions, HealthConfig, Mount, TmpfsOptions, VolumeOptions
from swarmlet.model.container import ContainerCreate, EndpointSettings, HostConfig, NetworkingConfig
from swarmlet_agent.api.shapes.older import as_meant


def request(**host: object) -> ContainerCreate:
    return ContainerCreate(image="i", host_config=HostConfig(**host))  # type: ignore[arg-type]


def meant(made: ContainerCreate, minor: int) -> HostConfig:
    return as_meant(made, ApiVersion(1, minor)).host_config


def test_todays_requests_are_left_alone() -> None:
    made = request(annotations={"a": "b"}, console_size=(1, 2), mounts=(Mount(type="image", source="i", target="/x"),))
    assert as_meant(made, NEWEST) is made


def test_defaults_of_their_time_hold() -> None:
    assert meant(request(), 39).ipc_mode == "shareable" and meant(request(), 40).ipc_mode == ""
    assert meant(request(ipc_mode="none"), 39).ipc_mode == "none"
    assert meant(request(auto_remove=True), 24).auto_remove is False
    assert meant(request(auto_remove=True), 25).auto_remove is True


def test_what_came_later_was_not_heard_of() -> None:
    made = request(annotations={"a": "b"}, console_size=(1, 2))
    assert (meant(made, 42).annotations, meant(made, 43).annotations) == ({}, {"a": "b"})
    assert (meant(made, 41).console_size, meant(made, 42).console_size) == ((0, 0), (1, 2))
    checked = ContainerCreate(image="i", healthcheck=HealthConfig(test=("NONE",), start_interval=5))
    assert [as_meant(checked, ApiVersion(1, minor)).healthcheck.start_interval for minor in (43, 44)] == [0, 5]  # type: ignore[union-attr]
    placed = ContainerCreate(
        image="i", networking_config=NetworkingConfig(endpoints_config={"a": EndpointSettings(gw_priority=7)})
    )
    assert as_meant(placed, ApiVersion(1, 47)).networking_config.endpoints_config["a"] == EndpointSettings()
    wrong = Mount(type="bind", source="/a", target="/b", volume_options=VolumeOptions(), tmpfs_options=TmpfsOptions())
    assert meant(request(mounts=(wrong,)), 41).mounts == (Mount(type="bind", source="/a", target="/b"),)
    assert meant(request(mounts=(wrong,)), 42).mounts == (wrong,)
    bind = Mount(
        type="bind", source="/a", target="/b", bind_options=BindOptions(create_mountpoint=True, non_recursive=True)
    )
    assert meant(request(mounts=(bind,)), 41).mounts[0].bind_options == BindOptions(non_recursive=True)
    assert meant(request(mounts=(bind,)), 39).mounts[0].bind_options == BindOptions()


@pytest.mark.parametrize(
    ("mount", "minor", "text"),
    [
        (Mount(type="image", source="i", target="/x"), 47, 'Mount type "Image" needs API v1.48 or newer'),
        (Mount(source="v", target="/x", volume_options=VolumeOptions(subpath="a")), 44, "Subpath needs API v1.45"),
        (
            Mount(type="bind", source="/a", target="/x", bind_options=BindOptions(read_only_force_recursive=True)), 43,
            "ReadOnlyForceRecursive needs API v1.44",
        ),
    ],
)  # fmt: skip
def test_what_could_not_be_said_is_refused(mount: Mount, minor: int, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        meant(request(mounts=(mount,)), minor)


def test_several_networks_at_once_need_a_newer_client() -> None:
    made = ContainerCreate(image="i", networking_config=NetworkingConfig(endpoints_config={"a": None, "b": None}))
    with pytest.raises(InvalidArgument, match="network endpoints"):
        as_meant(made, ApiVersion(1, 43))
    assert len(as_meant(made, ApiVersion(1, 44)).networking_config.endpoints_config) == 2
