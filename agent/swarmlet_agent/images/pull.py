"""Pulling an image: manifest, configuration, layers; nothing becomes an image before all of it is verified."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Internal, InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.images.catalogue import Catalogue
from swarmlet_agent.images.kept import KeptBlob, KeptBlobs
from swarmlet_agent.images.layers import Blob, LayerStore
from swarmlet_agent.images.manifests import (
    OCI_INDEX,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    choose,
    parse_config,
    parse_manifest,
)
from swarmlet_agent.images.partial import PartialBlobs
from swarmlet_agent.images.patience import patiently, retrying
from swarmlet_agent.images.platforms import Platform
from swarmlet_agent.images.progress import Hub, Throttle
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.refusals import RegistryUnreachable
from swarmlet_agent.images.registry import Fetched, Registries, Repository
from swarmlet_agent.images.transfer import fetch_blob
from swarmlet_agent.images.types import RegistryAuth

log = get_logger(__name__)

#: Room on the disk that an image may take, in sizes of its blobs: with them unpacked.
_EXPANDED = 5
#: Blobs fetched at once over all pulls (dockerd: max-concurrent-downloads).
MAX_DOWNLOADS = 3


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image's manifest: its bytes, and what they say."""

    raw: bytes
    value: Manifest


class Puller:
    def __init__(
        self, registries: Registries, layers: LayerStore, catalogue: Catalogue, partials: PartialBlobs, kept: KeptBlobs
    ) -> None:
        self._registries, self._layers, self._catalogue = registries, layers, catalogue
        self._partials, self._kept = partials, kept
        self._downloads = asyncio.Semaphore(MAX_DOWNLOADS)

    async def resolve(
        self, ref: Reference, auth: RegistryAuth | None, known_digest: str = "", *, past_mirrors: bool = False
    ) -> tuple[Repository, Fetched | None]:
        """The manifest or list behind a reference; None if it still is the one with `known_digest`.

        A mirror that does not have it is no reason to give up: the registry itself is asked then.
        """
        repositories = await self._registries.open(ref, auth)
        if past_mirrors:
            repositories = repositories[-1:]
        error: SwarmletError | None = None
        for repository in repositories:
            try:
                await repository.connect()
                if known_digest and await repository.manifest_digest(ref.version) == known_digest:
                    return repository, None
                return repository, await patiently(lambda: repository.manifest(ref.version))  # noqa: B023 - run at once
            except SwarmletError as err:
                if repository is not repositories[-1]:
                    log.warning("mirror is passed over", reason=str(err))
                error = err
        assert error is not None
        raise error

    async def tags(self, ref: Reference, auth: RegistryAuth | None) -> list[str]:
        """All tags of a repository, from the registry itself: mirrors, which may know only some, are for want of it."""
        *mirrors, registry = await self._registries.open(ref, auth)
        error: RegistryUnreachable | None = None
        for repository in (registry, *mirrors):
            try:
                await repository.connect()
                return await repository.tags()
            except RegistryUnreachable as err:
                error = error or err
        assert error is not None
        raise error

    async def manifest_for(
        self, repository: Repository, top: Fetched, ref: Reference, wanted: Platform
    ) -> Chosen:
        """The manifest for a platform, through a list if there is one."""
        fetched = top
        found = parse_manifest(top.raw, top.media_type)
        if isinstance(found, Index):
            entry = choose(found.manifests, wanted, ref.familiar)
            fetched = await patiently(lambda: repository.manifest(entry.digest))
            found = parse_manifest(fetched.raw, fetched.media_type or entry.media_type)
            if isinstance(found, Index):
                raise InvalidArgument(f"the manifest list of {ref.familiar} lists a list where an image should be")
        if not found.media_type:  # OCI lets it be left out: then the answer's header says it
            found = msgspec.structs.replace(found, media_type=fetched.media_type.partition(";")[0].strip())
        return Chosen(fetched.raw, found)

    async def configuration(self, repository: Repository, blob: Descriptor) -> Configuration:
        """The image's configuration, verified; from the catalogue if it is there."""
        if blob.digest in self._catalogue:
            return self._catalogue.configuration(blob.digest)
        return parse_config(await patiently(lambda: self._small(repository, blob)))

    async def _small(self, repository: Repository, blob: Descriptor) -> bytes:
        """A blob in memory, verified."""
        raw = b""
        async with repository.blob(blob.digest, 0) as (answer, _start):
            async for piece in answer.content.iter_any():
                raw += piece
                if len(raw) > blob.size:
                    break
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != blob.digest:
            raise InvalidArgument(f"image config verification failed for digest {blob.digest}")
        return raw

    async def install(
        self, repository: Repository, manifest: Manifest, config: Configuration, hub: Hub
    ) -> list[KeptBlob]:
        """Fetch and unpack what is missing. Returns the blobs that are in their places to be kept.

        Call with the chain pinned, and the layers' digests in `KeptBlobs.placing`.
        """
        if len(manifest.layers) != len(config.diff_ids):
            raise InvalidArgument(
                f"the image has {len(manifest.layers)} layers but its configuration names {len(config.diff_ids)}"
            )
        parts = _FromRegistry(repository, manifest.layers, self._partials, self._downloads, hub)
        for layer in manifest.layers:
            hub.emit(_layer("Pulling fs layer", layer))
        async with self._partials.wanted([layer.digest for layer in manifest.layers]):
            room = await self._kept.make_room(_EXPANDED * sum(layer.size for layer in manifest.layers))
            await self._layers.install(config.diff_ids, parts)
            return await self._keep(config, manifest, parts.fetched) if room else []

    async def _keep(self, config: Configuration, manifest: Manifest, fetched: Iterable[int]) -> list[KeptBlob]:
        """Put the blobs of these layers where they are kept."""
        kept = []
        for digest, number in {manifest.layers[number].digest: number for number in fetched}.items():
            layer = manifest.layers[number]
            diff_id = config.diff_ids[number]
            blob = KeptBlob(digest=digest, diff_id=diff_id, size=layer.size, media_type=layer.media_type)
            try:
                async with self._partials.alone(digest) as file:
                    await self._kept.place(digest, file, copy=self._partials.is_shared(digest))
            except OSError as err:
                log.warning("a compressed layer is not kept", digest=digest, error=str(err))
            else:
                kept.append(blob)
        return kept

    async def distribution(self, ref: Reference, auth: RegistryAuth | None) -> dict[str, Any]:
        """What GET /distribution/{name}/json answers (Engine API: DistributionInspect)."""
        repository, top = await self.resolve(ref, auth)
        assert top is not None
        found = parse_manifest(top.raw, top.media_type)
        media_type = found.media_type or top.media_type.partition(";")[0]
        if isinstance(found, Index):
            media_type = media_type or OCI_INDEX
            platforms = [entry.platform for entry in found.manifests if entry.platform is not None]
        else:
            platforms = [(await self.configuration(repository, found.config)).platform]
        return {
            "Descriptor": {"mediaType": media_type, "digest": top.digest, "size": len(top.raw)},
            "Platforms": [_platform(platform) for platform in platforms],
        }


def _platform(platform: Platform) -> dict[str, Any]:
    shown: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        shown["variant"] = platform.variant
    if platform.os_version:
        shown["os.version"] = platform.os_version
    if platform.os_features:
        shown["os.features"] = list(platform.os_features)
    return shown


class _FromRegistry:
    """Installation (see layers.py) of a manifest's layers."""

    def __init__(
        self, repository: Repository, layers: Sequence[Descriptor], partials: PartialBlobs,
        downloads: asyncio.Semaphore, hub: Hub,
    ) -> None:
        self._repository, self._layers, self._partials, self._downloads = repository, layers, partials, downloads
        self._hub = hub
        self._throttles = [Throttle() for _ in layers]
        #: Numbers of the layers that were not here.
        self.fetched: list[int] = []

    @asynccontextmanager
    async def blob(self, number: int) -> AsyncIterator[Blob]:
        layer = self._layers[number]
        async with self._partials.alone(layer.digest) as target:
            if self._downloads.locked():
                self._hub.emit(_layer("Waiting", layer))
            async with self._downloads:
                await self._fetch(number, layer, target)
        self.fetched.append(number)
        # It stays until the pull is over: were the agent killed now, this layer would have to be unpacked again.
        yield Blob(target, 0, layer.size)

    async def _fetch(self, number: int, layer: Descriptor, target: Path) -> None:
        async def progress(size: int) -> None:
            self._bytes("Downloading", number, size, layer.size)

        async def later(seconds: float) -> None:
            self._hub.emit(_layer(retrying(seconds), layer))

        try:
            await fetch_blob(self._repository, layer, target, progress=progress, retrying=later)
        except OSError as err:
            raise Internal(f"blob {layer.digest} cannot be stored: {err.strerror}") from err
        self._hub.emit(_layer("Verifying Checksum", layer))
        self._hub.emit(_layer("Download complete", layer))

    async def exists(self, number: int) -> None:
        self._hub.emit(_layer("Already exists", self._layers[number]))

    async def extracting(self, number: int, consumed: int, total: int) -> None:
        self._bytes("Extracting", number, consumed, total)

    async def complete(self, number: int) -> None:
        self._hub.emit(_layer("Pull complete", self._layers[number]))

    def _bytes(self, status: str, number: int, current: int, total: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._throttles[number].passes(now, last=current >= total):
            self._hub.emit(_layer(status, self._layers[number], current, total))


def _layer(status: str, layer: Descriptor, current: int | None = None, total: int | None = None) -> dict[str, Any]:
    detail = {} if current is None else {"current": current, "total": total}
    return {"status": status, "progressDetail": detail, "id": layer.digest.removeprefix("sha256:")[:12]}
