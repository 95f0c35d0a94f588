"""SELinux on this host: whether there is any, what its policy says of containers, and labels of files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument
from swarmlet_agent.decide.selinux import NEVER_RELABELLED, Policy, parse_policy

#: selinuxfs; writing a label to its file `context` asks whether the policy knows it.
KERNEL = Path("/sys/fs/selinux")
CURRENT = Path("/proc/self/attr/current")
FOLDER = Path("/etc/selinux")
#: Goes before the policy's own file, where containers' policy comes as a package of its own.
CONTEXTS = Path("/usr/share/containers/selinux/contexts")
ATTRIBUTE = "security.selinux"
_DEFAULT_TYPE = "targeted"
_NO_LABELS = (errno.ENOTSUP, errno.EOPNOTSUPP)


def read_policy(wanted: bool) -> Policy | None:
    """What the host's policy says, None if that is not wanted; blocking. InvalidArgument if there is none."""
    if not wanted:
        return None
    if not is_enabled():
        raise InvalidArgument(
            "selinux_enabled: SELinux is not on in this host's kernel, or has no policy: install one and boot with "
            "security=selinux (permissive mode will do), or take the setting out"
        )
    policy = parse_policy(_contexts())
    for label in (policy.process, policy.file):
        if not _is_known(str(label)):
            raise InvalidArgument(f"selinux_enabled: this host's policy does not know {label}: use one for containers")
    return policy


def is_enabled() -> bool:
    """In permissive mode too. Before a policy is loaded, everything is of the kernel's own label."""
    if not (KERNEL / "enforce").exists():
        return False
    return CURRENT.read_text().strip("\0\n") != "kernel"


def label_source(source: str, label: str) -> None:
    """Label a bind's or volume's files, all that lie below included; blocking.

    InvalidArgument for folders that are the host's own; Internal if the kernel refuses.
    """
    real = os.path.realpath(source)
    if real in NEVER_RELABELLED:
        raise InvalidArgument(f"SELinux relabeling of {real} is not allowed")
    try:
        _label_tree(real, label.encode())
    except OSError as err:
        raise Internal(f"error setting label on mount source '{real}': {err.strerror or err}") from err


def label_files(files: Iterable[Path], label: str) -> None:
    """Blocking. Internal if the kernel refuses."""
    for file in files:
        try:
            _label(str(file), label.encode())
        except OSError as err:
            if err.errno not in _NO_LABELS:
                raise Internal(f"error setting label on {file}: {err.strerror or err}") from err


def _label_tree(top: str, label: bytes) -> None:
    """By descriptors of folders: containers may exchange what lies below for links while we look. OSError."""
    try:
        _label(top, label)
    except OSError as err:
        if err.errno in _NO_LABELS:  # nor will what lies below have any
            return
        raise
    entered: list[tuple[int, list[str]]] = []  # open folders, and those in them that are still to be entered

    def enter(name: str, above: int | None) -> None:
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        except (FileNotFoundError, NotADirectoryError):  # gone, or something else by now
            return
        entered.append((folder, inner := []))
        inner += _label_folder(folder, label)

    try:
        enter(top, None)
        while entered:
            folder, inner = entered[-1]
            if inner:
                enter(inner.pop(), folder)
            else:
                os.close(entered.pop()[0])
    finally:
        for folder, _ in entered:
            os.close(folder)


def _label_folder(folder: int, label: bytes) -> list[str]:
    """What lies in it; the names of the folders among it."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                _label(f"/proc/self/fd/{folder}/{entry.name}", label)
            except FileNotFoundError:
                continue
            except OSError as err:  # something else may be mounted there
                if err.errno not in _NO_LABELS:
                    raise
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
    return folders


def _label(path: str, label: bytes) -> None:
    """A link itself, not where it leads. What has the label already is not touched, nor has its times changed."""
    with suppress(OSError):  # it has none yet
        if os.getxattr(path, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0") == label:
            return
    os.setxattr(path, ATTRIBUTE, label, follow_symlinks=False)


def _contexts() -> str:
    for file in (CONTEXTS, FOLDER / _policy_type() / "contexts" / "lxc_contexts"):
        with suppress(FileNotFoundError):
            return file.read_text()
    return ""


def _policy_type() -> str:
    with suppress(FileNotFoundError):
        for line in (FOLDER / "config").read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "SELINUXTYPE":
                return value.strip()
    return _DEFAULT_TYPE


def _is_known(label: str) -> bool:
    try:
        (KERNEL / "context").write_text(f"{label}\0")
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return False
    return True
