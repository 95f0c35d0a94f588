"""Which uid, gid and groups a `user` setting means, from the container's own passwd and group files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument

_HIGHEST_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the program runs as. groups: all of them, the primary one first."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def resolve_user(user: str, group_add: Sequence[str], passwd: str, group: str) -> Identity:
    """`user[:group]`, each a name or a number; "" is root.

    A number need not be in passwd. Without a group given, the primary group comes from passwd (0 where it has
    none) and the groups that list the user are added; a given group stands alone. InvalidArgument otherwise.
    """
    name, _, group_name = user.partition(":")
    accounts = tuple(_accounts(passwd))
    account = _find_account(name, accounts)
    uid = account[1] if account else _number(name)
    if uid is None:
        raise InvalidArgument(f"unable to find user {name}: no matching entries in passwd file")
    _check(uid)
    gid = account[2] if account else 0
    members: tuple[int, ...] = ()
    if group_name:
        gid = _group_id(group_name, group)
    elif account:
        members = tuple(number for _, number, names in _groups(group) if account[0] in names)
    extra = tuple(_group_id(text, group) for text in group_add)
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *members, *extra))))


def _find_account(name: str, accounts: Sequence[tuple[str, int, int]]) -> tuple[str, int, int] | None:
    number = 0 if name == "" else _number(name)
    for account in accounts:
        if name and account[0] == name:
            return account
    if number is not None:
        return next((account for account in accounts if account[1] == number), None)
    return None


def _group_id(text: str, group: str) -> int:
    for name, gid, _ in _groups(group):
        if name == text:
            return gid
    number = _number(text)
    if number is None:
        raise InvalidArgument(f"unable to find group {text}: no matching entries in group file")
    return _check(number)


def _number(text: str) -> int | None:
    if text == "":
        return 0
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


def _check(number: int) -> int:
    if not 0 <= number <= _HIGHEST_ID:
        raise InvalidArgument(f"uids and gids must be in range 0-{_HIGHEST_ID}")
    return number


def _accounts(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, uid, gid) of passwd(5) lines; broken lines are skipped, as every reader of the file does."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 4 and fields[2].isdigit() and fields[3].isdigit():
            yield fields[0], int(fields[2]), int(fields[3])


def _groups(text: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """(name, gid, members) of group(5) lines."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= 3 and fields[2].isdigit():
            yield fields[0], int(fields[2]), tuple(fields[3].split(",")) if len(fields) > 3 else ()
