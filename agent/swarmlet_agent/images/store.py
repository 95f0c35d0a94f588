"""The node's images: the one object the engine, the task worker and the API's routes talk to.

Everything is derived from the journal (what images and names there are) and from folders that are whole by
construction, so starting is recovering.
"""

from __future__ import annotations

import asyncio
import platform as uname
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Internal, InvalidArgument, NotFound
from swarmlet.log import get_logger
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import rfc3339
from swarmlet_agent.images import encode, listing
from swarmlet_agent.images.catalogue import Catalogue, ImageRecord
from swarmlet_agent.images.changes import apply_changes
from swarmlet_agent.images.endpoints import check_registries
from swarmlet_agent.images.layers import Blob, Layer, LayerStore
from swarmlet_agent.images.load import Found, FromArchive, find_images
from swarmlet_agent.images.manifests import (
    Configuration,
    Platform,
    matches,
    normal_architecture,
    parse_config,
    parse_platform,
)
from swarmlet_agent.images.progress import Hub, Listener, SingleFlight
from swarmlet_agent.images.pull import Puller
from swarmlet_agent.images.reference import Reference, is_image_id, parse_reference
from swarmlet_agent.images.registry import Registries
from swarmlet_agent.images.removal import User, plan_removal
from swarmlet_agent.images.rootfs import RootStore
from swarmlet_agent.images.save import Saved, archive_chunks
from swarmlet_agent.images.spool import open_archive, spooled
from swarmlet_agent.images.types import Image, RegistryAuth
from swarmlet_agent.images.unpack import Limits
from swarmlet_agent.images.workers import UnpackPool
from swarmlet_agent.journal import Journal

log = get_logger(__name__)


class ImageUsers(Protocol):
    """Who knows which containers were made from an image (the engine)."""

    def users_of(self, image_id: str) -> Sequence[tuple[str, bool]]:
        """(container id, running) of each."""
        ...


#: action ("pull", "tag", "untag", "delete", "load", "import"), image id or name, attributes.
OnEvent = Callable[[str, str, dict[str, str]], None]
Deleted = list[dict[str, str]]


class ImageStore:
    """See `engine/ports.py` (Images) for what the engine uses; the rest is for the API and the task worker.

    users and on_event may be set after construction: those who provide them need the store first.
    """

    def __init__(
        self, data_dir: Path, journal: Journal, *, insecure_registries: Sequence[str] = ("127.0.0.0/8",),
        registry_mirrors: Sequence[str] = (), users: ImageUsers | None = None, on_event: OnEvent | None = None,
        limits: Limits | None = None,
    ) -> None:
        check_registries(insecure_registries, registry_mirrors)
        self.users = users
        self.on_event = on_event
        self._host = Platform(normal_architecture(uname.machine()), "linux")
        self._registries = Registries(insecure_registries, registry_mirrors)
        self._layers = LayerStore(data_dir / "images", UnpackPool(limits))
        self._roots = RootStore(data_dir / "containers-rootfs", self._layers.diff)
        self._catalogue = Catalogue(journal)
        self._puller = Puller(self._registries, self._layers, self._catalogue)
        self._flights: SingleFlight[Image] = SingleFlight()
        # Names and records change one at a time: each change looks, writes the journal, then changes memory.
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Recover what the journal and the disk have."""
        known = self._catalogue.load()
        await asyncio.to_thread(self._roots.recover)
        await asyncio.to_thread(self._layers.recover, known, self._needed())
        for image in self._catalogue.images():
            missing = [chain for chain in image.layers if self._layers.get(chain) is None]
            if missing:
                log.warning("image is dropped: a layer is missing on disk", image=image.id, layer=missing[0])
                await self._catalogue.remove(image.id, self._catalogue.names(image.id), ())
        stale = {layer.chain_id for layer in known} - {layer.chain_id for layer in self._layers.all()}
        if stale:
            await self._catalogue.forget_layers(stale)
        await self._sweep([layer.chain_id for layer in self._layers.all()])

    async def close(self) -> None:
        """Pulls are cancelled; mounts stay (containers live on)."""
        await self._flights.close()
        await self._registries.close()

    # looking

    def get(self, ref: str) -> Image:
        """By name[:tag], name@digest, id or id prefix. NotFound ("No such image: …")."""
        return self._catalogue.image(self._catalogue.find(ref))

    def all(self) -> list[Image]:
        return self._catalogue.images()

    def layers(self) -> list[Layer]:
        """Every unpacked layer, for disk usage."""
        return self._layers.all()

    def list_images(
        self, filters: Filters, version: tuple[int, int], *, shared_size: bool = False
    ) -> list[dict[str, Any]]:
        """GET /images/json."""
        chosen = listing.select(self.all(), filters, self.get, time.time_ns())
        patterns = filters.get("reference")
        sizes = self._shared_sizes() if shared_size else {}
        return [
            encode.summary(
                image, version, shared_size=sizes.get(image.id, -1),
                names=listing.matching_names(image, patterns) if patterns else None,
            )
            for image in chosen
        ]

    def inspect(self, ref: str, version: tuple[int, int], wanted: str = "") -> dict[str, Any]:
        """GET /images/{name}/json."""
        image = self._of_platform(ref, parse_platform(wanted))
        return encode.inspect(
            image, self._catalogue.record(image.id), self._catalogue.configuration(image.id),
            [self._layers.diff(chain) for chain in image.layers], version,
        )

    def history(self, ref: str, wanted: str = "") -> list[dict[str, Any]]:
        image = self._of_platform(ref, parse_platform(wanted))
        layers = [layer for chain in image.layers if (layer := self._layers.get(chain)) is not None]
        return encode.history(image, self._catalogue.configuration(image.id), layers)

    # coming in

    async def pull(
        self, ref: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> Image:
        """The image behind name[:tag][@digest], fetched if it is missing or has changed.

        Equal pulls at one time are one. NotFound, RegistryDenied, RegistryUnreachable, InvalidArgument, Internal:
        nothing has changed then.
        """
        parsed = parse_reference(ref).with_default_tag()
        wanted = parse_platform(platform)
        return await self._flights.run(
            (parsed.full, wanted, auth), lambda hub: self._pull(parsed, auth, wanted, hub), progress
        )

    async def pull_all_tags(
        self, name: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> list[Image]:
        """docker pull --all-tags."""
        parsed = parse_reference(name)
        images = []
        for tag in await self._puller.tags(parsed, auth):
            images.append(await self.pull(parsed.with_tag(tag).full, auth=auth, platform=platform, progress=progress))
        if not images:
            raise NotFound("repository", parsed.familiar_name, f"repository {parsed.familiar_name} has no tags")
        return images

    async def distribution(self, ref: str, auth: RegistryAuth | None = None) -> dict[str, Any]:
        """GET /distribution/{name}/json: descriptor and platforms, asked of the registry."""
        return await self._puller.distribution(parse_reference(ref).with_default_tag(), auth)

    async def load(
        self, chunks: AsyncIterator[bytes], *, platform: str = "", quiet: bool = False, progress: Listener | None = None
    ) -> list[Image]:
        """docker load. InvalidArgument for what is no image archive or a broken one."""
        wanted = parse_platform(platform)
        hub = Hub()
        work = asyncio.create_task(self._load(chunks, wanted, hub, quiet=quiet), name="load images")
        try:
            if progress is not None:
                await hub.follow(progress)
            return await work
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])

    async def import_tar(
        self, chunks: AsyncIterator[bytes], *, repo: str = "", tag: str = "", message: str = "",
        changes: Sequence[str] = (), platform: str = "", source: str = "-",
    ) -> Image:
        """docker import: one layer from a plain root file system tar."""
        name = None
        if repo:
            name = parse_reference(repo)
            if name.digest:
                raise InvalidArgument("cannot import digest reference")
            name = name.with_tag(tag) if tag else name.with_default_tag()
        wanted = parse_platform(platform) or self._host
        config = apply_changes(ImageConfig(), changes)
        async with spooled(chunks, self._layers.tmp) as path:
            layer = await self._layers.add_single(Blob(path, 0, path.stat().st_size), "of the imported archive")
        comment = message or f"Imported from {source}"
        new = parse_config(encode.new_config(
            architecture=wanted.architecture, config=config, created=rfc3339(time.time_ns()),
            diff_id=layer.diff_id, comment=comment, variant=wanted.variant,
        ))
        async with self._installing(new):
            image = await self._add(new, [name] if name else [], comment=comment, tagged=bool(name))
        self._event("import", image.id, image)
        return image

    async def fetch_url(self, url: str) -> AsyncIterator[bytes]:
        """The bytes behind a URL (docker import URL). InvalidArgument, RegistryUnreachable."""
        async for piece in self._registries.fetch_url(url):
            yield piece

    # going out

    async def save(self, refs: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """docker save: an archive of these images in pieces. NotFound before the first piece."""
        chosen = self._to_save(refs)
        chains = [layer.chain_id for saved in chosen for layer in saved.layers]
        with self._layers.pinned(chains):
            chunks = archive_chunks(chosen)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk

    # names

    async def tag(self, ref: str, repo: str, tag: str = "") -> None:
        """docker tag. NotFound, InvalidArgument."""
        name = parse_reference(repo)
        if name.digest:
            raise InvalidArgument("refusing to create a tag with a digest reference")
        if name.familiar_name == "sha256":
            raise InvalidArgument("refusing to create an ambiguous tag using digest algorithm as name")
        name = name.with_tag(tag) if tag else name.with_default_tag()
        async with self._changing:
            image_id = self._catalogue.find(ref)
            record = msgspec.structs.replace(self._catalogue.record(image_id), tagged_at=time.time_ns())
            await self._catalogue.add(record, (), [name])
        self._event("tag", name.familiar, self._catalogue.image(image_id))

    async def remove(self, ref: str, *, force: bool = False) -> Deleted:
        """docker rmi: [{"Untagged": …}, {"Deleted": …}]. NotFound; Conflict in dockerd's words."""
        async with self._changing:
            image_id = self._catalogue.find(ref)
            named = self._named(ref, image_id)
            plan = plan_removal(image_id, self._catalogue.names(image_id), named, self._users(image_id), force=force)
            done: Deleted = [{"Untagged": name.familiar} for name in plan.untag]
            image = self._catalogue.image(image_id)
            if plan.delete:
                await self._catalogue.remove(image_id, plan.untag, ())
            else:
                await self._catalogue.untag(plan.untag)
        for _name in plan.untag:
            self._event("untag", image_id, image)
        if plan.delete:
            done.append({"Deleted": image_id})
            done += [{"Deleted": layer.chain_id} for layer in await self._sweep(image.layers)]
            self._event("delete", image_id, image)
        return done

    async def prune(self, filters: Filters) -> tuple[Deleted, int]:
        """docker image prune: what was deleted, and the bytes that freed."""
        filters.check(*listing.PRUNE_FILTERS)
        dangling_only = filters.flag("dangling") is not False
        until = min((listing.until_ns(text, time.time_ns()) for text in filters.get("until")), default=None)
        before = {layer.chain_id: layer.size_bytes for layer in self._layers.all()}
        deleted: Deleted = []
        for image in self.all():
            if (
                (dangling_only and not listing.is_dangling(image)) or self._users(image.id)
                or (until is not None and image.created >= until)
                or not filters.matches_labels(image.config.labels)
                or ("label!" in filters and filters.matches_labels(image.config.labels, "label!"))
            ):
                continue
            deleted += await self._delete_all(image.id)
        freed = sum(before.get(entry.get("Deleted", ""), 0) for entry in deleted)
        return deleted, freed

    # containers' roots (engine/ports.py)

    async def ensure_rootfs(self, container_id: str, image_id: str) -> Path:
        """The container's writable root: overlay of the image's layers and its own upper folder, mounted."""
        if self._roots.knows(container_id):
            return await self._roots.ensure(container_id, ())
        return await self._roots.ensure(container_id, self._catalogue.image(self._catalogue.find(image_id)).layers)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount; the container's own changes stay. Nothing mounted is fine."""
        await self._roots.unmount(container_id)

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete the container's own changes. Nothing there is fine."""
        layers = await self._roots.remove(container_id)
        if not self._catalogue.layers_in_use().issuperset(layers):
            await self._sweep(tuple(reversed(layers)))

    async def rootfs_size(self, container_id: str) -> int:
        """Bytes in the container's own writable layer."""
        return await self._roots.size(container_id)

    # inside

    async def _pull(self, ref: Reference, auth: RegistryAuth | None, wanted: Platform | None, hub: Hub) -> Image:
        known_id = self._catalogue.named(ref.with_digest(ref.digest).full if ref.digest else ref.full)
        known = self._catalogue.image(known_id) if known_id else None
        if known is not None and not matches(_platform_of(known), wanted or self._host):
            known = None
        digest = ref.digest or (self._digest_of(ref, known) if known else "")
        if known is not None and ref.digest:
            self._up_to_date(ref, digest, hub)  # content with this digest cannot have changed
            return known
        repository, top = await self._puller.resolve(ref, auth, digest if known else "")
        if top is None and known is not None:
            self._up_to_date(ref, digest, hub)
            return known
        assert top is not None
        manifest = await self._puller.manifest_for(repository, top, ref, wanted or self._host)
        config = await self._puller.configuration(repository, manifest.config)
        self._puller.check_platform(config.platform, wanted, ref)
        hub.emit({"status": f"Pulling from {_shown_repository(ref)}", "id": ref.version})
        names = [ref.with_digest(top.digest)] if ref.digest else [ref, ref.with_digest(top.digest)]
        moved = self._catalogue.named(names[0].full) != config.id
        async with self._installing(config):
            await self._puller.install(repository, manifest, config, hub)
            image = await self._add(config, names)
        hub.emit({"status": f"Digest: {top.digest}"})
        what = "Downloaded newer image for" if moved else "Image is up to date for"
        hub.emit({"status": f"Status: {what} {ref.familiar}"})
        self._event("pull", ref.familiar, image)
        return image

    def _up_to_date(self, ref: Reference, digest: str, hub: Hub) -> None:
        hub.emit({"status": f"Pulling from {_shown_repository(ref)}", "id": ref.version})
        hub.emit({"status": f"Digest: {digest}"})
        hub.emit({"status": f"Status: Image is up to date for {ref.familiar}"})
        image_id = self._catalogue.named(ref.with_digest(digest).full)
        if image_id is not None:
            self._event("pull", ref.familiar, self._catalogue.image(image_id))

    def _digest_of(self, ref: Reference, image: Image) -> str:
        """The digest under which the image was last pulled from this repository, if there is just one."""
        digests = [name.digest for name in self._catalogue.names(image.id) if name.digest and name.name == ref.name]
        return digests[0] if len(digests) == 1 else ""

    async def _load(
        self, chunks: AsyncIterator[bytes], wanted: Platform | None, hub: Hub, *, quiet: bool
    ) -> list[Image]:
        images = []
        try:
            async with spooled(chunks, self._layers.tmp) as path, open_archive(path) as archive:
                for found in await find_images(archive, self._host, wanted):
                    images.append(await self._load_one(found, hub, quiet=quiet))
        finally:
            hub.finish()
        return images

    async def _load_one(self, found: Found, hub: Hub, *, quiet: bool) -> Image:
        config = found.configuration
        async with self._installing(config):
            await self._layers.install(config.diff_ids, FromArchive(found, Hub() if quiet else hub))
            for name in found.names:
                before = self._catalogue.named(name.full)
                if before not in (None, config.id):
                    hub.emit({"stream": (
                        f"The image {name.familiar} already exists, "
                        f"renaming the old one with ID {before} to empty string\n"
                    )})
            image = await self._add(config, found.names, tagged=bool(found.names))
        for name in found.names:
            hub.emit({"stream": f"Loaded image: {name.familiar}\n"})
        if not found.names:
            hub.emit({"stream": f"Loaded image ID: {config.id}\n"})
        self._event("load", config.id, image)
        return image

    @asynccontextmanager
    async def _installing(self, config: Configuration) -> AsyncIterator[None]:
        """The image's layers are kept while it comes in; what a failure leaves of them goes again."""
        try:
            with self._layers.pinned(config.chain_ids):
                yield
        finally:
            if not self._catalogue.layers_in_use().issuperset(config.chain_ids):
                await self._sweep(config.chain_ids)

    async def _add(
        self, config: Configuration, names: Sequence[Reference], *, comment: str = "", tagged: bool = False
    ) -> Image:
        """Promise the image: its layers are installed and pinned."""
        await self._layers.sync(config.chain_ids)
        layers = [layer for chain in config.chain_ids if (layer := self._layers.get(chain)) is not None]
        if len(layers) != len(config.chain_ids):
            raise Internal("a layer of the image was removed meanwhile: try again")
        async with self._changing:
            before = self._catalogue.record(config.id) if config.id in self._catalogue else None
            record = before or ImageRecord(
                id=config.id, raw_config=config.raw, layers=config.chain_ids, comment=comment,
                size_bytes=sum(layer.size_bytes for layer in layers),
            )
            if tagged:
                record = msgspec.structs.replace(record, tagged_at=time.time_ns())
            await self._catalogue.add(record, layers, names)
        return self._catalogue.image(config.id)

    async def _delete_all(self, image_id: str) -> Deleted:
        """An unused image with all its names (prune)."""
        async with self._changing:
            if image_id not in self._catalogue or self._users(image_id):
                return []
            names = self._catalogue.names(image_id)
            image = self._catalogue.image(image_id)
            await self._catalogue.remove(image_id, names, ())
        for _name in names:
            self._event("untag", image_id, image)
        self._event("delete", image_id, image)
        done = [{"Untagged": name.familiar} for name in names]
        done.append({"Deleted": image_id})
        return done + [{"Deleted": layer.chain_id} for layer in await self._sweep(image.layers)]

    async def _sweep(self, chains: Iterable[str]) -> list[Layer]:
        gone = await self._layers.sweep(self._needed, chains)
        if gone:
            await self._catalogue.forget_layers(layer.chain_id for layer in gone)
        return gone

    def _needed(self) -> frozenset[str]:
        return self._catalogue.layers_in_use() | self._roots.layers_in_use()

    def _users(self, image_id: str) -> list[User]:
        if self.users is None:
            return []
        return [User(container_id, running) for container_id, running in self.users.users_of(image_id)]

    def _named(self, ref: str, image_id: str) -> Reference | None:
        """The reference that was given; None for an id or a prefix of one."""
        if is_image_id(ref) or ref.startswith("sha256:"):
            return None
        parsed = parse_reference(ref).with_default_tag()
        if parsed.digest:
            parsed = parsed.with_digest(parsed.digest)
        return parsed if self._catalogue.named(parsed.full) == image_id else None

    def _of_platform(self, ref: str, wanted: Platform | None) -> Image:
        image = self.get(ref)
        if wanted is not None and not matches(_platform_of(image), wanted):
            raise NotFound(
                "image", ref,
                f"image with reference {ref} was found but does not provide the specified platform ({wanted})",
            )
        return image

    def _to_save(self, refs: Sequence[str]) -> list[Saved]:
        names: dict[str, list[Reference]] = {}
        for ref in refs:
            for image_id, name in self._meant(ref):
                known = names.setdefault(image_id, [])
                if name is not None and name not in known:
                    known.append(name)
        chosen = []
        for image_id, tags in names.items():
            record = self._catalogue.record(image_id)
            layers = tuple(layer for chain in record.layers if (layer := self._layers.get(chain)) is not None)
            chosen.append(Saved(
                self._catalogue.configuration(image_id), layers,
                tuple(self._layers.path(layer.chain_id) for layer in layers), tuple(tags),
            ))
        return chosen

    def _meant(self, ref: str) -> list[tuple[str, Reference | None]]:
        """docker save's arguments: an id alone, a name with its tag, or a repository with all its tags."""
        if not is_image_id(ref) and not ref.startswith("sha256:"):
            parsed = parse_reference(ref)
            if not parsed.version:
                tagged: list[tuple[str, Reference | None]] = [
                    (image.id, name) for image in self.all() for name in self._catalogue.names(image.id)
                    if name.tag and name.name == parsed.name
                ]
                if tagged:
                    return tagged
        image_id = self._catalogue.find(ref)
        named = self._named(ref, image_id)
        return [(image_id, named if named is not None and named.tag else None)]

    def _shared_sizes(self) -> dict[str, int]:
        return encode.shared_sizes(self.all(), {layer.chain_id: layer for layer in self._layers.all()})

    def _event(self, action: str, subject: str, image: Image) -> None:
        if self.on_event is not None:
            name = subject if action in ("pull", "tag") else next(iter(image.repo_tags), image.id)
            self.on_event(action, subject, {**image.config.labels, "name": name})


def _platform_of(image: Image) -> Platform:
    return Platform(image.architecture, image.os, image.variant)


def _shown_repository(ref: Reference) -> str:
    """dockerd shows Docker Hub's repositories as they are on Docker Hub: "library/busybox"."""
    return ref.path if ref.domain == "docker.io" else ref.familiar_name

