"""What `docker rmi` does to an image and its names: untag, delete, or refuse. Pure; the rules are dockerd's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmlet.errors import Conflict
from swarmlet.model.ids import short_id
from swarmlet_agent.images.reference import Reference


@dataclass(frozen=True, slots=True)
class Removal:
    """Names to take away, in this order, and whether the image goes too.

    kept_for: ids of the containers that go on living from the layers of an image removed by force.
    """

    untag: tuple[Reference, ...]
    delete: bool
    kept_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """A container made from the image."""

    container_id: str
    running: bool


def plan_removal(
    image_id: str, names: Sequence[Reference], named: Reference | None, users: Sequence[User], *, force: bool,
    has_children: bool,
) -> Removal:
    """named: the reference the caller gave, None if it gave an id. has_children: other images were made on this one, by
    a commit or a build. Conflict in dockerd's words.

    With a name, that name goes (and the repository's digests, if it was the last tag there); the image follows when no
    name is left. With an id, all names go if they are one repository's, or by force.
    """
    if named is None:
        _refuse(image_id, names, users, force=force, has_children=has_children)
        return Removal(tuple(names), delete=True, kept_for=tuple(user.container_id for user in users))
    if not force and _is_single(names) and users:
        raise Conflict(
            f'conflict: unable to remove repository reference "{named.familiar}" (must force) - container '
            f"{short_id(users[0].container_id)} is using its referenced image {short_id(image_id)}"
        )
    gone = [named]
    left = [name for name in names if name != named]
    if not named.digest and not any(name.tag and name.name == named.name for name in left):
        gone += [name for name in left if name.name == named.name]
        left = [name for name in left if name.name != named.name]
    # What others need stays, without a name then; only an id gives an error for that.
    delete = not left and not has_children and not any(user.running for user in users)
    return Removal(tuple(gone), delete, tuple(user.container_id for user in users) if delete else ())


def plan_pruning(names: Sequence[Reference], users: Sequence[User], *, has_children: bool) -> Removal | None:
    """`docker image prune` of an image that its filters mean; None if it stays as it is.

    One that others were made on loses its names, and goes with the last of them.
    """
    if users or (has_children and not names):
        return None
    return Removal(tuple(names), delete=not has_children)


def plan_parent(names: Sequence[Reference], users: Sequence[User], *, has_children: bool) -> Removal | None:
    """The image that a removed one was made on: it goes too if it was there for nothing else, else None."""
    return None if names or users or has_children else Removal((), delete=True)


def _refuse(
    image_id: str, names: Sequence[Reference], users: Sequence[User], *, force: bool, has_children: bool
) -> None:
    """In dockerd's order: what no force helps against, first."""
    if has_children:
        raise _conflict(image_id, "cannot be forced", "image has dependent child images")
    for user in users:
        if user.running:
            raise _conflict(
                image_id, "cannot be forced", f"image is being used by running container {short_id(user.container_id)}"
            )
    if not _is_single(names) and not force:
        raise _conflict(image_id, "must be forced", "image is referenced in multiple repositories")
    if users and not force:
        raise _conflict(
            image_id, "must be forced", f"image is being used by stopped container {short_id(users[0].container_id)}"
        )


def _conflict(image_id: str, how: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {short_id(image_id)} ({how}) - {why}")


def _is_single(names: Sequence[Reference]) -> bool:
    """At most one name, or one tag with digests of the same repository."""
    if len(names) <= 1:
        return True
    tags = [name for name in names if name.tag]
    return len(tags) <= 1 and len({name.name for name in names}) == 1
