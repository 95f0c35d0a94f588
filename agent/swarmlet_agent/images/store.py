"""The node's images: the one object the engine, the task worker and the API's routes talk to.

Everything is derived from the journal (what images and names there are) and from folders that are whole by
construction, so starting is recovering.
"""

from __future__ import annotations

import asyncio
import platform as uname
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.log import get_logger
from swarmlet_agent.decide.remap import MappedIds
from swarmlet_agent.images import encode, listing
from swarmlet_agent.images.blobs import BlobBook
from swarmlet_agent.images.catalogue import Catalogue
from swarmlet_agent.images.committing import Commit, Spooled, commit_image, spooled_layer
from swarmlet_agent.images.disposal import Deleted, Disposal
from swarmlet_agent.images.endpoints import check_registries
from swarmlet_agent.images.intake import Intake
from swarmlet_agent.images.kept import KeptBlobs
from swarmlet_agent.images.layers import LayerStore
from swarmlet_agent.images.login import login
from swarmlet_agent.images.outlet import Outlet
from swarmlet_agent.images.partial import PartialBlobs
from swarmlet_agent.images.platforms import Platform, check_platform, host_platform, parse_platform
from swarmlet_agent.images.progress import Hub, Listener, SingleFlight
from swarmlet_agent.images.pull import Puller
from swarmlet_agent.images.push import Pusher
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.registry import Download, Registries
from swarmlet_agent.images.removal import User
from swarmlet_agent.images.rootfs import RootStore
from swarmlet_agent.images.search import search
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.types import Image, RegistryAuth
from swarmlet_agent.images.unpack import Limits
from swarmlet_agent.images.workers import UnpackPool
from swarmlet_agent.images.workshop import Workshop
from swarmlet_agent.journal import Journal

log = get_logger(__name__)


class ImageUsers(Protocol):
    """Who knows which containers were made from an image (the engine)."""

    def users_of(self, image_id: str) -> Sequence[tuple[str, bool]]:
        """(container id, running) of each."""
        ...


#: action ("pull", "push", "tag", "untag", "delete", "load", "save", "import", "create"), image id (a pull's or push's
#: reference), attributes.
OnEvent = Callable[[str, str, dict[str, str]], None]


class ImageStore:
    """See `engine/ports.py` (Images) for what the engine uses; the rest is for the API and the task worker.

    users and on_event may be set after construction: those who provide them need the store first.
    """

    def __init__(
        self, data_dir: Path, journal: Journal, *, insecure_registries: Sequence[str] = ("127.0.0.0/8",),
        registry_mirrors: Sequence[str] = (), registry_certificates: Path = Path("/etc/docker/certs.d"),
        keep_compressed_layers: bool = True, users: ImageUsers | None = None, on_event: OnEvent | None = None,
        limits: Limits | None = None, mount_label: str = "",
    ) -> None:
        """mount_label: of SELinux, for roots that builds look into."""
        check_registries(insecure_registries, registry_mirrors)
        self.users = users
        self.on_event = on_event
        self._host = host_platform(uname.machine())
        self._registries = Registries(insecure_registries, registry_mirrors, registry_certificates)
        self._layers = LayerStore(data_dir / "images", UnpackPool(limits))
        self._roots = RootStore(data_dir / "containers-rootfs", self._layers.diff, mount_label)
        self._catalogue = Catalogue(journal)
        self._kept = KeptBlobs(data_dir / "images" / "blobs", journal, wanted=keep_compressed_layers)
        self._shelf = Shelf(self._catalogue, self._layers, self._roots, self._kept)
        #: For the builder.
        self.workshop = Workshop(self._shelf, self._host, self._event)
        self._partials = PartialBlobs(data_dir / "images" / "partial")
        self._puller = Puller(self._registries, self._layers, self._catalogue, self._partials, self._kept)
        self._book = BlobBook(journal)
        self._pusher = Pusher(self._registries, self._book, self._kept, self._layers.tmp)
        self._intake = Intake(self._shelf, self._puller, self._book, self._event)
        self._outlet = Outlet(self._shelf, self._pusher, self._event)
        self._disposal = Disposal(self._shelf, self._users, self._event)
        self._flights: SingleFlight[Image] = SingleFlight()
        self._pushes: SingleFlight[None] = SingleFlight()

    async def start(self) -> None:
        """Recover what the journal and the disk have."""
        await self._shelf.recover()
        await self._partials.recover(time.time())
        await self.workshop.recover()
        await self._book.load({layer.diff_id for layer in self._layers.all()})

    async def close(self) -> None:
        """Pulls and pushes are cancelled; mounts stay (containers live on)."""
        await self._flights.close()
        await self._pushes.close()
        self._pusher.close()
        await self._registries.close()

    # looking

    @property
    def revision(self) -> int:
        """Grows with every change of images or their names."""
        return self._catalogue.revision

    def get(self, ref: str) -> Image:
        """By name[:tag], name@digest, id or id prefix. NotFound ("No such image: …")."""
        if ref in self.workshop.lent and ref not in self._catalogue:
            return self.workshop.lent[ref]
        return self._catalogue.image(self._catalogue.find(ref))

    def all(self) -> list[Image]:
        return self._catalogue.images()

    def disk_usage(self, version: tuple[int, int]) -> tuple[int, list[dict[str, Any]]]:
        """(bytes of all that images take, each thing once; ImageSummary with SharedSize), kept blobs counted in.

        So what `docker system df` calls reclaimable is what removing the images would free.
        """
        kept = Counter[str]()
        for blob in self._kept.all():
            kept[blob.diff_id] += blob.size
        sizes = {each.chain_id: each.size_bytes + kept[each.diff_id] for each in self._layers.all()}
        shared = encode.shared_sizes(self.all(), sizes)
        listed = [
            entry | {"Size": sum(sizes.get(chain, 0) for chain in self.get(entry["Id"]).layers),
                     "SharedSize": shared[entry["Id"]]}
            for entry in self.list_images(Filters(), version)
        ]
        return sum(each.size_bytes for each in self._layers.all()) + kept.total(), listed

    def list_images(
        self, filters: Filters, version: tuple[int, int], *, everything: bool = False, shared_size: bool = False,
        manifests: bool = False,
    ) -> list[dict[str, Any]]:
        """GET /images/json. everything: also images without a name that others were made on."""
        shown = [image for image in self.all() if everything or not self._is_between(image)]
        if filters.flag("dangling"):
            shown = [image for image in shown if not self._catalogue.has_children(image.id)]
        chosen = listing.select(shown, filters, self.get, time.time_ns())
        patterns = filters.get("reference")
        sizes = self._shared_sizes() if shared_size else {}
        return [
            encode.summary(
                image, version, shared_size=sizes.get(image.id, -1),
                names=listing.matching_names(image, patterns) if patterns else None,
            ) | (self._manifests(image) if manifests else {})
            for image in chosen
        ]

    def inspect(
        self, ref: str, version: tuple[int, int], wanted: str = "", *, manifests: bool = False
    ) -> dict[str, Any]:
        """GET /images/{name}/json."""
        image = self._of_platform(ref, parse_platform(wanted))
        record = self._catalogue.record(image.id)
        return encode.inspect(
            image, record, self._catalogue.configuration(image.id),
            [self._layers.diff(chain) for chain in image.layers],
            self._catalogue.parent(image.id), version,
        ) | (self._manifests(image) if manifests else {})

    def history(self, ref: str, wanted: str = "") -> list[dict[str, Any]]:
        image = self._of_platform(ref, parse_platform(wanted))
        return encode.history(image, self._catalogue.configuration(image.id), self._shelf.layers_of(image.id))

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
            (parsed.full, wanted, auth), lambda hub: self._intake.pull(parsed, auth, wanted, hub), progress
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
        work = asyncio.create_task(self._intake.load(chunks, wanted, hub, quiet=quiet), name="load images")
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
        changes: Sequence[str] = (), platform: str = "", source: str = "-", created: int | None = None,
    ) -> Image:
        """docker import: one layer from a plain root file system tar. created: ns, None for now."""
        return await self._intake.import_tar(
            chunks, repo=repo, tag=tag, message=message, changes=changes, wanted=parse_platform(platform),
            source=source, created=time.time_ns() if created is None else created,
        )

    def open_url(self, url: str) -> AbstractAsyncContextManager[Download]:
        """What is behind a URL. InvalidArgument, RegistryUnreachable."""
        return self._registries.open_url(url)

    async def fetch_url(self, url: str) -> AsyncIterator[bytes]:
        """The bytes behind a URL (docker import URL). InvalidArgument, RegistryUnreachable."""
        async with self.open_url(url) as answer:
            async for piece in answer.pieces:
                yield piece

    # going out

    def save(self, refs: Sequence[str], platform: str = "") -> AsyncGenerator[bytes, None]:
        """docker save: an archive of these images in pieces. NotFound before the first piece."""
        return self._outlet.save(refs, parse_platform(platform))

    async def push(
        self, ref: str, *, auth: RegistryAuth | None = None, platform: str = "", progress: Listener | None = None
    ) -> None:
        """docker push: a tag, or all tags of a repository if ref has none. Equal pushes at one time are one.

        NotFound, RegistryDenied, RegistryRefused, RegistryUnreachable, InvalidArgument, Internal.
        """
        parsed = parse_reference(ref)
        wanted = parse_platform(platform)
        await self._pushes.run(
            (parsed.full, wanted, auth), lambda hub: self._outlet.push(parsed, auth, wanted, hub), progress
        )

    async def login(self, auth: RegistryAuth) -> str:
        """docker login: a refresh token if the registry gives one, else "". Unauthorized, RegistryUnreachable."""
        return await login(self._registries, auth)

    async def search(
        self, term: str, *, limit: int = 0, filters: Filters, auth: RegistryAuth | None = None
    ) -> list[dict[str, Any]]:
        """docker search: on Docker Hub, or in the catalogue of the registry that the term begins with."""
        return await search(self._registries, term, limit=limit, filters=filters, auth=auth)

    # names

    async def tag(self, ref: str, repo: str, tag: str = "") -> None:
        """docker tag. NotFound, InvalidArgument."""
        name = parse_reference(repo)
        if name.digest:
            raise InvalidArgument("refusing to create a tag with a digest reference")
        if name.familiar_name == "sha256":
            raise InvalidArgument("refusing to create an ambiguous tag using digest algorithm as name")
        name = name.with_tag(tag) if tag else name.with_default_tag()
        image = await self._shelf.tag(ref, name)
        self._event("tag", image.id, name.familiar, image)

    async def remove(
        self, ref: str, *, force: bool = False, prune_parents: bool = True, platform: str = ""
    ) -> Deleted:
        """docker rmi: [{"Untagged": …}, {"Deleted": …}]. NotFound; Conflict in dockerd's words.

        prune_parents: the images that it was made on go too, if nothing else needs them.
        """
        self._of_platform(ref, parse_platform(platform))
        return await self._disposal.remove(ref, force=force, prune_parents=prune_parents)

    async def prune(self, filters: Filters) -> tuple[Deleted, int]:
        """docker image prune: what was deleted, and the bytes that freed."""
        deleted, freed = await self._disposal.prune(filters, time.time_ns())
        freed += await self._partials.prune()
        if self.on_event is not None:
            self.on_event("prune", "", {"reclaimed": str(freed)})
        return deleted, freed

    # containers' roots (engine/ports.py)

    async def ensure_rootfs(
        self, container_id: str, image_id: str, ids: MappedIds | None = None, label: str = ""
    ) -> Path:
        """The container's writable root: overlay of the image's layers and its own upper folder, mounted."""
        layers = () if self._roots.knows(container_id) else self.get(image_id).layers
        return await self._roots.ensure(container_id, layers, ids, label)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount; the container's own changes stay. Nothing mounted is fine."""
        await self._roots.unmount(container_id)

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete the container's own changes. Nothing there is fine."""
        layers = await self._roots.remove(container_id)
        if not self._catalogue.layers_in_use().issuperset(layers):
            await self._shelf.sweep(tuple(reversed(layers)))

    async def rootfs_size(self, container_id: str) -> int:
        """Bytes in the container's own writable layer."""
        return await self._roots.size(container_id)

    def root_folders(self, container_id: str, image_id: str = "") -> tuple[Path, tuple[Path, ...]]:
        """The folder of a container's own changes, and those of the layers below, highest first. NotFound.

        With an image, also of one that was never mounted: where they are going to be.
        """
        if image_id and not self._roots.knows(container_id):
            chains = tuple(reversed(self.get(image_id).layers))
        else:
            chains = self._roots.lower(container_id)
        return self._roots.upper(container_id), tuple(self._layers.diff(chain) for chain in chains)

    def size_below(self, container_id: str, image_id: str) -> int:
        """Bytes in the layers that a container stands on, also when its image was removed by force. NotFound."""
        known = self._roots.knows(container_id)
        chains = self._roots.lower(container_id) if known else self.get(image_id).layers
        return sum(layer.size_bytes for chain in chains if (layer := self._layers.get(chain)) is not None)

    def spool_layer(self, pieces: Iterator[bytes]) -> AbstractAsyncContextManager[Spooled]:
        """The tar of a new layer, for `commit`: on disk while the block runs."""
        return spooled_layer(self._layers, pieces)

    async def commit(self, image_id: str, layer: Spooled, commit: Commit, name: Reference | None) -> Image:
        """An image of a container's image (which may be gone), the layer on top, and a new configuration."""
        chains = tuple(reversed(self._roots.lower(commit.container_id)))
        image = await commit_image(self._shelf, image_id, chains, layer, commit, name, self._host)
        self._event("create", image.id, image.id, image)
        if name is not None:
            self._event("tag", image.id, name.familiar, image)
        return image

    # inside

    def _is_between(self, image: Image) -> bool:
        return not image.repo_tags and not image.repo_digests and self._catalogue.has_children(image.id)

    def _manifests(self, image: Image) -> dict[str, Any]:
        users = [user.container_id for user in self._users(image.id)]
        shown = encode.manifests(
            image, self._catalogue.record(image.id), self._catalogue.configuration(image.id),
            self._shelf.layers_of(image.id), users,
        )
        return {"Manifests": shown}

    def _users(self, image_id: str) -> list[User]:
        if self.users is None:
            return []
        return [User(container_id, running) for container_id, running in self.users.users_of(image_id)]

    def _of_platform(self, ref: str, wanted: Platform | None) -> Image:
        image = self.get(ref)
        check_platform(ref, image.platform, wanted)
        return image

    def _shared_sizes(self) -> dict[str, int]:
        return encode.shared_sizes(self.all(), {layer.chain_id: layer.size_bytes for layer in self._layers.all()})

    def _event(self, action: str, subject: str, name: str, image: Image) -> None:
        if self.on_event is not None:
            self.on_event(action, subject, {**image.config.labels, "name": name})
