"""Images built in memory for the image tests: layers, configurations, manifests, archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA2_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One tar member; fields are TarInfo's (type, mode, uid, linkname, …)."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def files(content: Mapping[str, bytes]) -> bytes:
    """A layer of plain files."""
    return tar_of(member(name, data) for name, data in content.items())


@dataclass
class MadeImage:
    """layers: uncompressed tars, lowest first."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    compression: str = "gzip"
    media_type: str = SCHEMA2
    architecture: str = "amd64"

    def __post_init__(self) -> None:
        compress = {
            "gzip": lambda data: gzip.compress(data, 1, mtime=0),
            "zstd": zstandard.ZstdCompressor().compress,
            "none": bytes,
        }[self.compression]
        self.blobs = [compress(layer) for layer in self.layers]
        self.diff_ids = [digest(layer) for layer in self.layers]
        self.raw_config = json.dumps(
            {
                "architecture": self.architecture,
                "os": "linux",
                "created": "2024-05-06T07:08:09.123456789Z",
                "author": "tests",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
                "history": [
                    {"created": "2024-05-06T07:08:09Z", "created_by": f"step {number}"}
                    for number in range(len(self.layers))
                ],
            }
        ).encode()
        self.id = digest(self.raw_config)
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json"
                    if self.media_type == SCHEMA2
                    else "application/vnd.oci.image.config.v1+json",
                    "digest": self.id,
                    "size": len(self.raw_config),
                },
                "layers": [
                    {"mediaType": self._layer_type(), "digest": digest(blob), "size": len(blob)} for blob in self.blobs
                ],
            }
        ).encode()
        self.digest = digest(self.manifest)

    def _layer_type(self) -> str:
        if self.media_type == SCHEMA2:
            return "application/vnd.docker.image.rootfs.diff.tar" + (".gzip" if self.compression == "gzip" else "")
        return "application/vnd.oci.image.layer.v1.tar" + ("" if self.compression == "none" else f"+{self.compression}")

    def contents(self) -> dict[str, bytes]:
        """Every blob by digest."""
        return {self.id: self.raw_config, **{digest(blob): blob for blob in self.blobs}}

    def docker_archive(self, *names: str) -> bytes:
        """What old `docker save` writes."""
        parts = {f"{self.id[7:]}.json": self.raw_config}
        for number, layer in enumerate(self.blobs):
            parts[f"{number}/layer.tar"] = layer
        listed = [
            {
                "Config": f"{self.id[7:]}.json",
                "RepoTags": list(names) or None,
                "Layers": [f"{number}/layer.tar" for number in range(len(self.blobs))],
            }
        ]
        return files({**parts, "manifest.json": json.dumps(listed).encode()})

    def oci_layout(self, name: str = "") -> bytes:
        entry: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.manifest)}
        if name:
            entry["annotations"] = {"io.containerd.image.name": name}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        blobs = {**self.contents(), self.digest: self.manifest}
        return files(
            {
                "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
                "index.json": json.dumps(index).encode(),
                **{f"blobs/{name.replace(':', '/')}": data for name, data in blobs.items()},
            }
        )


def index_of(*images: MadeImage, media_type: str = OCI_INDEX) -> bytes:
    """A list of these images by their platforms."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                {
                    "mediaType": image.media_type,
                    "digest": image.digest,
                    "size": len(image.manifest),
                    "platform": {"architecture": image.architecture, "os": "linux"},
                }
                for image in images
            ],
        }
    ).encode()
