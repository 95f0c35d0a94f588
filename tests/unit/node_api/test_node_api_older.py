"""Requests of older clients are taken as their version of the API meant them."""

from __future__ import annotations

import pytest

from swarmlet.engine_api.versions import NEWEST, ApiVersion
from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.common import BindOptions, HealthConfig, Mount, TmpfsOptions, VolumeOptions
from swarmlet.model.container import ContainerCreate, EndpointSettings, HostConfig, NetworkingConfig
from swarmlet_agent.api.shapes.older import as_meant, moved


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
    with pytest.raises(InvalidArgument, match='VolumeOptions must not be specified on mount type "bind"'):
        meant(request(mounts=(wrong,)), 42)
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


def asked(mode: str, places: dict[str, EndpointSettings | None], **given: object) -> ContainerCreate:
    sysctls = given.pop("sysctls", {})
    return ContainerCreate(
        image="i", host_config=HostConfig(network_mode=mode, sysctls=sysctls),  # type: ignore[arg-type]
        networking_config=NetworkingConfig(endpoints_config=places), **given,  # type: ignore[arg-type]
    )


def test_a_containers_mac_address_is_its_endpoints_since_api_1_44() -> None:
    """moby handleMACAddressBC."""
    new, old = ApiVersion(1, 44), ApiVersion(1, 43)
    mac = "02:42:ac:11:00:99"
    for mode, places in (("", {}), ("default", {"default": None}), ("net", {"net": EndpointSettings(aliases=("a",))})):
        made, warnings = moved(asked(mode, places, mac_address=mac), new)
        (place,) = made.networking_config.endpoints_config.values()
        assert (made.mac_address, place and place.mac_address) == ("", mac)
        assert warnings[0].startswith("The container-wide MacAddress field is now deprecated.")
        assert moved(asked(mode, places, mac_address=mac), old) == (asked(mode, places, mac_address=mac), [])
    made, warnings = moved(asked("host", {}, mac_address=mac), new)
    assert (made, len(warnings)) == (asked("host", {}), 1)
    other: dict[str, EndpointSettings | None] = {"net": EndpointSettings(mac_address="02:42:ac:11:00:01")}
    assert moved(asked("net", other), old)[0] == asked("net", {"net": EndpointSettings()})
    for mode, places, version, words in (
        ("net", other, new, "must match the endpoint-specific MAC address"),
        ("net", {"x": None}, new, "unable to migrate .* network: HostConfig.NetworkMode must match the identity"),
        ("host", {}, old, "conflicting options: mac-address and the network mode"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            moved(asked(mode, places, mac_address=mac), version)


def test_sysctls_of_an_interface_are_its_endpoints() -> None:
    """moby handleSysctlBC."""
    one = {"net.ipv4.conf.eth0.log_martians": "1", "net.ipv4.ip_forward": "1"}
    made, (warning,) = moved(asked("net", {}, sysctls=one), ApiVersion(1, 46))
    told = "net.ipv4.conf.IFNAME.log_martians=1"
    assert made.host_config.sysctls == {"net.ipv4.ip_forward": "1"}
    key = "com.docker.network.endpoint.sysctls"
    assert made.networking_config.endpoints_config["net"] == EndpointSettings(driver_opts={key: told})
    assert warning == f'Migrated sysctl "net.ipv4.conf.eth0.log_martians" to DriverOpts{{"{key}":"{told}"}}.'
    with pytest.raises(Internal, match="must be supplied using driver option"):
        moved(asked("net", {}, sysctls=one), ApiVersion(1, 47))
    with pytest.raises(Internal, match="unable to determine network endpoint"):
        moved(asked("net", {}, sysctls={"net.ipv4.conf.eth1.log_martians": "1"}), ApiVersion(1, 46))
    assert moved(asked("host", {}, sysctls=one), ApiVersion(1, 47)) == (asked("host", {}, sysctls=one), [])
