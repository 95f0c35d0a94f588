"""API versions: which we speak, and how a request's is read (Engine API: "Versioning")."""

from __future__ import annotations

from typing import NamedTuple

from swarmlet.errors import InvalidArgument


class ApiVersion(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


NEWEST = ApiVersion(1, 50)
OLDEST = ApiVersion(1, 24)
_LONGEST = 12


def split_version(path: str) -> tuple[ApiVersion, str]:
    """("/v1.41/info") -> (1.41, "/info"); a path without a version means the newest.

    InvalidArgument, in dockerd's words, for a version outside OLDEST..NEWEST.
    """
    if not path.startswith("/v") or len(path) < 3 or not path[2].isdigit():
        return NEWEST, path
    head, slash, rest = path[2:].partition("/")
    major, _, minor = head.partition(".")
    if not slash or not major.isdigit() or not (minor or "0").isdigit() or len(head) > _LONGEST:
        return NEWEST, path
    version = ApiVersion(int(major), int(minor or 0))
    if version < OLDEST:
        raise InvalidArgument(
            f"client version {version} is too old. Minimum supported API version is {OLDEST}, "
            "please upgrade your client to a newer version"
        )
    if version > NEWEST:
        raise InvalidArgument(f"client version {version} is too new. Maximum supported API version is {NEWEST}")
    return version, slash + rest
