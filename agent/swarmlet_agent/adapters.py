"""Small pieces between the agent's parts, each too particular for either side.

The parts declare what they need of each other as Protocols; where the shapes differ, it is put right here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarmlet.engine_api.filters import Filters
from swarmlet.engine_api.versions import ApiVersion
from swarmlet.errors import NotFound
from swarmlet_agent.api.routes.volumes import volume_json
from swarmlet_agent.builder.builder import Builder
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.decide.selinux import Policy
from swarmlet_agent.engine.core import HostTraits
from swarmlet_agent.engine.engine import Engine
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.net.records import NetworkRecord
from swarmlet_agent.runtime.host import RuntimeInfo
from swarmlet_agent.volumes.store import VolumeStore


class DiskUsage:
    """What `docker system df` asks for."""

    def __init__(self, images: ImageStore, volumes: VolumeStore, engine: Engine, builder: Builder) -> None:
        self._images = images
        self._volumes = volumes
        self._engine = engine
        self._builder = builder

    async def build_cache(self) -> Sequence[Mapping[str, Any]]:
        return await self._builder.disk_usage()

    async def images(self, version: ApiVersion) -> tuple[int, Sequence[Mapping[str, Any]]]:
        total, listed = self._images.disk_usage(version)
        return total, [image | {"Containers": len(self._engine.users_of(image["Id"]))} for image in listed]

    async def volumes(self) -> Sequence[Mapping[str, Any]]:
        answer = []
        for volume in self._volumes.select(Filters()):
            if volume.options:  # not this host's disk: dockerd does not count them either
                continue
            size = await self._volumes.size(volume.name)
            usage = {"UsageData": {"Size": size, "RefCount": len(volume.users)}}
            answer.append(volume_json(volume, self._volumes.path(volume.name)) | usage)
        return answer


class ImageCount:
    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def count(self) -> int:
        return len(self._images.all())

    def size(self, image_id: str) -> int:
        try:
            return self._images.get(image_id).size_bytes
        except NotFound:
            return 0


def host_traits(runtime: RuntimeInfo, remap: Remap | None, selinux: Policy | None) -> HostTraits:
    return HostTraits(
        runtime_name=runtime.name,
        runtimes=runtime.runtimes,
        cgroupns_mode="private" if runtime.cgroup_version == "2" else "host",
        apparmor=runtime.apparmor,
        apparmor_profile=runtime.apparmor_profile,
        remap=remap,
        selinux=selinux,
    )


def publish_image_event(events: EventBus, action: str, image: str, attributes: dict[str, str]) -> None:
    events.publish("image", action, image, attributes)


def publish_volume_event(events: EventBus, action: str, name: str, attributes: dict[str, str]) -> None:
    events.publish("volume", action, name, attributes)


def publish_prune(events: EventBus, kind: str, freed_bytes: int) -> None:
    events.publish(kind, "prune", "", {"reclaimed": str(freed_bytes)})


def publish_network_event(
    events: EventBus, action: str, network: NetworkRecord, attributes: Mapping[str, str]
) -> None:
    events.publish("network", action, network.id, {"name": network.name, "type": network.driver, **attributes})
