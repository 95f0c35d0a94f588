"""What COPY and ADD take: the files their arguments mean, and a digest of them. Blocking: for threads.

The digest covers names, kinds, modes, link targets, contents and the extended attributes that are copied, but no times:
an unchanged checkout stays cached.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.patterns import NOTHING, Ignore, has_wildcards
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.images.capture import Stopped
from swarmlet_agent.images.compression import decompressed
from swarmlet_agent.images.globs import compile_pattern
from swarmlet_agent.images.tarstream import BadTar, TarReader

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One source: a path in its root that no link is part of. name: what it is called where a folder takes it.

    within: the folders that --parents keeps; digest: of what is known without looking at its files.
    """

    root: Root
    path: str
    name: str
    is_folder: bool
    within: str = ""
    digest: str = ""


def find_sources(
    root: Root, sources: Sequence[str], *, what: str, parents: bool = False, of_context: bool = True
) -> list[Found]:
    """What the arguments mean, wildcards resolved, in order. InvalidArgument in the builder's words.

    of_context: the root is the build context, no stage or image.
    """
    found: list[Found] = []
    for source in sources:
        inner = source.partition("/./")[2] if parents and "/./" in source else ""
        path = _checked(source, what)
        if has_wildcards(path):
            matches = [_found(root, match, what, of_context) for match in _matches(root, path)]
            if not matches:
                raise InvalidArgument(f"{what} failed: no source files were specified")
        else:
            matches = [_found(root, path.replace("\\", ""), what, of_context)]
        for match in matches:
            if not parents:
                found.append(match)
                continue
            depth = len([word for word in path.split("/") if word]) - len([word for word in inner.split("/") if word])
            kept = "/".join(match.path.split("/")[depth if inner else 0 :])
            within = kept if match.is_folder else posixpath.dirname(kept)
            found.append(Found(match.root, match.path, match.name, match.is_folder, within))
    if not found:
        raise InvalidArgument(f"{what} failed: no source files were specified")
    return found


def _checked(source: str, what: str) -> str:
    """Relative to the root and clean; InvalidArgument if it leads out."""
    path = posixpath.normpath("./" + source.lstrip("/"))
    if path == ".." or path.startswith("../"):
        raise InvalidArgument(f"{what} failed: forbidden path outside the build context: {source} ()")
    return "" if path == "." else path


def _found(root: Root, path: str, what: str, of_context: bool) -> Found:
    real = root.real_path(path)
    info = root.stat(path) if real is not None else None
    if real is None or info is None:
        where = "file not found in build context or excluded by .dockerignore: " if of_context else ""
        raise InvalidArgument(f"{what} failed: {where}stat {path}: file does not exist")
    return Found(root, real, posixpath.basename(path), stat.S_ISDIR(info.st_mode))


def _matches(root: Root, pattern: str) -> Iterator[str]:
    """Paths that fit, sorted; "*" does not cross folders, so each part of the pattern is matched in its folder."""

    def walk(above: str, words: Sequence[str]) -> Iterator[str]:
        word, rest = words[0], words[1:]
        if not has_wildcards(word):
            path = posixpath.join(above, word.replace("\\", ""))
            if root.stat(path) is not None:
                if rest:
                    yield from walk(path, rest)
                else:
                    yield path
            return
        expression = compile_pattern(word)
        for name in _names(root, above):
            if expression.fullmatch(name):
                path = posixpath.join(above, name)
                if rest:
                    yield from walk(path, rest)
                else:
                    yield path

    yield from walk("", pattern.split("/"))


def _names(root: Root, path: str) -> list[str]:
    folder = root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    if folder is None:
        return []
    try:
        return sorted(os.listdir(folder))
    finally:
        os.close(folder)


def digest_of_sources(
    found: Sequence[Found], *, owners: bool = False, exclude: Ignore = NOTHING, stopped: Callable[[], bool]
) -> str:
    """"file:…", "dir:…" or "multi:…". owners: they are kept, so they count. Stopped."""
    digests = [_digest_one(one, owners, exclude, stopped) for one in found]
    if len(digests) == 1:
        return digests[0]
    return "multi:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest_one(one: Found, owners: bool, exclude: Ignore, stopped: Callable[[], bool]) -> str:
    if one.digest:
        return one.digest
    digest = hashlib.sha256(os.fsencode(one.within) + b"\0")
    if not one.is_folder:
        handle = one.root.open(one.path, os.O_PATH)
        if handle is None:
            raise InvalidArgument(f"{one.path} vanished during the build")
        try:
            info = os.fstat(handle)
            digest.update(os.fsencode(one.name) + b"\0" + describe(info, owners))
            _add_content(digest.update, f"/proc/self/fd/{handle}", info, stopped)
        finally:
            os.close(handle)
        return f"file:{digest.hexdigest()}"
    folder = one.root.open(one.path, os.O_RDONLY | os.O_DIRECTORY)
    if folder is None:
        raise InvalidArgument(f"{one.path} vanished during the build")
    try:
        digest.update(describe(os.fstat(folder), owners))
        for path, info, parent, name in walk_folder(folder, exclude):
            digest.update(os.fsencode(path) + b"\0" + describe(info, owners))
            if stat.S_ISLNK(info.st_mode):
                digest.update(os.fsencode(os.readlink(name, dir_fd=parent)) + b"\0")
            else:
                _add_content(digest.update, f"/proc/self/fd/{parent}/{name}", info, stopped)
    finally:
        os.close(folder)
    return f"dir:{digest.hexdigest()}"


def walk_folder(folder: int, exclude: Ignore = NOTHING) -> Iterator[tuple[str, os.stat_result, int, str]]:
    """(path below, lstat, descriptor of its folder, name) of all there is, parents first, sorted."""

    def walk(handle: int, above: str) -> Iterator[tuple[str, os.stat_result, int, str]]:
        for name in sorted(os.listdir(handle)):
            path = above + name
            out = bool(exclude.patterns) and exclude.matches(path)
            info = os.stat(name, dir_fd=handle, follow_symlinks=False)
            is_folder = stat.S_ISDIR(info.st_mode)
            if out and not (is_folder and exclude.has_exceptions):
                continue
            if not out:
                yield path, info, handle, name
            if is_folder:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
                try:
                    yield from walk(below, path + "/")
                finally:
                    os.close(below)

    yield from walk(folder, "")


def describe(info: os.stat_result, owners: bool) -> bytes:
    owner = f"{info.st_uid}:{info.st_gid}" if owners else ""
    size = info.st_size if stat.S_ISREG(info.st_mode) else 0
    device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
    return f"{info.st_mode:o} {owner} {size} {device}\n".encode()


def _add_content(
    update: Callable[[bytes], None], place: str, info: os.stat_result, stopped: Callable[[], bool]
) -> None:
    if stopped():
        raise Stopped
    if not stat.S_ISREG(info.st_mode):
        return
    for name, value in copied_xattrs(place):
        update(os.fsencode(name) + b"\0" + value + b"\0")
    handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := os.read(handle, _PIECE):
            update(piece)
            if stopped():
                raise Stopped
    finally:
        os.close(handle)


def copied_xattrs(place: str) -> Iterator[tuple[str, bytes]]:
    """The extended attributes of a file that go with it: its capabilities, and the user's own."""
    for name in sorted(os.listxattr(place)):
        if name == "security.capability" or name.startswith("user."):
            yield name, os.getxattr(place, name)


def is_archive(one: Found) -> bool:
    """Whether ADD unpacks it: a tar, plain or compressed in a way that is known."""
    handle = one.root.open(one.path, os.O_RDONLY | os.O_NONBLOCK)
    if handle is None:
        return False
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return False
        try:
            return next(TarReader(decompressed(file.read)).entries(), None) is not None
        except (BadTar, InvalidArgument):
            return False
