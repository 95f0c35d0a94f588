"""What the image store tells others: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet.model.container import ImageConfig
from swarmlet_agent.images.platforms import Platform


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """Credentials for one registry, from X-Registry-Auth or a service's encoded auth. Never logged, never stored."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return "RegistryAuth(…)"


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store. id is the digest of its configuration ("sha256:…"), as Docker's is.

    layers: chain ids, lowest first (OCI image-spec config.md). repo_tags "name:tag" and repo_digests
    "name@sha256:…" are in familiar form, sorted. created in ns, 0 = unknown; size in bytes, unpacked.
    """

    id: str
    config: ImageConfig
    layers: tuple[str, ...]
    architecture: str
    os: str
    created: int
    size_bytes: int
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    variant: str = ""
    author: str = ""
    comment: str = ""
    docker_version: str = ""

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, self.variant)
