"""The build context: what the client sent, unpacked into a folder of its own, without what .dockerignore leaves out.

The folder lies in the image store's folder for temporary files, which is emptied at start, and is gone when the build
ends.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from swarmlet.errors import InvalidArgument
from swarmlet.log import get_logger
from swarmlet_agent.builder.dockerfile import MAX_BYTES, BadDockerfile
from swarmlet_agent.builder.patterns import Ignore, parse_ignore
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.untar import untar
from swarmlet_agent.images.layers import stoppable
from swarmlet_agent.images.spool import spooled
from swarmlet_agent.images.unpack import remove_tree

log = get_logger(__name__)
_IGNORE = ".dockerignore"
DEFAULT_NAME = "Dockerfile"


class WorkFolders:
    """Folders of builds under way. They are removed behind the answer: many files take the disk a while."""

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._removals: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Path]:
        """A build's own folder, which is nobody's when the block ends."""
        folder = self._tmp / f"build-{secrets.token_hex(8)}"
        await asyncio.to_thread(folder.mkdir, 0o700)
        try:
            yield folder
        finally:
            removal = asyncio.create_task(self._remove(folder), name="remove a build's folder")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def close(self) -> None:
        while self._removals:
            await asyncio.wait(tuple(self._removals))

    async def _remove(self, folder: Path) -> None:
        try:
            await asyncio.to_thread(remove_tree, folder)
        except OSError as err:
            log.warning("a build's files stay behind until the next start", folder=str(folder), error=str(err))


async def receive(chunks: AsyncIterator[bytes], folder: Path) -> Path:
    """The tar that a client sends, unpacked below `folder`. InvalidArgument for anything else."""
    context = folder / "context"
    async with spooled(chunks, folder) as upload:
        if not upload.stat().st_size:
            await asyncio.to_thread(context.mkdir)
            return context
        await stoppable(lambda stopped: _unpack(upload, context, stopped))
    return context


def _unpack(upload: Path, context: Path, stopped: Callable[[], bool]) -> None:
    context.mkdir()
    with upload.open("rb", buffering=0) as source, Root(context) as root:
        untar(source.read, root, what="the build context", stopped=stopped)


def read_dockerfile(context: Path, name: str) -> str:
    """Its text; afterwards what .dockerignore names is no longer in the context. Blocking. BadDockerfile."""
    name = name or DEFAULT_NAME
    if posixpath.normpath(name).split("/")[0] == "..":
        raise BadDockerfile(f"forbidden path outside the build context: {name} ()")  # dockerd's words
    with Root(context) as root:
        given = name
        if name == DEFAULT_NAME and root.stat(name) is None and root.stat(name.lower()) is not None:
            given = name.lower()
        text = _read(root, given)
        if text is None:
            raise BadDockerfile(f"Cannot locate specified Dockerfile: {name}")
        if not text.strip():
            raise BadDockerfile(f"the Dockerfile ({name}) cannot be empty")
        rules = _read(root, f"{given}.dockerignore")
        rules = _read(root, _IGNORE) if rules is None else rules
        if rules is not None:
            ignore = parse_ignore(rules)
            if ignore.patterns:
                _drop(root, ignore)
        return text


def _read(root: Root, name: str) -> str | None:
    handle = root.open(name, os.O_RDONLY | os.O_NONBLOCK)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except IsADirectoryError:
            return None
    if len(data) > MAX_BYTES:
        raise InvalidArgument(f"{name} is larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        raise InvalidArgument(f"{name} is not UTF-8 text") from err


def _drop(root: Root, ignore: Ignore) -> None:
    """Remove what is ignored; folders that are out are looked into only if something in them may be in again."""
    for folder, names, files in os.walk(root.path, topdown=True):
        above = os.path.relpath(folder, root.path)
        above = "" if above == "." else above + "/"
        for name in [*names, *files]:
            if not ignore.matches(above + name):
                continue
            place = os.path.join(folder, name)
            if name in names and not os.path.islink(place):
                if ignore.has_exceptions:
                    continue
                names.remove(name)
                remove_tree(place)
            else:
                os.unlink(place)
    if not ignore.has_exceptions:
        return
    for folder, _, _ in os.walk(root.path, topdown=False):
        path = os.path.relpath(folder, root.path)
        if path != "." and ignore.matches(path) and not os.listdir(folder):
            os.rmdir(folder)
