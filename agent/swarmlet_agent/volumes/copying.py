"""Copying what an image has at a mount point into a new volume: a tree with everything that belongs to it. Blocking."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

#: Attributes that say how overlayfs made up the source; they mean nothing in a copy.
_FOREIGN = ("trusted.overlay.", "user.overlay.")


def copy_tree(source: Path, target: str | Path) -> None:
    """The content of a folder into an existing one; owners, modes, times, extended attributes, links, devices.

    The target folder itself gets the source's owner and mode. Links are copied, never followed. OSError.
    """
    links: dict[tuple[int, int], str] = {}
    _copy_folder(str(source), str(target), links)


def _copy_folder(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            _copy_entry(entry, f"{target}/{entry.name}", links)
    # Last, since making entries changes the folder's times, and its mode may forbid nothing to root.
    _copy_attributes(source, target, os.lstat(source))


def _copy_entry(entry: os.DirEntry[str], target: str, links: dict[tuple[int, int], str]) -> None:
    info = entry.stat(follow_symlinks=False)
    mode = info.st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(target, 0o700)
        _copy_folder(entry.path, target, links)
        return
    if info.st_nlink > 1:
        first = links.setdefault((info.st_dev, info.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(entry.path), target)
    elif stat.S_ISREG(mode):
        shutil.copyfile(entry.path, target, follow_symlinks=False)
    elif stat.S_ISSOCK(mode):
        return  # a socket without its process is nothing
    else:
        os.mknod(target, mode, info.st_rdev)
    _copy_attributes(entry.path, target, info)


def _copy_attributes(source: str, target: str, info: os.stat_result) -> None:
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(_FOREIGN):
            _copy_xattr(source, target, name)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))  # after chown, which clears setuid
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _copy_xattr(source: str, target: str, name: str) -> None:
    value = os.getxattr(source, name, follow_symlinks=False)
    try:
        os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as err:
        # A tmpfs or NFS volume may not have this kind; a security label may not be ours to set.
        if err.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
            raise


def size_of(folder: Path) -> int:
    """Bytes in the files of a tree, each counted once, as dockerd counts them: folders have none. What disappears
    meanwhile counts nothing."""
    total, seen = 0, set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                info = os.lstat(f"{parent}/{name}")
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_size
    return total
