"""Shapes that containers and services share (Engine API 1.50 definitions of the same names)."""

from __future__ import annotations

from msgspec import field

from swarmlet.model.base import ApiStruct


class Driver(ApiStruct, frozen=True, kw_only=True):
    """A driver by name with its options (log drivers, volume drivers, templating)."""

    name: str = ""
    options: dict[str, str] = {}


class HealthConfig(ApiStruct, frozen=True, kw_only=True):
    """HEALTHCHECK; durations in nanoseconds, 0 = inherit. `test` [] = inherit, ["NONE"] = off."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class Ulimit(ApiStruct, frozen=True, kw_only=True):
    name: str
    soft: int = 0
    hard: int = 0


class BindOptions(ApiStruct, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeOptions(ApiStruct, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] = {}
    driver_config: Driver | None = None
    subpath: str = ""


class ImageOptions(ApiStruct, frozen=True, kw_only=True):
    subpath: str = ""


class TmpfsOptions(ApiStruct, frozen=True, kw_only=True):
    """`size_bytes` 0 = no limit of its own; `mode` as an integer, 0 = 1777 octal."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] = ()


class Mount(ApiStruct, frozen=True, kw_only=True):
    """One `--mount` (type bind, volume, tmpfs or image; others are refused where containers are made)."""

    target: str = ""
    source: str = ""
    type: str = "volume"
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None


class Platform(ApiStruct, frozen=True, kw_only=True):
    """A node's platform or one an image runs on; "" matches any."""

    architecture: str = ""
    os: str = field(name="OS", default="")
