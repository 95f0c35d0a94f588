"""Reading image archives: `docker save` tars (manifest.json) and OCI layouts (index.json)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.layers import Blob
from swarmlet_agent.images.manifests import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Configuration,
    Descriptor,
    Index,
    choose,
    digest_of,
    parse_config,
    parse_manifest,
)
from swarmlet_agent.images.platforms import Platform, matches
from swarmlet_agent.images.progress import Hub, Throttle
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.spool import Archive

_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MAX_NESTING = 4


@dataclass(frozen=True, slots=True)
class Found:
    """An image of an archive: its configuration, its layers' places (lowest first), the names it came with."""

    configuration: Configuration
    blobs: tuple[Blob, ...]
    names: tuple[Reference, ...]


class _Entry(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] = ()


async def find_images(archive: Archive, host: Platform, wanted: Platform | None) -> list[Found]:
    """All images of the archive; for a list of platforms the host's, or the one wanted. InvalidArgument otherwise."""
    if "manifest.json" in archive:
        found = await _docker_images(archive)
    elif "index.json" in archive:
        raw = await archive.read("index.json", MAX_MANIFEST_BYTES)
        found = await _oci_images(archive, raw, wanted or host, ())
    else:
        raise InvalidArgument("invalid archive: it has neither manifest.json nor index.json, so it holds no images")
    if wanted is not None:
        found = [image for image in found if matches(image.configuration.platform, wanted)]
    if not found:
        raise InvalidArgument("invalid archive: it holds no image" + (f" for {wanted}" if wanted else ""))
    for image in found:
        if image.configuration.platform.os != "linux":
            raise InvalidArgument(
                f'image operating system "{image.configuration.platform.os}" cannot be used on this platform'
            )
        if len(image.blobs) != len(image.configuration.diff_ids):
            raise InvalidArgument(
                f"invalid archive: invalid manifest, layers length mismatch: expected {len(image.blobs)}, "
                f"got {len(image.configuration.diff_ids)}"
            )
    return found


async def _docker_images(archive: Archive) -> list[Found]:
    raw = await archive.read("manifest.json", MAX_MANIFEST_BYTES)
    try:
        entries = msgspec.json.decode(raw, type=list[_Entry])
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InvalidArgument(f"invalid archive: manifest.json: {err}") from err
    found = []
    for entry in entries:
        configuration = parse_config(await archive.read(entry.config, MAX_CONFIG_BYTES))
        names = tuple(_name(tag) for tag in entry.repo_tags or ())
        found.append(Found(configuration, tuple(archive.blob(layer) for layer in entry.layers), names))
    return found


def _name(text: str) -> Reference:
    ref = parse_reference(text)
    if not ref.tag or ref.digest:
        raise InvalidArgument(f"invalid tag {text!r}")
    return ref


async def _oci_images(
    archive: Archive, raw: bytes, wanted: Platform, names: Sequence[Reference], depth: int = 0
) -> list[Found]:
    """Images below an index of the layout; nested indexes are lists of platforms, and so may be entries of one name."""
    index = parse_manifest(raw)
    if not isinstance(index, Index) or depth > _MAX_NESTING:
        raise InvalidArgument("invalid archive: index.json is no index")
    found: list[Found] = []
    for entry in _one_of_each(index.manifests, wanted) if depth == 0 else (_best(index.manifests, wanted),):
        content = await archive.read(_blob_path(entry.digest), MAX_MANIFEST_BYTES)
        if digest_of(content) != entry.digest:
            raise InvalidArgument(f"invalid archive: manifest verification failed for digest {entry.digest}")
        inner = parse_manifest(content, entry.media_type)
        own = (*names, *_annotated(entry))
        if isinstance(inner, Index):
            found += await _oci_images(archive, content, wanted, own, depth + 1)
            continue
        config = await archive.read(_blob_path(inner.config.digest), MAX_CONFIG_BYTES)
        if digest_of(config) != inner.config.digest:
            raise InvalidArgument(f"invalid archive: image config verification failed for digest {inner.config.digest}")
        blobs = tuple(archive.blob(_blob_path(layer.digest)) for layer in inner.layers)
        found.append(Found(parse_config(config), blobs, own))
    return found


def _one_of_each(entries: Sequence[Descriptor], wanted: Platform) -> Iterator[Descriptor]:
    """Of the entries of a layout that have the same name, or none, and say a platform: those for the best one."""
    named: dict[tuple[Reference, ...], list[Descriptor]] = {}
    for entry in entries:
        if entry.platform is None:
            yield entry
        else:
            named.setdefault(tuple(_annotated(entry)), []).append(entry)
    for several in named.values():
        platform = several[0].platform if len(several) == 1 else _best(several, wanted).platform
        yield from (entry for entry in several if entry.platform == platform)


def _best(entries: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    return choose(entries, wanted, "the archive")


def _annotated(entry: Descriptor) -> list[Reference]:
    """A name in the annotations; a bare tag (as the OCI layout has it) names no repository."""
    for key in _NAME_ANNOTATIONS:
        text = entry.annotations.get(key, "")
        if ":" in text or "/" in text:
            ref = parse_reference(text)
            return [ref] if ref.tag and not ref.digest else []
    return []


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


class FromArchive:
    """Installation (see layers.py) of an archive's layers, with progress as `docker load` shows it."""

    def __init__(self, found: Found, hub: Hub) -> None:
        self._found, self._hub = found, hub
        self._throttles = [Throttle() for _ in found.blobs]

    @asynccontextmanager
    async def blob(self, number: int) -> AsyncIterator[Blob]:
        yield self._found.blobs[number]

    async def exists(self, number: int) -> None:
        return None

    async def extracting(self, number: int, consumed: int, total: int) -> None:
        if self._throttles[number].passes(asyncio.get_running_loop().time(), last=consumed >= total):
            self._hub.emit({
                "status": "Loading layer", "progressDetail": {"current": consumed, "total": total},
                "id": self._found.configuration.diff_ids[number].removeprefix("sha256:")[:12],
            })

    async def complete(self, number: int) -> None:
        return None
