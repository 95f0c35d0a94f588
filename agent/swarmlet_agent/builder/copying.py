"""Putting files into an image's root: what COPY and ADD do once their sources are known. Blocking: for threads.

Rules: the Dockerfile reference, COPY. A folder's content is copied, not the folder; a target that ends with a slash, or
is a folder already, takes files by their names; missing folders are made (0755).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.builder.modes import Mode
from swarmlet_agent.builder.patterns import NOTHING, Ignore
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.sources import Found, copied_xattrs, is_archive, walk_folder
from swarmlet_agent.builder.untar import untar
from swarmlet_agent.decide.users import resolve_user
from swarmlet_agent.engine.inside import read_accounts
from swarmlet_agent.images.capture import Stopped

_PIECE = 8 << 20


@dataclass(frozen=True, slots=True)
class How:
    """owner (uid, gid) of what is copied, None = as it was; mode None = as it was; unpack: archives, as ADD does, for
    archive_owner."""

    owner: tuple[int, int] | None = (0, 0)
    archive_owner: tuple[int, int] | None = None
    mode: Mode | None = None
    exclude: Ignore = NOTHING
    unpack: bool = False


def owner_of(root: Root, chown: str) -> tuple[int, int]:
    """--chown=user[:group], names looked up in the image; without a group the user's number is the group's too."""
    passwd, group = read_accounts(root.path)
    try:
        identity = resolve_user(chown, (), passwd, group)
    except InvalidArgument as err:
        if "unable to find" not in str(err):
            raise
        user, _, group_name = chown.partition(":")
        what, name = ("gid for group", group_name) if "group" in str(err) else ("uid for user", user)
        raise InvalidArgument(
            f"unable to convert uid/gid chown string to host mapping: can't find {what} {name}: "
            f"no such {what.rpartition(' ')[2]}: {name}"
        ) from err
    return identity.uid, identity.gid if ":" in chown else identity.uid


def resolve_target(target: str, working_dir: str, *, several: bool, what: str) -> tuple[str, bool]:
    """(absolute path, whether it must be a folder). InvalidArgument if several files would have one name."""
    as_folder = target.endswith("/") or posixpath.basename(target) in (".", "..") or not target
    if several and not as_folder:
        raise InvalidArgument(
            f"When using {what} with more than one source file, the destination must be a directory and end with a /"
        )
    return posixpath.normpath(posixpath.join("/", working_dir, target)).replace("//", "/"), as_folder


def copy_sources(
    found: Sequence[Found], root: Root, target: str, as_folder: bool, how: How, stopped: Callable[[], bool]
) -> None:
    """Into the image's root. InvalidArgument where a file is in a folder's place; Internal; Stopped."""
    try:
        for one in found:
            place = posixpath.join(target, one.within) if one.within else target
            _copy_one(one, root, place, as_folder or bool(one.within), how, stopped)
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as err:
        raise InvalidArgument(f"cannot copy to {target}: {err.strerror}") from err
    except OSError as err:
        raise Internal(f"cannot copy to {target}: {err.strerror or err}") from err


def _copy_one(
    one: Found, root: Root, target: str, as_folder: bool, how: How, stopped: Callable[[], bool]
) -> None:
    made_for = how.owner or (0, 0)
    if one.is_folder:
        folder = root.make_folders(target, made_for)
        try:
            _copy_folder(one, root, folder, how, stopped)
        finally:
            os.close(folder)
        return
    if how.unpack and is_archive(one):
        _unpack(one, root, target, how, stopped)
        return
    there = root.stat(target)
    if as_folder or (there is not None and stat.S_ISDIR(there.st_mode)):
        target = posixpath.join(target, one.name)
    elif there is not None:
        target = "/" + (root.real_path(target) or target)  # what a link leads to is overwritten, not the link
    parent = root.make_folders(posixpath.dirname(target), made_for)
    try:
        source = one.root.open(one.path, os.O_PATH)
        if source is None:
            raise InvalidArgument(f"{one.path} vanished during the build")
        try:
            _copy_file(f"/proc/self/fd/{source}", os.fstat(source), parent, posixpath.basename(target), how, stopped)
        finally:
            os.close(source)
    finally:
        os.close(parent)


def _unpack(one: Found, root: Root, target: str, how: How, stopped: Callable[[], bool]) -> None:
    folder = root.make_folders(target, how.owner or (0, 0))
    archive = one.root.open(one.path, os.O_RDONLY)
    if archive is None:
        raise InvalidArgument(f"{one.path} vanished during the build")
    try:
        # Links in the image may lead out of the target, but never out of the image.
        place = posixpath.join("/", root.real_path(target) or "")
        with os.fdopen(archive, "rb", buffering=0) as file:
            untar(file.read, Below(root, place), what=one.name, owner=how.archive_owner, stopped=stopped)
    finally:
        os.close(folder)


class Below(Root):
    """A folder of an image: paths are below it, while links and ".." are followed within the whole image."""

    def __init__(self, root: Root, folder: str) -> None:
        super().__init__(root.path)
        self._whole, self._folder = root, folder
        self.fd = root.fd

    def open(self, path: str, flags: int = os.O_PATH | os.O_DIRECTORY) -> int | None:
        return self._whole.open(posixpath.join(self._folder, path), flags)

    def make_folders(self, path: str, owner: tuple[int, int] = (0, 0), *, links: int = 0) -> int:
        return self._whole.make_folders(posixpath.join(self._folder, path), owner, links=links)


def _copy_folder(one: Found, root: Root, target: int, how: How, stopped: Callable[[], bool]) -> None:
    """Everything in a folder into another. Folders that are there stay and take over mode and owner."""
    source = one.root.open(one.path, os.O_RDONLY | os.O_DIRECTORY)
    if source is None:
        raise InvalidArgument(f"{one.path} vanished during the build")
    folders: list[tuple[str, os.stat_result]] = []
    try:
        for path, info, parent, name in walk_folder(source, how.exclude):
            above, _, base = path.rpartition("/")
            into = _folder_at(target, above)
            try:
                if stat.S_ISDIR(info.st_mode):
                    if not root.is_folder(into, base):
                        root.remove(into, base)
                        os.mkdir(base, 0o700, dir_fd=into)
                    folders.append((path, info))
                else:
                    _copy_file(f"/proc/self/fd/{parent}/{name}", info, into, base, how, stopped)
            finally:
                os.close(into)
        for path, info in reversed(folders):
            folder = _folder_at(target, path)
            try:
                _attributes(f"/proc/self/fd/{folder}", info, how)
            finally:
                os.close(folder)
    finally:
        os.close(source)


def _folder_at(top: int, path: str) -> int:
    """A folder below `top` that this copy has made or found to be one; made if its entry was excluded."""
    handle = os.dup(top)
    for word in path.split("/") if path else ():
        try:
            following = _open_folder(handle, word)
        except FileNotFoundError:
            os.mkdir(word, 0o755, dir_fd=handle)
            following = _open_folder(handle, word)
        finally:
            os.close(handle)
        handle = following
    return handle


def _open_folder(parent: int, name: str) -> int:
    return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _copy_file(
    place: str, info: os.stat_result, parent: int, name: str, how: How, stopped: Callable[[], bool]
) -> None:
    if stopped():
        raise Stopped
    if Root.is_folder(parent, name):
        raise IsADirectoryError(errno.EISDIR, f"{name} is a directory")
    Root.remove(parent, name)
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(place), name, dir_fd=parent)
    elif stat.S_ISREG(info.st_mode):
        _copy_content(place, parent, name, stopped)
    elif stat.S_ISSOCK(info.st_mode):
        return
    else:
        os.mknod(name, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=parent)
    _attributes(f"/proc/self/fd/{parent}/{name}", info, how, source=place)


def _copy_content(place: str, parent: int, name: str, stopped: Callable[[], bool]) -> None:
    source = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            while os.sendfile(target, source, None, _PIECE):
                if stopped():
                    raise Stopped
        finally:
            os.close(target)
    finally:
        os.close(source)


def _attributes(place: str, info: os.stat_result, how: How, source: str = "") -> None:
    owner = how.owner if how.owner is not None else (info.st_uid, info.st_gid)
    is_link = stat.S_ISLNK(info.st_mode)
    os.chown(place, *owner, follow_symlinks=source == "")
    if not is_link:
        before = stat.S_IMODE(info.st_mode)
        mode = before if how.mode is None else how.mode.of(before, is_folder=stat.S_ISDIR(info.st_mode))
        os.chmod(place, mode)
        if source and stat.S_ISREG(info.st_mode):
            _copy_xattrs(source, place)
    os.utime(place, ns=(info.st_mtime_ns, info.st_mtime_ns), follow_symlinks=source == "")


def _copy_xattrs(source: str, target: str) -> None:
    for name, value in copied_xattrs(source):
        try:
            os.setxattr(target, name, value)
        except OSError as err:
            if err.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
