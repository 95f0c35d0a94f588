"""The key that secrets and configs are sealed with (ADR 21).

It is in no store: each manager has it in its state folder, the first leader makes it, and a manager that has not got
it asks another one over TLS, where both show certificates of managers. The cluster's record only tells its digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp import web
from msgspec.structs import replace

from swarmlet.engine_api.router import Call, Route
from swarmlet.errors import Internal, NotAManager, StaleView, Unavailable
from swarmlet.log import get_logger
from swarmlet.model.cluster import Cluster
from swarmlet.model.states import Role
from swarmlet.pki import OU
from swarmlet.tls import require_role
from swarmlet.wire.joining import DATA_KEY_PATH
from swarmlet_manager.ca.seal import KEY_BYTES, new_key, seal_bytes, unseal_bytes
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.state import Put

log = get_logger(__name__)

FILE = "data-key"
#: How long another manager may take to answer, and how often all are asked.
ASK_S, AGAIN_S = 5.0, 2.0


class Vault:
    """One per manager process. others: "host:port" of the other managers, as far as they are known."""

    def __init__(self, store: StorePort, folder: Path, others: Callable[[], list[str]] = list) -> None:
        self._store = store
        self._file = folder / FILE
        self._others = others
        self._key = _read(self._file)

    # Use

    def seal(self, data: bytes, about: str) -> bytes:
        """Unavailable while this manager has no key."""
        return seal_bytes(self._usable(), data, about)

    def open(self, sealed: bytes, about: str) -> bytes:
        """Unavailable; Internal for what was sealed with another key, or for something else."""
        return unseal_bytes(self._usable(), sealed, about)

    @property
    def ready(self) -> bool:
        """Whether this manager has the cluster's key."""
        digest = self._cluster().data_key_digest
        return bool(self._key) and hmac.compare_digest(digest, _digest(self._key, self._cluster()))

    def _usable(self) -> bytes:
        if not self.ready:
            raise Unavailable(
                f"this manager has not got the key of the cluster's secrets and configs yet: it asks the other "
                f"managers; if none has it, bring {self._file} back from a backup"
            )
        return self._key

    # Coming by it

    async def ensure(self) -> None:
        """The leader's: make the key where the cluster has none yet. On disk before its digest is in the store."""
        while not (cluster := self._cluster()).data_key_digest:
            if not self._key:
                await asyncio.to_thread(self._keep, new_key())
            try:
                await self._store.commit([Put(replace(cluster, data_key_digest=_digest(self._key, cluster)))])
            except StaleView:
                continue
            log.info("key of secrets and configs made", cluster_id=cluster.id)

    async def fetch(self, tls: ssl.SSLContext) -> None:
        """Until this manager has the cluster's key: from one that has it."""
        told = False
        while not self.ready:
            if self._cluster().data_key_digest:
                for address in self._others():
                    if await self._ask(address, tls):
                        log.info("key of secrets and configs received", manager=address)
                        return
                if not told:
                    log.warning("the key of secrets and configs is missing; other managers are asked for it")
                    told = True
            await asyncio.sleep(AGAIN_S)

    def routes(self) -> list[Route]:
        return [Route("GET", DATA_KEY_PATH, self.hand_out)]

    async def hand_out(self, call: Call) -> web.StreamResponse:
        """200; 401, 403 for who is no manager, 503 without the key."""
        require_role(call.request.transport, (Role.MANAGER,))
        return web.Response(body=self._usable(), content_type="application/octet-stream")

    async def _ask(self, address: str, tls: ssl.SSLContext) -> bool:
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.get(
                    f"https://{address}{DATA_KEY_PATH}", ssl=tls, server_hostname=OU[Role.MANAGER]
                ) as answer,
            ):
                key = await answer.content.read(KEY_BYTES + 1) if answer.status == 200 else b""
        except (aiohttp.ClientError, OSError, TimeoutError) as err:
            log.debug("a manager does not hand out the key", manager=address, reason=repr(err))
            return False
        if not hmac.compare_digest(_digest(key, self._cluster()), self._cluster().data_key_digest):
            return False
        await asyncio.to_thread(self._keep, key)
        return True

    def _keep(self, key: bytes) -> None:
        """On disk, then in use. Blocking."""
        draft = self._file.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._key = key

    def _cluster(self) -> Cluster:
        cluster = self._store.state.cluster
        if cluster is None:
            raise NotAManager
        return cluster


def _digest(key: bytes, cluster: Cluster) -> bytes:
    """Tells one key from another and gives nothing of it away: it is 32 random bytes."""
    return hashlib.sha256(b"swarmlet data key\0" + cluster.id.encode() + b"\0" + key).digest()


def _read(file: Path) -> bytes:
    """b"" if there is none. Internal for what is no key."""
    try:
        key = file.read_bytes()
    except FileNotFoundError:
        return b""
    if len(key) != KEY_BYTES:
        raise Internal(f"{file} is no key of {KEY_BYTES} bytes: bring it back from a backup, or remove it")
    return key
