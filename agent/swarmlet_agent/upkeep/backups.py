"""A manager's state in one file, and a manager made of such a file.

The file is a tar archive: `backup.json` (what it is), `etcd.snapshot`, and who this manager is: `membership.json`,
`tls/` and `manager/` of the data folder. Whoever reads its keys owns the cluster, so it is readable
by its owner alone. A restore touches nothing before the whole new state lies beside the old one.

An etcd of the user's own is in the file as well, but its members are the user's to restore (etcdctl snapshot restore).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from swarmlet.config import RESTORED, AgentSettings, EtcdSettings
from swarmlet.errors import Conflict, Internal, InvalidArgument, Unavailable
from swarmlet.pki import write_private
from swarmlet.release import RELEASE
from swarmlet_agent.manager_process import ManagerProcess

#: What of the data folder says who a manager is, in the order in which a restore puts it there.
PARTS = ("manager", "tls", "membership.json")
MANIFEST, SNAPSHOT = "backup.json", "etcd.snapshot"
#: Changes when a file of an older release can no longer be read.
FORMAT = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    release: str
    made_at: int  # seconds of the epoch


def save(settings: AgentSettings, file: Path) -> None:
    """Write a backup of this host's manager, which may run.

    Conflict if the host is no manager or the file is there, Unavailable if no endpoint of the user's etcd is well.
    """
    data_dir = Path(settings.data_dir)
    if not (data_dir / "manager").is_dir():
        raise Conflict(f"this host is not a manager: {data_dir} has no cluster's state")
    if file.exists():
        raise Conflict(f"{file} exists already")
    with _scratch(data_dir) as scratch:
        _take_snapshot(settings.etcd, data_dir, scratch / SNAPSHOT)
        partial = file.with_name(f".{file.name}.partial")
        try:
            _pack(partial, data_dir, scratch / SNAPSHOT)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


async def restore(settings: AgentSettings, file: Path) -> None:
    """Make this host the manager that the backup is of; the caller holds the agent's lock.

    InvalidArgument if the file is no whole backup (nothing has been touched then). An etcd of the user's own is not
    touched.
    """
    data_dir = Path(settings.data_dir)
    with _scratch(data_dir) as scratch:
        _unpack(file, scratch)
        (scratch / "manager").chmod(0o700)
        if not settings.etcd.endpoints:
            data = scratch / "manager" / "etcd" / "data"
            # From etcd 3.6 on, etcdctl does not.
            program = "etcdutl" if shutil.which("etcdutl") else "etcdctl"
            asked = ("snapshot", "restore", str(scratch / SNAPSHOT), "--data-dir", str(data))
            _run(*asked, folder=scratch, program=program)
        write_private(scratch / "manager" / RESTORED, str(time.time_ns() // 1000))
        await ManagerProcess(settings, lambda: "").remove()
        for part in PARTS:
            target = data_dir / part
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(scratch / part, target)


def _take_snapshot(etcd: EtcdSettings, data_dir: Path, file: Path) -> None:
    """Of the embedded etcd, or of the first of the user's endpoints that is well."""
    if not etcd.endpoints:
        # The client takes a socket's path as relative, and no long one.
        _run("--endpoints", "unix://etcd:0", "snapshot", "save", str(file), folder=data_dir / "manager/etcd")
        return
    files = (("--cacert", etcd.ca), ("--cert", etcd.cert), ("--key", etcd.key))
    identity = [word for pair in files if pair[1] for word in pair]
    failure = ""
    for endpoint in etcd.endpoints:
        asked = ("--endpoints", endpoint, *identity)
        try:
            _run(*asked, "--command-timeout=5s", "endpoint", "health", folder=file.parent)
        except Internal as err:
            failure = str(err)
            continue
        _run(*asked, "snapshot", "save", str(file), folder=file.parent)
        return
    raise Unavailable(f"none of etcd's endpoints is well: {failure}")


@contextlib.contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """In the data folder, so that what is in it can be renamed into place, and nobody else reads it."""
    with tempfile.TemporaryDirectory(prefix="backup.", dir=data_dir) as folder:
        yield Path(folder)


def _pack(partial: Path, data_dir: Path, snapshot: Path) -> None:
    manifest = msgspec.json.encode(Manifest(format=FORMAT, release=RELEASE, made_at=int(time.time())))
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as output:
        with tarfile.open(fileobj=output, mode="w") as tar:
            entry = tarfile.TarInfo(MANIFEST)
            entry.size, entry.mode, entry.mtime = len(manifest), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(manifest))
            tar.add(snapshot, SNAPSHOT)
            for part in PARTS:
                tar.add(data_dir / part, part, filter=_state_alone)
        output.flush()
        os.fsync(output.fileno())


def _state_alone(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """etcd's own folder is in the snapshot; pid files and locks are of the running processes."""
    if entry.name == "manager/etcd" or entry.name.endswith((".pid", ".lock")):
        return None
    return entry if entry.isfile() or entry.isdir() else None


def _unpack(file: Path, folder: Path) -> None:
    try:
        with tarfile.open(file) as tar:
            names = {entry.name.partition("/")[0] for entry in tar}
            if missing := {MANIFEST, SNAPSHOT, *PARTS} - names:
                raise InvalidArgument(f"{file} is no backup of a manager: it lacks {', '.join(sorted(missing))}")
            if strange := names - {MANIFEST, SNAPSHOT, *PARTS}:
                raise InvalidArgument(f"{file} is no backup of a manager: it has {sorted(strange)[0]!r} in it")
            for entry in tar:
                _extract(tar, entry, folder)
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except OSError as err:
        raise InvalidArgument(f"cannot read {file}: {err.strerror or err}") from err
    except (tarfile.TarError, msgspec.DecodeError) as err:
        raise InvalidArgument(f"{file} is no backup of a manager: {err}") from err
    if manifest.format != FORMAT:
        raise InvalidArgument(f"{file} is of release {manifest.release}, which this one ({RELEASE}) does not read")


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """Files and folders of this folder, for their owner alone (the tarfile module of Python 3.11.2 has no filters)."""
    target = folder / entry.name
    content = tar.extractfile(entry) if entry.isfile() else None
    if ".." in target.parts or (content is None and not entry.isdir()):
        raise InvalidArgument(f"backup: {entry.name!r} is neither a file nor a folder of a manager's")
    if content is None:
        target.mkdir(mode=0o700, exist_ok=True)
    else:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            shutil.copyfileobj(content, output)


def _run(*args: str, folder: Path, program: str = "etcdctl") -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    try:
        done = subprocess.run(
            [program, *args], cwd=folder, env=environ | {"ETCDCTL_API": "3"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True,
        )
    except FileNotFoundError as err:
        raise Internal("etcdctl is not installed: apt install etcd-client") from err
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Internal(f"{program}: {lines[-1] if lines else 'no message'}")
