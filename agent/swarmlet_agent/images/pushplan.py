"""What a push has to decide: the form of the manifest, and which blobs are worth asking a registry for. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from swarmlet.errors import SwarmletError
from swarmlet_agent.images.blobs import KnownBlob
from swarmlet_agent.images.kept import KeptBlob
from swarmlet_agent.images.manifests import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Configuration,
    Descriptor,
    Manifest,
    parse_manifest,
)

B = TypeVar("B", KnownBlob, KeptBlob)
#: Registries asked about a blob seen elsewhere, and repositories tried to mount it from, per layer.
MAX_CHECKS = 2
MAX_MOUNTS = 3


@dataclass(frozen=True, slots=True)
class CameAs:
    """How an image came from a registry: the manifest's bytes and its parsed form; None for one made or loaded here."""

    raw: bytes = b""
    media_type: str = ""
    manifest: Manifest | None = None

    @property
    def is_oci(self) -> bool:
        return self.media_type == OCI_MANIFEST


@dataclass(frozen=True, slots=True)
class Candidates:
    """Blobs that may spare an upload: known here, mountable from (digest's blob, path) there, or just worth a look.

    kept: forms that need not be compressed for one.
    """

    here: tuple[KnownBlob, ...]
    mounts: tuple[tuple[KnownBlob, str], ...]
    elsewhere: tuple[KnownBlob, ...]
    kept: tuple[KeptBlob, ...]


def came_as(raw: bytes, media_type: str) -> CameAs:
    """From what the catalogue keeps."""
    if not raw:
        return CameAs()
    try:
        found = parse_manifest(raw, media_type)
    except SwarmletError:
        return CameAs()  # it was accepted once by other rules: the image can still be pushed, in a new form
    return CameAs(raw, found.media_type or media_type, found) if isinstance(found, Manifest) else CameAs()


def candidates(
    known: Sequence[KnownBlob], kept: Sequence[KeptBlob], original: str, domain: str, path: str, *, zstd: bool
) -> Candidates:
    """What to try, best first. original: digest of the layer's blob in the manifest the image came with.

    zstd: whether the image's manifest form has a name for it (OCI).
    """

    def usable(blobs: Sequence[B]) -> list[B]:
        nameable = (blob for blob in blobs if zstd or compression(blob.media_type) != "zstd")
        return sorted(nameable, key=lambda blob: blob.digest != original)

    seen = usable(known)
    here = tuple(blob for blob in seen if path in blob.paths_at(domain))
    rest = [blob for blob in seen if blob not in here]
    mounts = [(blob, source) for blob in rest for source in blob.paths_at(domain) if source != path]
    elsewhere = [blob for blob in rest if not blob.paths_at(domain)]
    return Candidates(here, tuple(mounts[:MAX_MOUNTS]), tuple(elsewhere[:MAX_CHECKS]), tuple(usable(kept)))


def compression(media_type: str) -> str:
    """"gzip", "zstd" or "" of a layer's media type."""
    return next((kind for kind in ("gzip", "zstd") if media_type.endswith(kind)), "")


def manifest_for(came: CameAs, config: Configuration, blobs: Mapping[str, Descriptor]) -> tuple[bytes, str]:
    """(bytes, media type) of the manifest. blobs: by diff id, as the registry has them.

    The manifest the image came with, if its blobs are the same: then it keeps its digest. Else a new one in the same
    form; images made here get Docker's schema 2, as dockerd gives them.
    """
    layers = [blobs[diff_id] for diff_id in config.diff_ids]
    ours = [config.id, *(blob.digest for blob in layers)]
    if came.manifest is not None and ours == [blob.digest for blob in (came.manifest.config, *came.manifest.layers)]:
        return came.raw, came.media_type
    if came.is_oci:
        return _oci(config, layers), OCI_MANIFEST
    return _schema2(config, layers), DOCKER_MANIFEST


def _schema2(config: Configuration, layers: Sequence[Descriptor]) -> bytes:
    """Laid out as dockerd does: equal content then has an equal digest."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "size": len(config.raw), "digest": config.id},
        "layers": [
            {"mediaType": _type(DOCKER_LAYER, ".", blob), "size": blob.size, "digest": blob.digest} for blob in layers
        ],
    }
    return json.dumps(document, indent=3).encode()


def _oci(config: Configuration, layers: Sequence[Descriptor]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config.id, "size": len(config.raw)},
        "layers": [
            {"mediaType": _type(OCI_LAYER, "+", blob), "digest": blob.digest, "size": blob.size} for blob in layers
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _type(plain: str, mark: str, blob: Descriptor) -> str:
    kind = compression(blob.media_type)
    return f"{plain}{mark}{kind}" if kind else plain
