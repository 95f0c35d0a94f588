"""What images there are and what they are called: in memory, and durable in the journal's table "images".

Keys: "image/<id>" an ImageRecord, "layer/<chain id>" a Layer, "name/<full reference>" an image id. A change is one
transaction; memory follows once it is on disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from swarmlet.errors import NotFound
from swarmlet.model.base import Record
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import Configuration, parse_config
from swarmlet_agent.images.reference import Reference, is_id_prefix, is_image_id, parse_reference, parse_stored
from swarmlet_agent.images.types import Image
from swarmlet_agent.journal import Journal, Write

_TABLE = "images"


class ImageRecord(Record, frozen=True, kw_only=True):
    """raw_config: the configuration as it came, whose digest is the id; tagged_at in ns, 0 = never here.

    manifest: as it came from a registry, with its media type; b"" for what never did. parent: id of the image that a
    commit or a build was made on, "" for any other.
    """

    id: str
    raw_config: bytes
    layers: tuple[str, ...] = ()
    size_bytes: int = 0
    comment: str = ""
    tagged_at: int = 0
    manifest: bytes = b""
    manifest_type: str = ""
    parent: str = ""


class Catalogue:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._records: dict[str, ImageRecord] = {}
        self._configs: dict[str, Configuration] = {}
        self._names: dict[str, str] = {}
        self._by_image: dict[str, set[str]] = defaultdict(set)
        self._images: dict[str, Image] = {}
        self._children: Counter[str] = Counter()
        #: Grows with every change of images or their names.
        self.revision = 0

    def load(self) -> list[Layer]:
        """From the journal, at start. Returns the layers it knows of."""
        layers = []
        for key, value in self._journal.items(_TABLE):
            kind, _, name = key.partition("/")
            if kind == "image":
                self._remember(msgspec.msgpack.decode(value, type=ImageRecord))
            elif kind == "layer":
                layers.append(msgspec.msgpack.decode(value, type=Layer))
            else:
                self._names[name] = value.decode()
                self._by_image[value.decode()].add(name)
        return layers

    # reading

    def find(self, ref: str) -> str:
        """The image id behind a name[:tag], name@digest, id or unambiguous id prefix. NotFound; InvalidArgument."""
        if is_image_id(ref):
            image_id = ref if ref.startswith("sha256:") else f"sha256:{ref}"
            if image_id in self._records:
                return image_id
            raise _no_such(ref)
        if not ref.startswith("sha256:"):
            parsed = parse_reference(ref).with_default_tag()
            # name:tag@digest means the digest; the tag is decoration.
            key = parsed.with_digest(parsed.digest).full if parsed.digest else parsed.full
            if (found := self._names.get(key)) is not None:
                return found
            missing = parsed.familiar
        else:
            missing = ref
        if is_id_prefix(ref):
            prefix = "sha256:" + ref.removeprefix("sha256:")
            fitting = [image_id for image_id in self._records if image_id.startswith(prefix)]
            if len(fitting) == 1:
                return fitting[0]
        raise _no_such(missing)

    def name_meant(self, ref: str, image_id: str) -> Reference | None:
        """The name of the image that `find` found by this; None if that was an id or a prefix of one."""
        if is_image_id(ref) or ref.startswith("sha256:"):
            return None
        parsed = parse_reference(ref).with_default_tag()
        if parsed.digest:
            parsed = parsed.with_digest(parsed.digest)
        return parsed if self.named(parsed.full) == image_id else None

    def named(self, full: str) -> str | None:
        """The image id behind a full reference, if there is one."""
        return self._names.get(full)

    def names(self, image_id: str) -> list[Reference]:
        """All references to an image, sorted."""
        return [parse_stored(name) for name in sorted(self._by_image.get(image_id, ()))]

    def image(self, image_id: str) -> Image:
        image = self._images.get(image_id)
        if image is None:
            image = self._images[image_id] = self._build(image_id)
        return image

    def images(self) -> list[Image]:
        return [self.image(image_id) for image_id in self._records]

    def has_children(self, image_id: str) -> bool:
        """Whether other images that are here were made on this one."""
        return bool(self._children[image_id])

    def parent(self, image_id: str) -> str:
        """The id of the image that this one was made on, if both are here; else ""."""
        record = self._records.get(image_id)
        return record.parent if record is not None and record.parent in self._records else ""

    def children_first(self) -> list[Image]:
        """All images, each before the one that it was made on."""

        def depth(image: Image) -> int:
            steps, at = 0, image.id
            while at := self.parent(at):
                steps += 1
            return steps

        return sorted(self.images(), key=depth, reverse=True)

    def record(self, image_id: str) -> ImageRecord:
        return self._records[image_id]

    def configuration(self, image_id: str) -> Configuration:
        return self._configs[image_id]

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._records

    def layers_in_use(self) -> frozenset[str]:
        return frozenset(chain for record in self._records.values() for chain in record.layers)

    # changing

    async def add(
        self, record: ImageRecord, layers: Iterable[Layer], names: Sequence[Reference], along: Iterable[Write] = ()
    ) -> None:
        """An image with its layers and names; names it takes from others move. Repeating it is fine.

        along: what the same transaction writes beside it.
        """
        await self._journal.write(
            *along,
            *(Write(_TABLE, f"layer/{layer.chain_id}", msgspec.msgpack.encode(layer)) for layer in layers),
            Write(_TABLE, f"image/{record.id}", msgspec.msgpack.encode(record)),
            *(Write(_TABLE, f"name/{name.full}", record.id.encode()) for name in names),
        )
        self._remember(record)
        for name in names:
            self._point(name.full, record.id)

    async def remove(self, image_id: str, names: Sequence[Reference], layers: Iterable[str]) -> None:
        """Forget an image, the names it still has, and records of layers that go with it."""
        await self._journal.write(
            *(Write(_TABLE, f"name/{name.full}", None) for name in names),
            Write(_TABLE, f"image/{image_id}", None),
            *(Write(_TABLE, f"layer/{chain}", None) for chain in layers),
        )
        for name in names:
            self._unpoint(name.full)
        self.revision += 1
        self._forget_parent(image_id)
        self._records.pop(image_id, None)
        self._configs.pop(image_id, None)
        self._images.pop(image_id, None)
        self._by_image.pop(image_id, None)

    async def untag(self, names: Sequence[Reference]) -> None:
        await self._journal.write(*(Write(_TABLE, f"name/{name.full}", None) for name in names))
        for name in names:
            self._unpoint(name.full)

    async def forget_layers(self, chains: Iterable[str]) -> None:
        await self._journal.write(*(Write(_TABLE, f"layer/{chain}", None) for chain in chains))

    def _remember(self, record: ImageRecord) -> None:
        self.revision += 1
        self._forget_parent(record.id)
        if record.parent:
            self._children[record.parent] += 1
        self._records[record.id] = record
        self._configs[record.id] = parse_config(record.raw_config)
        self._images.pop(record.id, None)

    def _forget_parent(self, image_id: str) -> None:
        before = self._records.get(image_id)
        if before is not None and before.parent:
            self._children[before.parent] -= 1
            self._children += Counter()

    def _point(self, name: str, image_id: str) -> None:
        self.revision += 1
        self._unpoint(name)
        self._names[name] = image_id
        self._by_image[image_id].add(name)
        self._images.pop(image_id, None)

    def _unpoint(self, name: str) -> None:
        self.revision += 1
        before = self._names.pop(name, None)
        if before is not None:
            self._by_image[before].discard(name)
            self._images.pop(before, None)

    def _build(self, image_id: str) -> Image:
        record, config = self._records[image_id], self._configs[image_id]
        names = self.names(image_id)
        return Image(
            id=image_id, config=config.config, layers=record.layers, architecture=config.platform.architecture,
            os=config.platform.os, created=config.created, size_bytes=record.size_bytes,
            repo_tags=tuple(sorted(name.familiar for name in names if name.tag)),
            repo_digests=tuple(sorted(name.familiar for name in names if name.digest)),
            variant=config.platform.variant, author=config.author, comment=record.comment,
            docker_version=config.docker_version,
        )


def _no_such(shown: str) -> NotFound:
    return NotFound("image", shown)
