"""The Engine API's volume calls on one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from swarmlet.engine_api.answers import empty, json_answer
from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.router import Call, Route, convert
from swarmlet.errors import NotSupported
from swarmlet.model.times import NS, rfc3339
from swarmlet.model.volume import VolumeCreate
from swarmlet_agent.volumes.rules import DRIVER, Volume

#: Before this version `volume prune` removed named volumes too (API 1.42's changes).
_PRUNES_ANONYMOUS_ONLY = (1, 42)


class VolumeBackend(Protocol):
    """What these routes use of the volumes."""

    def get(self, name: str) -> Volume: ...

    def path(self, name: str) -> Path: ...

    def select(self, filters: Filters) -> Sequence[Volume]: ...

    async def create(
        self,
        name: str,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume: ...

    async def remove(self, name: str, *, force: bool = False) -> None: ...

    async def prune(self, filters: Filters, *, everything: bool = False) -> tuple[list[str], int]: ...


class VolumeRoutes:
    """`routes()` for the node's server."""

    def __init__(self, volumes: VolumeBackend) -> None:
        self._volumes = volumes

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/volumes", self.list_all),
            Route("POST", "/volumes/create", self.create),
            Route("POST", "/volumes/prune", self.prune),
            Route("GET", "/volumes/{name}", self.inspect),
            Route("PUT", "/volumes/{name}", self.update),
            Route("DELETE", "/volumes/{name}", self.remove),
        ]

    async def list_all(self, call: Call) -> web.StreamResponse:
        """VolumeList: 200; 400 bad filter."""
        found = self._volumes.select(call.filters())
        return json_answer({"Volumes": [self._shown(volume) for volume in found], "Warnings": None})

    async def create(self, call: Call) -> web.StreamResponse:
        """VolumeCreate: 201; 400 bad name or option, 404 unknown driver. Without a body: an anonymous volume."""
        body = await call.raw_json()
        request = convert({} if body is None else body, VolumeCreate)
        if request.cluster_volume_spec is not None:
            raise NotSupported("cluster volumes (ClusterVolumeSpec) are not supported")
        volume = await self._volumes.create(request.name, request.driver, request.driver_opts, request.labels)
        return json_answer(self._shown(volume), 201)

    async def inspect(self, call: Call) -> web.StreamResponse:
        """VolumeInspect: 200; 404."""
        return json_answer(self._shown(self._volumes.get(call.params["name"])))

    async def update(self, call: Call) -> web.StreamResponse:
        """VolumeUpdate is for cluster volumes only: 404 unknown, 400 otherwise."""
        self._volumes.get(call.params["name"])
        raise NotSupported("volume update only valid for cluster volumes")

    async def remove(self, call: Call) -> web.StreamResponse:
        """VolumeDelete: 204; 404, 409 in use."""
        await self._volumes.remove(call.params["name"], force=call.flag("force"))
        return empty()

    async def prune(self, call: Call) -> web.StreamResponse:
        """VolumePrune: 200."""
        everything = call.version < _PRUNES_ANONYMOUS_ONLY
        names, freed = await self._volumes.prune(call.filters(), everything=everything)
        return json_answer({"VolumesDeleted": names, "SpaceReclaimed": freed})

    def _shown(self, volume: Volume) -> dict[str, Any]:
        return volume_json(volume, self._volumes.path(volume.name))


def volume_json(volume: Volume, path: Path) -> dict[str, Any]:
    """The API's Volume object. CreatedAt is in whole seconds, as dockerd shows it."""
    return {
        "CreatedAt": rfc3339(volume.created_at - volume.created_at % NS).replace(".000000000", ""),
        "Driver": DRIVER,
        "Labels": volume.labels or None,
        "Mountpoint": str(path),
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }
