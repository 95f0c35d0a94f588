"""Image references: "busybox", "reg.example:5000/team/app:1.2", "app@sha256:…", and their two written forms.

Pure. The grammar is the distribution project's (`reference` package); *full* names carry the registry
("docker.io/library/busybox"), *familiar* ones leave out what Docker Hub implies ("busybox").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from swarmlet.errors import InvalidArgument

DOCKER_HUB = "docker.io"
_LIBRARY = "library/"
_DEFAULT_TAG = "latest"
_MAX_NAME = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository, and at most a tag and a digest in it. Always in normalised form."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The full repository name: "docker.io/library/busybox"."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: "busybox"."""
        if self.domain != DOCKER_HUB:
            return self.name
        short = self.path.removeprefix(_LIBRARY)
        if "/" not in short:
            return short
        # Without its "library/" docker.io/library/a/b would mean another repository, and without its registry
        # docker.io/a.b/c another registry.
        return self.name if _looks_like_host(self.path.partition("/")[0]) else self.path

    @property
    def suffix(self) -> str:
        """":tag", "@digest", both or nothing."""
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def full(self) -> str:
        return self.name + self.suffix

    @property
    def familiar(self) -> str:
        return self.familiar_name + self.suffix

    @property
    def version(self) -> str:
        """What selects a manifest in the repository: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def with_default_tag(self) -> Reference:
        """":latest" if it has neither tag nor digest."""
        return self if self.version else replace(self, tag=_DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """This repository with another tag, without a digest. InvalidArgument for a bad tag."""
        if _TAG.fullmatch(tag) is None:
            raise InvalidArgument("invalid tag format")
        return replace(self, tag=tag, digest="")

    def with_digest(self, digest: str) -> Reference:
        """This repository at a digest, without a tag."""
        return replace(self, tag="", digest=check_digest(digest))


def check_digest(text: str) -> str:
    """The digest itself if it is a sha256 one. InvalidArgument otherwise: it may become a file name."""
    if _SHA256.fullmatch(text) is not None:
        return text
    algorithm, _, _ = text.partition(":")
    if _DIGEST.fullmatch(text) is None:
        raise InvalidArgument("invalid checksum digest format")
    if algorithm != "sha256":
        raise InvalidArgument("unsupported digest algorithm")
    raise InvalidArgument("invalid checksum digest length")


def is_image_id(text: str) -> bool:
    """A whole image id, with or without "sha256:"."""
    return _IDENTIFIER.fullmatch(text.removeprefix("sha256:")) is not None


def is_id_prefix(text: str) -> bool:
    """Could be the start of an image id (names may look the same; names win)."""
    return re.fullmatch(r"(?:sha256:)?[0-9a-f]{1,64}", text) is not None


def parse_reference(text: str) -> Reference:
    """A reference as a user writes it, normalised; no tag is added. InvalidArgument in Docker's words."""
    if _IDENTIFIER.fullmatch(text) is not None:
        raise InvalidArgument(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    rest, at, digest = rest.partition("@")
    path, colon, tag = rest.partition(":")
    if path != path.lower():
        raise InvalidArgument(f"invalid reference format: repository name ({path}) must be lowercase")
    if (
        _DOMAIN.fullmatch(domain) is None
        or _PATH.fullmatch(path) is None
        or (colon and _TAG.fullmatch(tag) is None)
        or (at and _DIGEST.fullmatch(digest) is None)
    ):
        raise InvalidArgument("invalid reference format")
    if len(path) > _MAX_NAME:
        raise InvalidArgument(f"repository name must not be more than {_MAX_NAME} characters")
    if at:
        check_digest(digest)
    return Reference(domain, path, tag, digest)


def _split_domain(text: str) -> tuple[str, str]:
    """The first segment is a registry only if it looks like a host."""
    first, slash, rest = text.partition("/")
    if not slash or not _looks_like_host(first):
        domain, rest = DOCKER_HUB, text
    else:
        domain = DOCKER_HUB if first in ("index.docker.io", DOCKER_HUB) else first
    if domain == DOCKER_HUB and "/" not in rest:
        rest = _LIBRARY + rest
    return domain, rest


def _looks_like_host(first: str) -> bool:
    """A dot, a port, capitals, or "localhost"."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def parse_stored(full: str) -> Reference:
    """Back from `Reference.full`."""
    return parse_reference(full)
