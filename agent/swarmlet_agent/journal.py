"""The node's own durable state: a few key-value tables in one SQLite file.

What an agent has answered as done must survive `kill -9` and power loss, so a write returns only after
its transaction is on disk (WAL, synchronous=FULL). One writer thread gathers whatever queued up while the
last transaction was being synced into the next one, so many writers share an fsync.

Values are bytes that their owner encodes (msgspec); a table belongs to one owner. Reading happens at
start only: owners keep their records in memory.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swarmlet.errors import Internal

#: Tables, by owner. A new one is added here and is created on the next start.
TABLES = (
    "containers", "images", "networks", "overlay_parts", "mesh", "ways", "endpoints", "volumes", "tasks", "meta",
    "blobs", "kept", "build",
)


@dataclass(frozen=True, slots=True)
class Write:
    """One change: value None deletes the key."""

    table: str
    key: str
    value: bytes | None


@dataclass(slots=True)
class _Batch:
    writes: tuple[Write, ...]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class Journal:
    """Open with `Journal(path)`, end with `close()`; only one process may hold it (SQLite's lock)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        for table in TABLES:
            self._database.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def items(self, table: str) -> list[tuple[str, bytes]]:
        """All (key, value) of a table, by key. For start-up, before the first write."""
        return list(self._database.execute(f"SELECT key, value FROM {_known(table)} ORDER BY key"))

    async def write(self, *writes: Write) -> None:
        """Apply all writes in one transaction; returns once they are on disk. Internal if the disk refuses."""
        loop = asyncio.get_running_loop()
        batch = _Batch(writes, loop, loop.create_future())
        for write in writes:
            _known(write.table)
        self._queue.put(batch)
        await batch.done

    async def put(self, table: str, key: str, value: bytes) -> None:
        await self.write(Write(table, key, value))

    async def delete(self, table: str, key: str) -> None:
        await self.write(Write(table, key, None))

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batches, ending = [first], False
            while not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    ending = True
                    break
                batches.append(following)
            error = self._commit(write for batch in batches for write in batch.writes)
            for batch in batches:
                # A loop that has been closed has no one left to tell.
                if not batch.loop.is_closed():
                    batch.loop.call_soon_threadsafe(_finish, batch.done, error)
            if ending:
                return

    def _commit(self, writes: Iterable[Write]) -> Exception | None:
        try:
            self._database.execute("BEGIN")
            for write in writes:
                if write.value is None:
                    self._database.execute(f"DELETE FROM {write.table} WHERE key = ?", (write.key,))
                else:
                    self._database.execute(f"REPLACE INTO {write.table} VALUES (?, ?)", (write.key, write.value))
            self._database.execute("COMMIT")
        except sqlite3.Error as err:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            return Internal(f"the node's journal cannot be written: {err}")
        return None


def _known(table: str) -> str:
    if table not in TABLES:
        raise KeyError(table)
    return table


def _finish(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # the writer was cancelled while it waited; the write stands all the same
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
