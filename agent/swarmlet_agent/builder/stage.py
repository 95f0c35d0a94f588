"""One stage of a build, step by step: look into the cache, else do it, and keep what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ImageConfig
from swarmlet.model.times import parse_rfc3339
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.build import Build
from swarmlet_agent.builder.cache import CacheEntry, key_of
from swarmlet_agent.builder.dockerfile import BadDockerfile, parse_one
from swarmlet_agent.builder.output import Lane
from swarmlet_agent.builder.plan import Stage
from swarmlet_agent.builder.state import Scope, State, advance, begin_stage, change_of, encode_config, noted
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import MAX_LAYERS

#: Build arguments that need no ARG, and are neither in the history nor in the cache's keys.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
PREDEFINED = frozenset((*_PROXIES, *(name.upper() for name in _PROXIES)))


#: By kind of instruction.
Steps = Mapping[type[kinds.Instruction], Callable[["StageRun", Any], Awaitable[None]]]


class StageRun:
    """The state of a stage under way; used by one task."""

    def __init__(self, build: Build, stage: Stage, lane: Lane, sources: Iterable[State], steps: Steps) -> None:
        """sources: images of --cache-from; steps: how those instructions are done that need more than this file."""
        self.build, self.stage, self.lane, self._steps = build, stage, lane, steps
        self._sources = tuple(sources)
        self.state: State
        self.config: ImageConfig
        #: ARGs declared in this stage, with their values.
        self.args: dict[str, str] = {}
        self._own_cmd = False

    async def run(self) -> State:
        """The stage's image. What fails is raised, with everything said so far in the lane."""
        build, plan = self.build, self.build.plan
        number = plan.first_step[self.stage.number]
        await self._announce(number, self.stage.begin.code)
        if self.stage.base_stage >= 0:
            self.state = await build.results[self.stage.base_stage]
            build.bases[self.stage.number] = build.bases[self.stage.base_stage]
        else:
            self.state = await build.image(self.stage.image, self.stage.platform, self.lane)
            build.bases[self.stage.number] = self.state.id if self.state.short_id else ""
        triggers = self.state.config.on_build
        self.config = begin_stage(self.state.config)
        await self.lane.say(f" ---> {self.state.short_id}\n")
        await self._triggers(triggers)
        for step in self.stage.steps:
            number += 1
            await self._announce(number, step.code)
            await self.step(step)
            await self.lane.say(f" ---> {self.state.short_id}\n")
        if self.state.short_id:
            await self.lane.put({"aux": {"ID": self.state.id}})
        return self.state

    @property
    def scope(self) -> Scope:
        predefined = {
            name: value for name, value in self.build.options.build_args.items()
            if name in PREDEFINED and value is not None
        }
        return Scope(self.config, {**predefined, **self.args}, self.build.plan.escape)

    async def _announce(self, number: int, code: str) -> None:
        await self.lane.say(f"Step {number}/{self.build.plan.steps} : {code}")
        await self.lane.say("\n")

    async def _triggers(self, triggers: tuple[str, ...]) -> None:
        """ONBUILD instructions of the base: they come first."""
        if not triggers:
            return
        await self.lane.say(f"# Executing {len(triggers)} build trigger{'s' if len(triggers) > 1 else ''}\n")
        for text in triggers:
            await self.step(kinds.parse_instruction(parse_one(text)))
            await self.lane.say(f" ---> {self.state.short_id}\n")

    async def step(self, step: kinds.Instruction) -> None:
        """Do one instruction."""
        try:
            await self._step(step)
        except ValueError as err:
            raise BadDockerfile(str(err), step.line) from err

    async def _step(self, step: kinds.Instruction) -> None:
        if isinstance(step, kinds.Arg):
            await self._arg(step)
            return
        if (perform := self._steps.get(type(step))) is not None:
            await perform(self, step)
            return
        change = change_of(step, self.scope, own_cmd=self._own_cmd)
        if change is None:
            raise InvalidArgument(f"{step.code} cannot be built")
        if change.note:
            await self.lane.say(change.note)
        self._own_cmd = self._own_cmd or isinstance(step, kinds.Cmd)
        key = key_of(self.state, change.created_by, encode_config(change.config))
        if not await self.cached(key, change.config, change.created_by):
            self.keep(key, change.config, change.created_by, None, author=change.author)

    async def _arg(self, step: kinds.Arg) -> None:
        given, plan = self.build.options.build_args, self.build.plan
        shown = []
        for name, default in step.args:
            if name in given:
                self.build.used_args.add(name)
            value = given.get(name)
            if value is None and default is not None:
                value = self.scope.text(default)
            if value is None:
                value = plan.args.get(name, plan.builtin.get(name))
            if value is not None:
                self.args[name] = value
            shown.append(name if default is None else f"{name}={self.scope.text(default)}")
        created_by = noted(self.config, f" ARG {' '.join(shown)}")
        key = key_of(self.state, created_by)
        if not await self.cached(key, self.config, created_by):
            self.keep(key, self.config, created_by, None)

    # what every step ends with

    async def cached(self, key: str, config: ImageConfig, created_by: str, ran: Sequence[str] = ()) -> bool:
        """Whether an earlier build has done this; then its result is the state now. ran: see `keep`.

        With --cache-from only what those images are made of counts, as with dockerd: nothing if none is here.
        """
        options = self.build.options
        if options.no_cache:
            return False
        found = self.build.cache.find(key) if not options.cache_from else None
        if found is not None:
            self.build.cache_hits.append(key)
            self.state = self.build.pin(found)
            self.config = found.config
            await self.lane.say(" ---> Using cache\n")
            return True
        for source in self._sources:
            if self._taken_from(source, key, config, created_by, ran):
                await self.lane.say(" ---> Using cache\n")
                return True
        return False

    def _taken_from(
        self, source: State, key: str, config: ImageConfig, created_by: str, ran: Sequence[str]
    ) -> bool:
        """--cache-from: whether that image was built by just these steps so far, and this one next."""
        done = len(self.state.history)
        if len(source.history) <= done or source.chains[: len(self.state.chains)] != self.state.chains:
            return False
        before = zip(self.state.history, source.history, strict=False)
        if any((one.created_by, one.empty_layer) != (two.created_by, two.empty_layer) for one, two in before):
            return False
        entry = source.history[done]
        if entry.created_by != created_by:
            return False
        layer = None
        if not entry.empty_layer:
            layer = self.build.workshop.layer(source.chains[len(self.state.chains)])
            if layer is None:
                return False
        created = parse_rfc3339(entry.created) if entry.created else self.build.now()
        self.keep(key, config, created_by, layer, now=created, ran=ran)
        return True

    def keep(
        self, key: str, config: ImageConfig, created_by: str, layer: Layer | None, *, author: str | None = None,
        now: int | None = None, ran: Sequence[str] = (),
    ) -> None:
        """The step was done: the new state, and an entry for the cache. Nothing waits: the layer is pinned at once.

        ran: the command of a RUN, the build arguments that it has seen in front.
        """
        before = self.state
        if layer is not None and len(before.chains) >= MAX_LAYERS:
            raise InvalidArgument(f"max depth exceeded: an image can have {MAX_LAYERS} layers")
        created = self.build.now() if now is None else now
        self.state = self.build.pin(
            advance(before, config, created_by, now=created, layer=layer, author=author, ran=ran)
        )
        self.config = config
        self.build.entries.append(CacheEntry(
            key=key, parent=before.id.removeprefix("sha256:"), raw=self.state.raw,
            layer=layer.chain_id if layer is not None else "", description=created_by[:200],
            created_at=self.build.now(), used_at=self.build.now(),
        ))

    def with_config(self, **changes: object) -> ImageConfig:
        return replace(self.config, **changes)
