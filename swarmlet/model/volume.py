"""Named volumes (Docker Engine API: VolumeCreateOptions)."""

from __future__ import annotations

from typing import Any

from swarmlet.model.base import ApiStruct


class VolumeCreate(ApiStruct, frozen=True, kw_only=True):
    """The body of POST /volumes/create."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] = {}
    labels: dict[str, str] = {}
    cluster_volume_spec: dict[str, Any] | None = None
