"""`userns_remap`: which ids of the host a container's ids are, from subuid(5) and subgid(5), and what that rules out.

As dockerd has it (moby daemon/daemon_unix.go, pkg/idtools): ids count from 0 through the user's ranges in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet.model.base import Record
from swarmlet.model.container import HostConfig

DEFAULT_USER = "dockremap"
#: What the kernel shows for an id that is not mapped.
OVERFLOW_ID = 65534
Range = tuple[int, int]


class Remap(Record, frozen=True, kw_only=True):
    """(first id on the host, how many) of each range; the container's ids count through them from 0."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The container's root on the host: uid, gid."""
        return self.uids[0][0], self.gids[0][0]

    def on_host(self, uid: int, gid: int) -> tuple[int, int]:
        """InvalidArgument for an id that no range reaches to."""
        return _outer(uid, self.uids), _outer(gid, self.gids)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """As the container sees the host's ids."""
        return _inner(uid, self.uids), _inner(gid, self.gids)


@dataclass(frozen=True, slots=True)
class MappedIds:
    """A container's ids at work. namespace: the file of a user namespace that has this mapping."""

    namespace: str
    remap: Remap


def mappings(ranges: Sequence[Range]) -> list[tuple[int, int, int]]:
    """(container's id, host's id, how many), as user_namespaces(7) writes them."""
    result, inner = [], 0
    for first, count in ranges:
        result.append((inner, first, count))
        inner += count
    return result


def parse_remap(
    setting: str, *, user_of: Callable[[str], tuple[str, int]], group_of: Callable[[str], tuple[str, int]],
    subuid: str, subgid: str,
) -> Remap | None:
    """`default`, `user` or `user:group` (names or numbers); "" is none. InvalidArgument says what is missing.

    user_of, group_of: (name, number) of a name or number; LookupError for none. subuid, subgid: the files' texts.
    """
    if not setting:
        return None
    user, separator, group = setting.partition(":")
    if user == "default" and not separator:
        user = DEFAULT_USER
    group = group or user
    if not user or (separator and not setting.partition(":")[2]):
        raise InvalidArgument(f'userns_remap: "{setting}" is neither "default" nor user[:group]')
    names = []
    for kind, text, lookup in (("user", user, user_of), ("group", group, group_of)):
        try:
            names.append(lookup(text))
        except LookupError as err:
            if setting == "default":  # it owns nothing but its ranges
                names.append((DEFAULT_USER, -1))
                continue
            raise InvalidArgument(f'userns_remap: there is no {kind} "{text}" on this host') from err
    return Remap(
        uids=_ranges(names[0], subuid, "subuid", "uid"), gids=_ranges(names[1], subgid, "subgid", "gid")
    )


def _ranges(owner: tuple[str, int], text: str, file: str, kind: str) -> tuple[Range, ...]:
    found = []
    for line in text.splitlines():
        words = line.strip().split(":")
        if len(words) == 3 and words[0] in (owner[0], str(owner[1])) and words[1].isdigit() and words[2].isdigit():
            found.append((int(words[1]), int(words[2])))
    if not found:
        raise InvalidArgument(
            f'userns_remap: no sub{kind} ranges found for "{owner[0]}": add a line such as '
            f'"{owner[0]}:100000:65536" to the file {file}'
        )
    return tuple(sorted(found))


def check_remapped(host: HostConfig, remap: Remap | None) -> Remap | None:
    """The mapping a container gets. InvalidArgument, in dockerd's words, for what it cannot have then."""
    if remap is None or host.userns_mode == "host":
        return None
    if host.privileged:
        raise InvalidArgument(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace "
            "when running privileged mode"
        )
    if host.network_mode == "host":
        raise InvalidArgument("cannot share the host's network namespace when user namespaces are enabled")
    if host.pid_mode == "host":
        raise InvalidArgument("cannot share the host PID namespace when user namespaces are enabled")
    return remap


def _outer(ident: int, ranges: Sequence[Range]) -> int:
    for inner, first, count in mappings(ranges):
        if inner <= ident < inner + count:
            return first + ident - inner
    raise InvalidArgument(f"Container ID {ident} cannot be mapped to a host ID")


def _inner(ident: int, ranges: Sequence[Range]) -> int:
    for inner, first, count in mappings(ranges):
        if first <= ident < first + count:
            return inner + ident - first
    return OVERFLOW_ID
