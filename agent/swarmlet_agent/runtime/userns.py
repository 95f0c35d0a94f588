"""User namespaces for remapped containers: one for each mapping, kept by a bind mount under the run folder.

Containers with the same mapping share it, as their ids are the same ones on the host anyway: so a container can join
another's namespaces, its network can be made before it, and the files of its root can be shown with its ids.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.decide.remap import Remap, mappings, parse_remap
from swarmlet_agent.runtime import linux

_TIMEOUT_S = 10.0
#: A namespace lives as long as a process in it: this one says that it is there, and ends with its standard input.
_STAND_IN = ("sh", "-c", "echo; read end")


def read_remap(setting: str, folder: Path) -> Remap | None:
    """The mapping that `userns_remap` means on this host; blocking. folder: of subuid and subgid. InvalidArgument."""
    return parse_remap(
        setting, user_of=_user, group_of=_group, subuid=_text(folder / "subuid"), subgid=_text(folder / "subgid")
    )


def ensure_namespace(folder: Path, remap: Remap) -> Path:
    """The file of the namespace, made if it is not there; blocking. Internal if the kernel refuses.

    folder: below a mount that the OCI runtime sees too.
    """
    lines = [_lines(remap.uids), _lines(remap.gids)]
    place = folder / hashlib.sha256("|".join(lines).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    if _is_mounted(place):
        return place
    place.touch()
    try:
        with stand_in("unshare", "--user") as pid:
            for name, text in zip(("uid_map", "gid_map"), lines, strict=True):
                Path(f"/proc/{pid}/{name}").write_text(text)
            linux.mount(f"/proc/{pid}/ns/user", str(place), flags=linux.MS_BIND)
    except OSError as err:
        raise Internal(f"a user namespace cannot be made: {err.strerror or err}") from err
    return place


def release(folder: Path) -> None:
    """Let go of every namespace kept there; nothing there is fine. OSError."""
    if not folder.is_dir():
        return
    for place in folder.iterdir():
        while _is_mounted(place):
            linux.umount(str(place), linux.MNT_DETACH)
        place.unlink()
    folder.rmdir()


@contextmanager
def stand_in(*words: str) -> Iterator[int]:
    """A process that does nothing, started by these words; its pid. Internal if it does not come up."""
    process = subprocess.Popen(
        [*words, *_STAND_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            _, complaint = process.communicate(timeout=_TIMEOUT_S)
            raise Internal(f"{words[0]}: {complaint.decode(errors='replace').strip()}")
        yield process.pid
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_TIMEOUT_S)  # closes its standard input
        process.kill()
        process.wait()


def _lines(ranges: tuple[tuple[int, int], ...]) -> str:
    return "".join(f"{inner} {outer} {count}\n" for inner, outer, count in mappings(ranges))


def _is_mounted(place: Path) -> bool:
    try:
        return os.stat(place).st_dev != os.stat(place.parent).st_dev
    except FileNotFoundError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _user(text: str) -> tuple[str, int]:
    found = pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
    return found.pw_name, found.pw_uid


def _group(text: str) -> tuple[str, int]:
    found = grp.getgrgid(int(text)) if text.isdigit() else grp.getgrnam(text)
    return found.gr_name, found.gr_gid
