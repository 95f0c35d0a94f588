"""What RUN --mount=type=cache keeps between builds: `<data>/build-caches/<name>/`, and `<name>.json` about it.

Nothing that a build's result may depend on, so nothing is synced; what is there without a file about it is older than
such files and is listed all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swarmlet.model.base import Record
from swarmlet_agent.builder.mounts import RunMount
from swarmlet_agent.builder.pruning import CACHE_MOUNT, Item
from swarmlet_agent.images.manifests import digest_of
from swarmlet_agent.images.rootfs import tree_size
from swarmlet_agent.images.unpack import remove_tree

_DOOMED = ".removed-"


class About(Record, frozen=True, kw_only=True):
    """Times in ns."""

    description: str = ""
    created_at: int = 0
    used_at: int = 0
    uses: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """What a new cache begins with. name: it has the same content whenever it has the same name."""

    name: str
    fill: Callable[[Path], Awaitable[None]]


class MountCaches:
    """One per builder. All calls on the loop; files are touched in threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    async def recover(self) -> None:
        """At start: finish removals."""
        await asyncio.to_thread(self._recover)

    async def take(self, wish: RunMount, stack: AsyncExitStack, base: Base | None = None) -> Path:
        """A cache's folder, for as long as the stack; it is made if it is missing, with what `base` has.

        Caches of one id with different bases are different ones.

        "locked" waits for other steps that use it so; "private" takes another one then.
        """
        own = wish.id if base is None else f"{wish.id}\0{base.name}"
        ident = own
        if wish.sharing == "private":
            count = 0
            while (taken := self._locks.get(ident)) is not None and taken.locked():
                count += 1
                ident = f"{own}\0{count}"
        name = digest_of(ident.encode()).removeprefix("sha256:")[:32]
        self._users[name] += 1
        stack.callback(self._leave, ident, name)
        if wish.sharing != "shared":
            lock = self._locks.setdefault(ident, asyncio.Lock())
            await lock.acquire()
            stack.callback(lock.release)
        if base is not None and not (self._folder / name).exists():
            await self._fill(name, base)
        description = f"cached mount {wish.target} from RUN --mount=type=cache,id={wish.id}"
        await asyncio.to_thread(self._make, name, wish, description)
        return self._folder / name

    async def items(self) -> list[Item]:
        return await asyncio.to_thread(self._items, frozenset(+self._users))

    async def remove(self, names: Iterable[str]) -> None:
        """Those of them that no step uses."""
        for name in names:
            if not self._users[name]:
                # Out of the way at once: a step that begins now makes a new one.
                doomed = self._folder / f"{_DOOMED}{secrets.token_hex(8)}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._folder / name, doomed)
                    self._about(name).unlink(missing_ok=True)
                    await asyncio.to_thread(remove_tree, doomed)

    def _leave(self, ident: str, name: str) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._locks.pop(ident, None)

    async def _fill(self, name: str, base: Base) -> None:
        """All of it or nothing: a draft has the name of something that is to be removed."""
        draft = self._folder / f"{_DOOMED}{secrets.token_hex(8)}"
        await asyncio.to_thread(draft.mkdir, parents=True)
        try:
            await base.fill(draft)
            with contextlib.suppress(OSError):  # another step was faster
                os.rename(draft, self._folder / name)
        finally:
            if draft.exists():
                await asyncio.to_thread(remove_tree, draft)

    # in threads

    def _about(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, name: str) -> About:
        try:
            return msgspec.json.decode(self._about(name).read_bytes(), type=About)
        except (FileNotFoundError, msgspec.DecodeError):
            return About()

    def _recover(self) -> None:
        if self._folder.is_dir():
            for entry in self._folder.iterdir():
                if entry.name.startswith(_DOOMED):
                    remove_tree(entry)

    def _make(self, name: str, wish: RunMount, description: str) -> None:
        folder, now = self._folder / name, time.time_ns()
        before = self._read(name)
        if not before.created_at or not folder.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True)
            os.chown(folder, wish.uid, wish.gid)
            folder.chmod(wish.mode)
        about = About(
            description=description, created_at=before.created_at or now, used_at=now, uses=before.uses + 1
        )
        fresh = self._folder / f"{name}.{secrets.token_hex(4)}.new"
        fresh.write_bytes(msgspec.json.encode(about))
        os.replace(fresh, self._about(name))

    def _items(self, used: frozenset[str]) -> list[Item]:
        if not self._folder.is_dir():
            return []
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            about = self._read(entry.name)
            found.append(Item(
                key=entry.name, kind=CACHE_MOUNT, description=about.description, size_bytes=tree_size(Path(entry.path)),
                created_at=about.created_at, used_at=about.used_at, uses=about.uses, in_use=entry.name in used,
            ))
        return found
