"""Registry manifests and image configurations, from bytes to checked values (OCI image-spec; Docker schema 2).

Pure. Everything here comes from a registry or an archive and is not trusted: digests are checked for their
form before anyone makes a file name of them, sizes are bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.base import without_nulls
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import parse_rfc3339
from swarmlet_agent.images.platforms import Platform, rank
from swarmlet_agent.images.reference import check_digest

T = TypeVar("T")

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
MANIFEST_TYPES = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX)
_INDEX_TYPES = (DOCKER_LIST, OCI_INDEX)
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
_CONFIG_TYPES = (DOCKER_CONFIG, OCI_CONFIG)

#: Docker's own limit on a manifest, and a generous one on a configuration.
MAX_MANIFEST_BYTES = 4 << 20
MAX_CONFIG_BYTES = 8 << 20
#: overlayfs and Docker agree on this many layers under a container's own.
MAX_LAYERS = 127


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a blob is. size in bytes, as the manifest says; the digest is checked to be sha256."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    platform: Platform | None = None
    annotations: dict[str, str] = {}
    urls: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    schema_version: int = 2
    media_type: str = ""
    config: Descriptor = Descriptor()
    layers: tuple[Descriptor, ...] = ()


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    schema_version: int = 2
    media_type: str = ""
    manifests: tuple[Descriptor, ...] = ()


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """An image configuration: what it says, and the bytes that say it (their digest is the image's id)."""

    id: str
    raw: bytes
    config: ImageConfig
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    platform: Platform
    created: int
    author: str
    docker_version: str

    @property
    def chain_ids(self) -> tuple[str, ...]:
        return chain_ids(self.diff_ids)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """OCI image-spec config.md, "Layer ChainID": names a layer together with all below it. Lowest first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def parse_manifest(raw: bytes, media_type: str = "") -> Manifest | Index:
    """A manifest or a list of them. InvalidArgument for anything else (schema 1, artifacts, broken JSON)."""
    document = _decode(raw, "manifest")
    if not isinstance(document, dict):
        raise InvalidArgument("invalid manifest: expected a JSON object")
    kind = document.get("mediaType") or media_type.partition(";")[0].strip()
    if str(kind).startswith(_SCHEMA1) or document.get("schemaVersion") == 1:
        raise InvalidArgument(
            "Docker Image manifest version 2, schema 1 is not supported: push the image anew as schema 2 or OCI"
        )
    if document.get("schemaVersion") != 2:
        raise InvalidArgument("invalid manifest: unknown schemaVersion")
    if kind in _INDEX_TYPES or (kind not in MANIFEST_TYPES and "manifests" in document):
        index = _convert(document, Index, "manifest list")
        for entry in index.manifests:
            _check(entry)
        return index
    manifest = _convert(document, Manifest, "manifest")
    if manifest.config.media_type and manifest.config.media_type not in _CONFIG_TYPES:
        raise InvalidArgument(f"unsupported media type {manifest.config.media_type}: this is not an image")
    for entry in (manifest.config, *manifest.layers):
        _check(entry)
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise InvalidArgument("invalid manifest: the image configuration is too large")
    for layer in manifest.layers:
        if ".tar" not in layer.media_type:
            raise InvalidArgument(f"unsupported layer media type {layer.media_type!r}")
    return manifest


def parse_config(raw: bytes) -> Configuration:
    """An image configuration. InvalidArgument names what is wrong."""
    document = _decode(raw, "image configuration")
    if not isinstance(document, dict):
        raise InvalidArgument("invalid image configuration: expected a JSON object")
    document = without_nulls(document)
    shape = _convert(document, _ConfigShape, "image configuration")
    if shape.rootfs.type not in ("", "layers"):
        raise InvalidArgument(f"invalid image configuration: unsupported rootfs type {shape.rootfs.type!r}")
    if len(shape.rootfs.diff_ids) > MAX_LAYERS:
        raise InvalidArgument(
            f"max depth exceeded: the image has {len(shape.rootfs.diff_ids)} layers, {MAX_LAYERS} is the most"
        )
    for diff_id in shape.rootfs.diff_ids:
        check_digest(diff_id)
    try:
        created = parse_rfc3339(shape.created) if shape.created else 0
    except (ValueError, OverflowError):
        created = 0  # a date that is none must not make an image useless; Docker shows none either
    return Configuration(
        id=digest_of(raw), raw=raw, config=shape.config, diff_ids=shape.rootfs.diff_ids, history=shape.history,
        platform=Platform(shape.architecture, shape.os or "linux", shape.variant, shape.os_version),
        created=created, author=shape.author, docker_version=shape.docker_version,
    )


def choose(entries: Sequence[Descriptor], want: Platform, ref: str) -> Descriptor:
    """The entry of a manifest list that suits this platform best; of equals the first."""
    fitting = [
        (fit, entry) for entry in entries
        if entry.platform is not None and entry.platform.architecture != "unknown"
        and entry.media_type in (DOCKER_MANIFEST, OCI_MANIFEST, "") and (fit := rank(entry.platform, want)) is not None
    ]
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    # An entry without platform can only be judged by its configuration; a single one is what there is.
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    raise NotFound(
        "platform", str(want),
        f"no matching manifest for {want} in the manifest list entries: "
        f"no match for platform in manifest of {ref}: not found",
    )


class _RootFS(msgspec.Struct, frozen=True):
    type: str = ""
    diff_ids: tuple[str, ...] = ()


class _ConfigShape(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    created: str = ""
    author: str = ""
    docker_version: str = ""
    config: ImageConfig = ImageConfig()
    rootfs: _RootFS = _RootFS()
    history: tuple[HistoryEntry, ...] = ()


def _check(entry: Descriptor) -> None:
    check_digest(entry.digest)
    if entry.size < 0:
        raise InvalidArgument(f"invalid manifest: negative size of {entry.digest}")


def _decode(raw: bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InvalidArgument(f"invalid {what}: {err}") from err


def _convert(value: Any, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(without_nulls(value), kind)
    except msgspec.ValidationError as err:
        raise InvalidArgument(f"invalid {what}: {err}") from err
