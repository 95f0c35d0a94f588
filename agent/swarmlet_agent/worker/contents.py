"""Secrets and configs of this node's tasks: in memory, from the orders that bring them to those that end their use.

An agent that was killed has none of them until its next session brings them again; a task waits that long before it
starts.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

from swarmlet.errors import InvalidArgument
from swarmlet.model.dependency import SECRETS_FOLDER
from swarmlet.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference
from swarmlet.model.task import Task
from swarmlet.model.template import NodeFacts, expand, expand_payload, fields_of
from swarmlet.wire.contents import Content
from swarmlet_agent.engine.container import SuppliedFile

Reference = SecretReference | ConfigReference


class NotHere(Exception):
    """A secret or config has not come yet."""


class ContentStore:
    """One per worker."""

    def __init__(self) -> None:
        self._items: dict[str, Content] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, items: Iterable[Content]) -> None:
        self._items.update((item.id, item) for item in items)

    def forget(self, idents: Iterable[str]) -> None:
        for ident in idents:
            self._items.pop(ident, None)

    def keep_those_of(self, tasks: Iterable[Task]) -> None:
        """The others are needed no more."""
        needed = {ident_of(reference) for task in tasks for reference, _ in references(task.spec.container_spec)}
        self.forget(self._items.keys() - needed)

    def files(self, task: Task, node: NodeFacts) -> list[bytes]:
        """What is in the files of `supplied_files`, in their order. NotHere; InvalidArgument if it cannot be."""
        made = Expansion(self, task, node)
        return [made.content_of(reference) for reference, _ in references(task.spec.container_spec)]

    def get(self, ident: str) -> Content:
        """NotHere; InvalidArgument for one that the manager does not have."""
        found = self._items.get(ident)
        if found is None:
            raise NotHere(ident)
        if found.lacking:
            raise InvalidArgument(found.lacking)
        return found


class Expansion:
    """Templates of one task's secrets and configs."""

    def __init__(self, store: ContentStore, task: Task, node: NodeFacts) -> None:
        self._store = store
        self._spec = task.spec.container_spec or ContainerSpec()
        self._fields = fields_of(task, node)

    def content_of(self, reference: Reference) -> bytes:
        content = self._store.get(ident_of(reference))
        if not content.templating:
            return content.data
        functions = {"env": self._env, "secret": self._secret, "config": self._config}
        return expand_payload(content.data, self._fields, functions, f"{content.kind} {content.name}")

    def _env(self, name: str) -> bytes:
        """"" for one that the service does not set, as os.Getenv."""
        value = ""
        for entry in self._spec.env:
            key, _, given = entry.partition("=")
            if key == name:
                value = expand(given, self._fields, "env")
        return value.encode()

    def _secret(self, target: str) -> bytes:
        return self._by_target("secret", self._spec.secrets, target)

    def _config(self, target: str) -> bytes:
        return self._by_target("config", self._spec.configs, target)

    def _by_target(self, kind: str, candidates: Iterable[Reference], target: str) -> bytes:
        for reference in candidates:
            if reference.file is not None and reference.file.name == target:
                return self._store.get(ident_of(reference)).data
        raise InvalidArgument(f"{kind} target {target} not found")


def supplied_files(task: Task) -> tuple[SuppliedFile, ...]:
    """InvalidArgument for ids that are no numbers."""
    return tuple(
        SuppliedFile(
            target=posixpath.normpath(posixpath.join(_folder_of(reference), file.name)), uid=_number(file.uid),
            gid=_number(file.gid), mode=file.mode,
        )
        for reference, file in references(task.spec.container_spec)
    )


def references(spec: ContainerSpec | None) -> Iterator[tuple[Reference, FileTarget]]:
    """Those that are files in the container: a config may be for its runtime alone."""
    everything: tuple[Reference, ...] = () if spec is None else (*spec.secrets, *spec.configs)
    for reference in everything:
        if reference.file is not None:
            yield reference, reference.file


def ident_of(reference: Reference) -> str:
    return reference.secret_id if isinstance(reference, SecretReference) else reference.config_id


def _folder_of(reference: Reference) -> str:
    return SECRETS_FOLDER if isinstance(reference, SecretReference) else "/"


def _number(text: str) -> int:
    if not text.isdecimal():
        raise InvalidArgument(f"invalid user or group id {text!r} of a secret or config: expected a number")
    return int(text)
