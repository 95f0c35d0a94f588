"""A make-believe machine and the agent that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

from fakes.engine_world import World

from swarmlet.model.container import ContainerCreate, HostConfig
from swarmlet_agent.engine.core import HostTraits
from swarmlet_agent.engine.engine import Engine


class Node:
    """A world and the agent that runs on it."""

    def __init__(self, world: World, traits: HostTraits | None = None) -> None:
        self.world = world
        self.traits = traits
        self.engine = self._engine()

    def _engine(self) -> Engine:
        ports = self.world.ports()
        return Engine(
            ports.images, ports.runtime, ports.networks, ports.volumes, ports.journal,  # type: ignore[arg-type]
            data_dir=self.world.root / "data", run_dir=self.world.root / "run", cpus=4,
            now=self._now, random=Random(7),
        )  # fmt: skip

    def _now(self) -> int:
        self.world.now += 1000
        return self.world.now

    async def again(self, *, reboot: bool = False) -> Engine:
        """kill -9 the agent (or the machine), and start the next one."""
        if reboot:
            self.world.reboot()
        else:
            self.world.crash()
        dead = self.engine
        self.engine = self._engine()
        await dead.close()
        await self.engine.start(self.traits)
        return self.engine

    async def run(self, *cmd: str, name: str = "", host: HostConfig | None = None, **config: Any) -> str:
        """create and start; the id."""
        request = ContainerCreate(image="busybox", cmd=cmd, host_config=host or HostConfig(), **config)
        record, _ = await self.engine.create(name, request)
        await self.engine.start_container(record.id)
        return record.id

    async def settle(self) -> None:
        """Let everything that is ready to happen happen. Nothing of it waits for a thread: see AtOnce."""
        for _ in range(200):
            await asyncio.sleep(0)


class AtOnce(ThreadPoolExecutor):
    """The loop's threads, for tests that let a number of turns pass, or virtual time: what a thread is given is done
    before the caller goes on, so that no answer comes later on a busy machine than on an idle one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as err:
            done.set_exception(err)
        return done
