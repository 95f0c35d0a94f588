"""Writing image archives as Docker 25+ does: an OCI layout with manifest.json and repositories beside it."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Internal
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Configuration, digest_of
from swarmlet_agent.images.recipe import replay
from swarmlet_agent.images.reference import Reference

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """One image to write. folders: of the layers, in the same order."""

    configuration: Configuration
    layers: tuple[Layer, ...]
    folders: tuple[Path, ...]
    names: tuple[Reference, ...]


def archive_chunks(images: Sequence[Saved]) -> Iterator[bytes]:
    """The tar in pieces of about 1 MiB. Blocking. Internal if a layer on disk is no longer what it was."""
    waiting: list[bytes] = []
    size = 0
    for piece in _archive(images):
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _archive(images: Sequence[Saved]) -> Iterator[bytes]:
    small: dict[str, bytes] = {}
    entries, listed = [], []
    repositories: dict[str, dict[str, str]] = {}
    layers: dict[str, tuple[Layer, Path]] = {}
    for image in images:
        manifest = archived_manifest(image.configuration, image.layers)
        small[image.configuration.id] = image.configuration.raw
        small[digest_of(manifest)] = manifest
        entries.append(_docker_entry(image))
        listed += _index_entries(image, manifest)
        for layer, folder in zip(image.layers, image.folders, strict=True):
            layers.setdefault(layer.diff_id, (layer, folder))
        top = image.layers[-1].diff_id.removeprefix("sha256:") if image.layers else ""
        for name in image.names:
            repositories.setdefault(name.familiar_name, {})[name.tag] = top
    yield _header("blobs/", 0, folder=True)
    yield _header("blobs/sha256/", 0, folder=True)
    for digest, content in small.items():
        yield from _file(_blob_path(digest), content)
    for digest, (layer, folder) in layers.items():
        yield _header(_blob_path(digest), layer.tar_bytes)
        yield from layer_tar(layer, folder)
        yield bytes(-layer.tar_bytes % 512)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    yield from _file("index.json", msgspec.json.encode(index))
    yield from _file("manifest.json", msgspec.json.encode(entries))
    yield from _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    if repositories:
        yield from _file("repositories", msgspec.json.encode(repositories))
    yield bytes(1024)


def layer_tar(layer: Layer, folder: Path) -> Iterator[bytes]:
    """The layer's tar, checked on the way: what a client gets is what the name promises, or a broken transfer."""
    digest, size = hashlib.sha256(), 0
    for piece in replay(folder):
        digest.update(piece)
        size += len(piece)
        if size > layer.tar_bytes:
            break
        yield piece
    if size != layer.tar_bytes or f"sha256:{digest.hexdigest()}" != layer.diff_id:
        raise Internal(f"layer {layer.diff_id} is damaged on disk: its files have changed since it was unpacked")


def _descriptors(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    return [{"mediaType": OCI_LAYER, "digest": layer.diff_id, "size": layer.tar_bytes} for layer in layers]


def archived_manifest(configuration: Configuration, layers: Sequence[Layer]) -> bytes:
    """The manifest an image has in an archive, where its layers are plain tars."""
    config = {"mediaType": OCI_CONFIG, "digest": configuration.id, "size": len(configuration.raw)}
    return msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": _descriptors(layers)}
    )


def _docker_entry(image: Saved) -> dict[str, Any]:
    return {
        "Config": _blob_path(image.configuration.id),
        "RepoTags": [name.familiar for name in image.names] or None,
        "Layers": [_blob_path(layer.diff_id) for layer in image.layers],
        "LayerSources": {entry["digest"]: entry for entry in _descriptors(image.layers)},
    }


def _index_entries(image: Saved, manifest: bytes) -> list[dict[str, Any]]:
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    if not image.names:
        return [entry]
    return [
        {**entry, "annotations": {
            "io.containerd.image.name": name.full, "org.opencontainers.image.ref.name": name.tag,
        }}
        for name in image.names
    ]


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _file(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content))
    yield content
    yield bytes(-len(content) % 512)


def _header(name: str, size: int, *, folder: bool = False) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o755 if folder else 0o644
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.GNU_FORMAT)
