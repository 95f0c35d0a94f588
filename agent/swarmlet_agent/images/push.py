"""Pushing an image: what the registry lacks of its layers, its configuration, and last the manifest under a tag."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from swarmlet.errors import Internal, SwarmletError
from swarmlet.log import get_logger
from swarmlet_agent.images.blobs import BlobBook, KnownBlob
from swarmlet_agent.images.kept import KeptBlob, KeptBlobs
from swarmlet_agent.images.layers import Layer, together
from swarmlet_agent.images.manifests import Configuration, Descriptor, digest_of
from swarmlet_agent.images.packing import KeptLayer, PackedLayer, Packer, Parcel
from swarmlet_agent.images.patience import MAX_ATTEMPTS, pause, persistently, retrying
from swarmlet_agent.images.progress import Hub, Throttle
from swarmlet_agent.images.pushplan import CameAs, Candidates, candidates, manifest_for
from swarmlet_agent.images.reference import Reference
from swarmlet_agent.images.refusals import RegistryRefused, RegistryUnreachable
from swarmlet_agent.images.registry import Registries
from swarmlet_agent.images.target import Target
from swarmlet_agent.images.types import RegistryAuth

log = get_logger(__name__)

#: Layers on their way at once over all pushes (dockerd: max-concurrent-uploads).
MAX_UPLOADS = 5
#: A registry that takes no byte for this long is given up, and tried again.
STALL_S = 60.0
_CANCEL_S = 3.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An image to push. folders: of the layers, in the same order."""

    configuration: Configuration
    layers: tuple[Layer, ...]
    folders: tuple[Path, ...]
    came: CameAs


class Pusher:
    def __init__(self, registries: Registries, book: BlobBook, kept: KeptBlobs, tmp: Path) -> None:
        self._registries, self._book, self._kept, self._tmp = registries, book, kept, tmp
        self._packer = Packer()
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)

    def close(self) -> None:
        self._packer.close()

    async def push(self, ref: Reference, auth: RegistryAuth | None, image: Outgoing, hub: Hub) -> str:
        """The image under the tag of ref; returns the manifest's digest. Call with the layers pinned.

        RegistryDenied, RegistryRefused, RegistryUnreachable; Internal if a layer on disk is damaged.
        """
        wanted = {
            layer.diff_id: self._candidates(ref, image, number) for number, layer in enumerate(image.layers)
        }
        sources = dict.fromkeys(source for each in wanted.values() for _, source in each.mounts)
        target = await self._registries.target(ref, auth, list(sources))
        await target.connect()
        blobs: dict[str, Descriptor] = {}

        async def one(layer: Layer, folder: Path) -> None:
            work = _LayerPush(target, layer, hub)
            if self._uploads.locked():
                work.say("Waiting")
            async with self._uploads:
                candidates = wanted[layer.diff_id]
                found, place = await work.find(candidates)
                blobs[layer.diff_id] = found or await self._send(work, folder, candidates, place)

        # From the top, as dockerd; a layer that is in the image twice goes once.
        parts = {layer.diff_id: (layer, folder) for layer, folder in zip(image.layers, image.folders, strict=True)}
        for layer, _ in reversed(parts.values()):
            hub.emit(_line("Preparing", layer))
        await together(one(layer, folder) for layer, folder in reversed(parts.values()))
        config = image.configuration
        await persistently(lambda: _put_small(target, config.id, config.raw))
        raw, media_type = manifest_for(image.came, config, blobs)
        await persistently(lambda: target.put_manifest(ref.tag, raw, media_type))
        await self._book.note(blobs.items(), ref.name)
        digest = digest_of(raw)
        hub.emit({"status": f"{ref.tag}: digest: {digest} size: {len(raw)}"})
        hub.emit({"progressDetail": {}, "aux": {"Tag": ref.tag, "Digest": digest, "Size": len(raw)}})
        return digest

    async def _send(self, work: _LayerPush, folder: Path, wanted: Candidates, place: URL | None) -> Descriptor:
        """The layer as it was kept, or compressed now and kept. place: an upload that has been begun."""
        layer = work.layer
        for blob in wanted.kept:
            try:
                return await work.upload(KeptLayer(layer, blob, self._kept.path(blob.digest)), place)
            except (Internal, RegistryRefused):
                place = None
                if not await self._kept.drop_if_damaged(blob):
                    raise
        spool = self._tmp / f"pack-{secrets.token_hex(8)}" if await self._kept.make_room(layer.tar_bytes) else None
        try:
            sent = await work.upload(PackedLayer(self._packer, layer, folder, spool), place)
            if spool is not None and spool.exists():
                await self._kept.adopt(spool, KeptBlob(
                    digest=sent.digest, diff_id=layer.diff_id, size=sent.size, media_type=sent.media_type
                ))
            return sent
        finally:
            if spool is not None:
                spool.unlink(missing_ok=True)

    def _candidates(self, ref: Reference, image: Outgoing, number: int) -> Candidates:
        layer, manifest = image.layers[number], image.came.manifest
        original = manifest.layers[number].digest if manifest and number < len(manifest.layers) else ""
        return candidates(
            self._book.known(layer.diff_id), self._kept.of(layer.diff_id), original, ref.domain, ref.path,
            zstd=image.came.is_oci,
        )


class _LayerPush:
    """One layer's way into a repository."""

    def __init__(self, target: Target, layer: Layer, hub: Hub) -> None:
        self._target, self.layer, self._hub = target, layer, hub
        self._throttle = Throttle()

    async def find(self, wanted: Candidates) -> tuple[Descriptor | None, URL | None]:
        """The blob that carries the layer there now; or else where to upload it, if a mount that failed has said."""
        for blob in wanted.here:
            if (found := await self._there(blob)) is not None:
                return found, None
        place: URL | None = None
        for blob, source in wanted.mounts:
            place = await persistently(lambda: self._target.begin(blob.digest, source))  # noqa: B023 - run at once
            if place is None:
                self.say(f"Mounted from {source}")
                return _descriptor(blob), None
        for blob in wanted.elsewhere:
            if (found := await self._there(blob)) is not None:
                return found, None
        return None, place

    async def _there(self, blob: KnownBlob) -> Descriptor | None:
        size = await persistently(lambda: self._target.has(blob.digest))
        if size is None:
            return None
        self.say("Layer already exists")
        return _descriptor(blob)

    async def upload(self, parcel: Parcel, place: URL | None) -> Descriptor:
        """place: an upload that has been begun. Broken ones go on where the registry says, or start over."""
        self._tell(parcel)
        offset = failures = 0
        try:
            while True:
                try:
                    if place is None:
                        place, offset = await self._target.begin(), 0
                    assert place is not None
                    done = await self._send(parcel, place, offset)
                    place = None  # closed by its end
                    await self._target.finish(done, parcel.digest)
                    break
                except (RegistryUnreachable, RegistryRefused) as err:
                    # A refusal in the middle may be about an upload that the registry has mixed up: once more, then.
                    failures += 1
                    if failures >= MAX_ATTEMPTS or (isinstance(err, RegistryRefused) and failures > 1):
                        raise
                    await self._pause(pause(failures, err) if isinstance(err, RegistryUnreachable) else 0.0)
                    place, offset = await self._resume(place)
        except BaseException:  # cancelled, too: undo, and pass it on
            if place is not None:
                # Registries clear up forgotten uploads by themselves: no trouble of theirs may hold us up here.
                with contextlib.suppress(SwarmletError, TimeoutError):
                    async with asyncio.timeout(_CANCEL_S):
                        await self._target.cancel(place)
            raise
        self.say("Pushed")
        return Descriptor(parcel.media_type, parcel.digest, parcel.size)

    async def _send(self, parcel: Parcel, place: URL, offset: int) -> URL:
        loop = asyncio.get_running_loop()
        failed: list[SwarmletError] = []
        try:
            async with asyncio.timeout(STALL_S) as guard:

                async def body() -> AsyncIterator[bytes]:
                    pieces = parcel.pieces(offset)
                    try:
                        while True:
                            guard.reschedule(None)  # our own disk may take its time
                            piece = await asyncio.to_thread(next, pieces, None)
                            guard.reschedule(loop.time() + STALL_S)
                            if piece is None:
                                return
                            self._tell(parcel)
                            yield piece
                    except SwarmletError as err:
                        failed.append(err)
                        raise ConnectionAbortedError(str(err)) from err

                return await self._target.send(place, body, parcel.length and parcel.length - offset)
        except TimeoutError:
            raise RegistryUnreachable(f'Patch "{place.with_query(None)}": i/o timeout') from None
        except RegistryUnreachable:
            if failed:
                raise failed[0] from None  # it broke at our end
            raise

    async def _resume(self, place: URL | None) -> tuple[URL | None, int]:
        """Where to go on and from which byte; a fresh start if the registry does not say."""
        if place is None:
            return None, 0
        try:
            return await self._target.progress(place)
        except SwarmletError as err:
            log.debug("an upload starts over", reason=str(err))
            return None, 0

    async def _pause(self, seconds: float) -> None:
        self.say(retrying(seconds))
        await asyncio.sleep(seconds)

    def say(self, status: str) -> None:
        self._hub.emit(_line(status, self.layer))

    def _tell(self, parcel: Parcel) -> None:
        if self._throttle.passes(asyncio.get_running_loop().time(), last=parcel.taken >= parcel.total):
            detail = {"current": parcel.taken, "total": parcel.total}
            self._hub.emit(_line("Pushing", self.layer) | {"progressDetail": detail})


async def _put_small(target: Target, digest: str, raw: bytes) -> None:
    """A blob in one piece, unless it is there."""
    if await target.has(digest) is None:
        place = await target.begin()
        if place is None:
            raise Internal("the registry mounted what nobody asked it to")
        await target.finish(place, digest, raw)


def _descriptor(blob: KnownBlob) -> Descriptor:
    return Descriptor(blob.media_type, blob.digest, blob.size)


def _line(status: str, layer: Layer) -> dict[str, Any]:
    return {"status": status, "progressDetail": {}, "id": layer.diff_id.removeprefix("sha256:")[:12]}
