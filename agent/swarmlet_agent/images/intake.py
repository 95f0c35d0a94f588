"""How images come in: pull, load, import. Each brings layers and a configuration to the shelf, or changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.log import get_logger
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import rfc3339
from swarmlet_agent.builder.changes import apply_changes
from swarmlet_agent.images import encode
from swarmlet_agent.images.blobs import BlobBook
from swarmlet_agent.images.layers import Blob, Layer
from swarmlet_agent.images.load import Found, FromArchive, find_images
from swarmlet_agent.images.machine import this_machine
from swarmlet_agent.images.manifests import parse_config
from swarmlet_agent.images.platforms import Platform, check_system, matches, mismatch, without_level
from swarmlet_agent.images.progress import Hub
from swarmlet_agent.images.pull import Puller
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.refusals import RegistryUnreachable
from swarmlet_agent.images.registry import Fetched, Repository
from swarmlet_agent.images.shelf import Shelf
from swarmlet_agent.images.spool import open_archive, spooled
from swarmlet_agent.images.types import Image, RegistryAuth

log = get_logger(__name__)

#: action, whom it is about (an id; a pull is about its reference), the name in its attributes, the image.
Event = Callable[[str, str, str, Image], None]


class Intake:
    def __init__(self, shelf: Shelf, puller: Puller, book: BlobBook, event: Event) -> None:
        self._shelf, self._puller, self._book, self._event = shelf, puller, book, event
        self._host = this_machine()

    async def pull(self, ref: Reference, auth: RegistryAuth | None, wanted: Platform | None, hub: Hub) -> Image:
        """One reference with a tag or digest; what happens is told to the hub in dockerd's words."""
        known = self._known(ref, wanted or self._host)
        if known is not None and ref.digest:
            return self._up_to_date(ref, ref.digest, known, hub)  # content with this digest cannot have changed
        digest = self._digest_of(ref, known) if known is not None else ""
        repository, top = await self._puller.resolve(ref, auth, digest)
        if top is None:
            assert known is not None
            return self._up_to_date(ref, digest, known, hub)
        try:
            return await self._bring(repository, top, ref, wanted, hub)
        except (RegistryUnreachable, NotFound) as err:
            if not repository.is_mirror:
                raise
            log.warning("mirror is passed over: it has only some of the image", image=ref.familiar, reason=str(err))
        repository, top = await self._puller.resolve(ref, auth, past_mirrors=True)
        assert top is not None
        return await self._bring(repository, top, ref, wanted, hub)

    async def _bring(
        self, repository: Repository, top: Fetched, ref: Reference, wanted: Platform | None, hub: Hub
    ) -> Image:
        """The image behind a manifest or list of a repository."""
        catalogue = self._shelf.catalogue
        manifest = await self._puller.manifest_for(repository, top, ref, wanted or self._host)
        config = await self._puller.configuration(repository, manifest.value.config)
        if config.platform.os != "linux":
            raise InvalidArgument(
                f'image operating system "{config.platform.os}" cannot be used on this platform: '
                "operating system is not supported"
            )
        hub.emit({"status": f"Pulling from {ref.path}", "id": ref.version})
        names = [ref.with_digest(top.digest)] if ref.digest else [ref, ref.with_digest(top.digest)]
        moved = catalogue.named(names[0].full) != config.id
        digests = [layer.digest for layer in manifest.value.layers]
        async with self._shelf.keeping(config.chain_ids), self._shelf.kept.placing(digests):
            kept = await self._puller.install(repository, manifest.value, config, hub)
            image = await self._shelf.add(
                config, names, manifest=(manifest.raw, manifest.value.media_type), kept=kept
            )
        await self._book.note(zip(config.diff_ids, manifest.value.layers, strict=True), ref.name)
        hub.emit({"status": f"Digest: {top.digest}"})
        what = "Downloaded newer image for" if moved else "Image is up to date for"
        hub.emit({"status": f"Status: {what} {ref.familiar}"})
        if wanted is not None and not matches(image.platform, wanted):
            # An image alone, without a list, may be for another platform than was asked for: dockerd only tells.
            hub.emit({"status": f"WARNING: {mismatch(ref.familiar, image.platform, wanted)}"})
        self._event("pull", ref.familiar, ref.familiar_name, image)
        return image

    async def load(
        self, chunks: AsyncIterator[bytes], wanted: Platform | None, hub: Hub, *, quiet: bool
    ) -> list[Image]:
        """Every image of an archive; those before a broken one stay."""
        images = []
        try:
            async with spooled(chunks, self._shelf.layers.tmp) as path, open_archive(path) as archive:
                for found in await find_images(archive, self._host, wanted):
                    images.append(await self._load_one(found, hub, quiet=quiet))
        finally:
            hub.finish()
        return images

    async def import_tar(
        self, chunks: AsyncIterator[bytes], *, repo: str, tag: str, message: str, changes: Sequence[str],
        wanted: Platform | None, source: str, created: int,
    ) -> Image:
        """One layer from a root file system's tar, under a configuration made from `changes`. created in ns."""
        name = None
        if repo:
            name = parse_reference(repo)
            if name.digest:
                raise InvalidArgument("cannot import digest reference")
            name = name.with_tag(tag) if tag else name.with_default_tag()
        wanted = wanted or without_level(self._host)
        check_system(wanted)
        config = apply_changes(ImageConfig(), changes)
        layers = self._shelf.layers
        comment = message or f"Imported from {source}"
        with ExitStack() as pins:

            def keep(layer: Layer) -> None:
                pins.enter_context(layers.pinned((layer.chain_id,)))

            async with spooled(chunks, layers.tmp) as path:
                layer = await layers.add_single(Blob(path, 0, path.stat().st_size), "of the imported archive", keep)
            new = parse_config(encode.new_config(
                architecture=wanted.architecture, config=config, created=rfc3339(created),
                diff_id=layer.diff_id, comment=comment, variant=wanted.variant,
            ))
            async with self._shelf.keeping(new.chain_ids):
                pins.close()  # the image's layers are pinned now
                image = await self._shelf.add(new, [name] if name else [], comment=comment, tagged=bool(name))
        if name is not None:
            self._event("tag", image.id, name.familiar, image)
        self._event("import", image.id, image.id, image)
        return image

    def _known(self, ref: Reference, wanted: Platform) -> Image | None:
        """What the reference means here now, if it is for the right platform."""
        catalogue = self._shelf.catalogue
        image_id = catalogue.named(ref.with_digest(ref.digest).full if ref.digest else ref.full)
        if image_id is None:
            return None
        image = catalogue.image(image_id)
        return image if matches(image.platform, wanted) else None

    def _up_to_date(self, ref: Reference, digest: str, image: Image, hub: Hub) -> Image:
        hub.emit({"status": f"Pulling from {ref.path}", "id": ref.version})
        hub.emit({"status": f"Digest: {digest}"})
        hub.emit({"status": f"Status: Image is up to date for {ref.familiar}"})
        self._event("pull", ref.familiar, ref.familiar_name, image)
        return image

    def _digest_of(self, ref: Reference, image: Image) -> str:
        """The digest under which the image was pulled from this repository, if there is just one."""
        names = self._shelf.catalogue.names(image.id)
        digests = [name.digest for name in names if name.digest and name.name == ref.name]
        return digests[0] if len(digests) == 1 else ""

    async def _load_one(self, found: Found, hub: Hub, *, quiet: bool) -> Image:
        config = found.configuration
        async with self._shelf.keeping(config.chain_ids):
            await self._shelf.layers.install(config.diff_ids, FromArchive(found, Hub() if quiet else hub))
            for name in found.names:
                before = self._shelf.catalogue.named(name.full)
                if before not in (None, config.id):
                    hub.emit({"stream": (
                        f"The image {name.familiar} already exists, "
                        f"renaming the old one with ID {before} to empty string\n"
                    )})
            image = await self._shelf.add(config, found.names, tagged=bool(found.names))
        for name in found.names:
            hub.emit({"stream": f"Loaded image: {name.familiar}\n"})
        if not found.names:
            hub.emit({"stream": f"Loaded image ID: {config.id}\n"})
        self._event("load", config.id, config.id, image)
        return image
