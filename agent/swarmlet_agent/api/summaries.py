"""The answer to `docker ps`, kept ready: encoded once, and again only for what has changed.

Container records are frozen, so an answer made from the same records and image names is the same answer, but for the
words on how long ago: each is good until the first of them changes. Then, or once a record has changed, only the
changed lines are encoded anew.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from swarmlet.engine_api.query import Query
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet_agent.api.listing import ListQuery, select
from swarmlet_agent.api.shapes.durations import next_change
from swarmlet_agent.api.shapes.summary import container_summary
from swarmlet_agent.decide.links import link_names
from swarmlet_agent.engine.container import Container
from swarmlet_agent.images.types import Image

#: Answers to different questions (filters) kept at a time; the one least lately asked goes first.
_KEPT = 32


class Containers(Protocol):
    def get(self, ref: str) -> Container: ...

    def list(self) -> Sequence[Container]: ...


class ImageNames(Protocol):
    @property
    def revision(self) -> int:
        """Grows with every change of images or their names."""
        ...

    def get(self, ref: str) -> Image: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """until: when (ns) a text in it is out of date."""

    body: bytes
    containers: Sequence[Container]
    images: int
    made_at: int
    until: int


@dataclass(frozen=True, slots=True)
class _Line:
    container: Container
    image_name: str
    linked: tuple[str, ...]
    text: bytes
    until: int


class Summaries:
    """Lists without sizes, which have to be measured each time."""

    def __init__(self, containers: Containers, images: ImageNames, now: Callable[[], int] = time.time_ns) -> None:
        self._containers = containers
        self._images = images
        self._now = now
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._lines: dict[str, _Line] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._names_of = -1

    def body(self, call: Query, raw_query: str) -> bytes:
        """Engine API ContainerList, encoded. raw_query: the query as sent, which the answer is kept by."""
        now, every, images = self._now(), self._containers.list(), self._images.revision
        kept = self._answers.get(raw_query)
        if (
            kept is not None and kept.images == images and kept.made_at <= now < kept.until
            and kept.containers == every  # the same objects: compared by identity first
        ):  # fmt: skip
            self._answers.move_to_end(raw_query)
            return kept.body
        if images != self._names_of:
            self._names.clear()
            self._names_of = images
        linked = names_by_links(every)
        lines = [self._line(each, now, linked.get(each.name, ())) for each in self.select(call, every)]
        body = b"[" + b",".join(line.text for line in lines) + b"]\n"
        until = min((line.until for line in lines), default=now + 3600 * 1_000_000_000)
        self._answers[raw_query] = _Answer(body, every, images, now, until)
        self._answers.move_to_end(raw_query)
        if len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        if len(self._lines) > 2 * len(every) + _KEPT:
            self._lines.clear()
        return body

    def select(self, call: Query, every: Sequence[Container]) -> list[Container]:
        """The containers asked for, of all there are. InvalidArgument, NotFound."""
        query = ListQuery(call.filters(), all=call.flag("all"), limit=call.number("limit", 0) or 0)
        return select(
            every, query, find=self._containers.get, image_id=lambda ref: self._images.get(ref).id
        )

    def image_name(self, container: Container) -> str:
        """As the client named it, while that name still means the same image."""
        if container.image_ref == container.image_id:
            return container.image_id
        try:
            meant = self._images.get(container.image_ref)
        except (NotFound, InvalidArgument):
            return container.image_id
        return container.image_ref if meant.id == container.image_id else container.image_id

    def _line(self, container: Container, now: int, linked: tuple[str, ...]) -> _Line:
        name_key = (container.image_ref, container.image_id)
        if (name := self._names.get(name_key)) is None:
            name = self._names[name_key] = self.image_name(container)
        kept = self._lines.get(container.id)
        if (
            kept is not None and kept.container is container and kept.image_name == name and kept.linked == linked
            and now < kept.until
        ):  # fmt: skip
            return kept
        text = msgspec.json.encode(container_summary(container, name, now, linked=linked))
        line = self._lines[container.id] = _Line(container, name, linked, text, next_change(container.state, now))
        return line


def names_by_links(containers: Sequence[Container]) -> Mapping[str, tuple[str, ...]]:
    """By a container's name: its names by links of all these."""
    return link_names(each.host.links for each in containers if each.host.links)
