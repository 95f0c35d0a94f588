"""Which secrets and configs one agent has been given, and which it must get or forget next: pure bookkeeping of one
session.

A node gets what its tasks refer to, from their assignment until they are to stop, or have ended; nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from swarmlet.errors import Internal, Unavailable
from swarmlet.model.dependency import Config, Secret
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.wire.contents import MESSAGE_BYTES, Content
from swarmlet_manager.dispatch.feed import belongs
from swarmlet_manager.state import State

#: Kind (secret, config), id, and the name that the reference has for it.
Wanted = tuple[str, str, str]


class ContentFeed:
    """One session's view. `note` what may have changed, then `take` what to send."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self._of_task: dict[str, frozenset[Wanted]] = {}
        self._used: Counter[Wanted] = Counter()
        self._lacking: set[Wanted] = set()
        self._dirty: set[str] = set()
        self._full = True

    def note(self, task_id: str) -> None:
        if not self._full:
            self._dirty.add(task_id)

    def take(self, state: State) -> tuple[list[Wanted], list[str]]:
        """(what to give the agent, ids of what it is to forget); what was taken counts as given."""
        before = set(self._used)
        if self._full:
            self._full = False
            dirty = {task.id for task in state.tasks_on_node(self.node_id)}
        else:
            dirty, self._dirty = self._dirty, set()
        for task_id in dirty:
            self._weigh(task_id, self._wanted(state.tasks.get(task_id)))
        after = set(self._used)
        self._lacking &= after
        again = {each for task_id in dirty for each in self._of_task.get(task_id, ())} & self._lacking
        self._lacking -= again
        gone = {ident for _, ident, _ in before} - {ident for _, ident, _ in after}
        return sorted(after - before | again), sorted(gone)

    def lacks(self, content: Content) -> None:
        """The agent was told that there is no data: the next task that needs it asks anew."""
        self._lacking.add((content.kind, content.id, content.name))

    def _wanted(self, task: Task | None) -> frozenset[Wanted]:
        if task is None or not belongs(task, self.node_id):
            return frozenset()
        if task.desired_state > TaskState.RUNNING or task.status.state > TaskState.RUNNING:
            return frozenset()
        return wanted_by(task)

    def _weigh(self, task_id: str, wanted: frozenset[Wanted]) -> None:
        for each in self._of_task.pop(task_id, ()):
            self._used[each] -= 1
            if not self._used[each]:
                del self._used[each]
        if wanted:
            self._of_task[task_id] = wanted
            self._used.update(wanted)


def wanted_by(task: Task) -> frozenset[Wanted]:
    spec = task.spec.container_spec
    if spec is None or not (spec.secrets or spec.configs):
        return frozenset()
    secrets = (("secret", ref.secret_id, ref.secret_name) for ref in spec.secrets)
    configs = (("config", ref.config_id, ref.config_name) for ref in spec.configs if ref.file is not None)
    return frozenset((*secrets, *configs))


def contents_of(state: State, wanted: Iterable[Wanted], open_: Callable[[bytes, str], bytes]) -> Iterator[Content]:
    """open_: unseals. What is not there, or cannot be unsealed, is told as lacking."""
    for kind, ident, name in wanted:
        record: Secret | Config | None = (state.secrets if kind == "secret" else state.configs).get(ident)
        if record is None or record.name != name:
            yield Content(id=ident, kind=kind, name=name, lacking=f"{kind} not found: {name}")
            continue
        try:
            data = open_(record.sealed, record.id)
        except (Internal, Unavailable) as err:
            yield Content(id=ident, kind=kind, name=name, lacking=f"{kind} {name}: {err}")
        else:
            yield Content(id=ident, kind=kind, name=name, data=data, templating=record.templating)


def in_messages(contents: Iterable[Content], most: int = MESSAGE_BYTES) -> Iterator[tuple[Content, ...]]:
    """In as many messages as their size takes."""
    batch: list[Content] = []
    size = 0
    for content in contents:
        if batch and size + len(content.data) > most:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(content)
        size += len(content.data)
    if batch:
        yield tuple(batch)
