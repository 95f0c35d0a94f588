"""What a user can ask of secrets and configs. Their data is sealed before it is written; see `control.commands`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from swarmlet.errors import OutOfSequence, StaleView
from swarmlet.model.dependency import ConfigSpec, Dependency, Kind, SecretSpec
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.decide import dependencies
from swarmlet_manager.state import Delete, Put


class Vault(Protocol):
    """Who has the cluster's data key (`ca.vault`)."""

    def seal(self, data: bytes, about: str) -> bytes:
        """Unavailable while this manager has no key."""
        ...

    def open(self, sealed: bytes, about: str) -> bytes:
        """Unavailable, and Internal for what was sealed with another key, or for something else."""
        ...


class Dependencies:
    """One per manager process. unique: held from a decision on what services refer to, to its commit."""

    def __init__(
        self, store: StorePort, vault: Vault, unique: asyncio.Lock, *, now: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._vault = vault
        self._unique = unique
        self._now = now
        self._new_id = new_id

    def all(self, kind: Kind) -> list[Dependency]:
        return list(self._store.state.dependencies(kind).values())

    def get(self, kind: Kind, ref: str) -> Dependency:
        """By id, name or id prefix. NotFound."""
        return self._store.state.find_dependency(kind, ref)

    def data(self, record: Dependency) -> bytes:
        return self._vault.open(record.sealed, record.id)

    async def create(self, kind: Kind, spec: SecretSpec | ConfigSpec) -> Dependency:
        """InvalidArgument, NotSupported; Conflict if the name is taken."""
        async with self._unique:
            data = dependencies.check_new(self._store.state, kind, spec)
            ident, now = self._new_id(), self._now()
            record = kind(
                id=ident, name=spec.name, labels=spec.labels, templating=dependencies.templating(spec.templating),
                sealed=self._vault.seal(data, ident), created_at=now, updated_at=now,
            )
            return await self._put(record)

    async def update(self, kind: Kind, ref: str, version: int, spec: SecretSpec | ConfigSpec) -> Dependency:
        """New labels. OutOfSequence for another version; InvalidArgument for a change of anything else."""
        record = self.get(kind, ref)
        dependencies.check_labels_alone(record, spec, self.data(record) if spec.data else b"")
        if version != record.version:
            raise OutOfSequence
        try:
            return await self._put(replace(record, labels=spec.labels, updated_at=self._now()))
        except StaleView as err:
            raise OutOfSequence from err

    async def remove(self, kind: Kind, ref: str) -> None:
        """InvalidArgument names the services that use it."""
        async with self._unique:
            record = self.get(kind, ref)
            dependencies.check_unused(self._store.state, record)
            await self._store.commit([Delete(record)])

    async def _put(self, record: Dependency) -> Dependency:
        stored = (await self._store.commit([Put(record)]))[0]
        assert isinstance(stored, Dependency)
        return stored
