"""`swarmlet-agent`: the one file that knows every part of the agent and puts them together.

Starting is recovering: images, networks and containers are taken up as the last agent left them, in that order;
then the socket is opened, and last this host takes its place in its cluster again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from swarmlet import log as logs
from swarmlet import process
from swarmlet.config import AGENT_SOCKET, DEFAULT_CONFIG, MANAGER_SOCKET, AgentSettings, load_agent
from swarmlet.engine_api.hosts import listen_on, parse_hosts
from swarmlet.engine_api.router import Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import SwarmletError
from swarmlet.log import get_logger
from swarmlet.memory import return_early
from swarmlet.model.ids import new_hex_id
from swarmlet.release import RELEASE
from swarmlet.supervision import Supervision
from swarmlet.tls import shrink_buffers
from swarmlet_agent import adapters
from swarmlet_agent.api.routes.archive import ArchiveRoutes
from swarmlet_agent.api.routes.build import BuildRoutes
from swarmlet_agent.api.routes.distribution import DistributionRoutes
from swarmlet_agent.api.routes.images import ImageRoutes
from swarmlet_agent.api.routes.networks import NetworkRoutes
from swarmlet_agent.api.routes.swarm import SwarmRoutes
from swarmlet_agent.api.routes.system import SystemRoutes
from swarmlet_agent.api.routes.volumes import VolumeRoutes
from swarmlet_agent.api.server import RouteGroup, node_routes
from swarmlet_agent.api.shapes.info import NodeFacts, read_host_facts
from swarmlet_agent.api.tunnel import TunnelRoutes
from swarmlet_agent.archive.service import ContainerFiles
from swarmlet_agent.builder.builder import Builder
from swarmlet_agent.decide.selinux import shared
from swarmlet_agent.engine.engine import Engine
from swarmlet_agent.engine.events import EventBus
from swarmlet_agent.images.endpoints import registry_config
from swarmlet_agent.images.proxies import shown_proxies
from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal
from swarmlet_agent.line import ClusterLine, default_address
from swarmlet_agent.logs.reader import LogReader
from swarmlet_agent.manager_process import ManagerProcess
from swarmlet_agent.membership import Member
from swarmlet_agent.net.bridge import BridgeNetworks
from swarmlet_agent.net.plan_ipam import parse_pools
from swarmlet_agent.poweroff import end_containers, host_goes_down
from swarmlet_agent.runtime.conmon_runtime import ConmonRuntime
from swarmlet_agent.runtime.selinux import read_policy
from swarmlet_agent.runtime.userns import read_remap
from swarmlet_agent.swarm_facts import SwarmFacts
from swarmlet_agent.volumes.store import VolumeStore

log = get_logger(__name__)


def main() -> None:
    """The Swarmlet agent: runs containers on this host."""
    # Not click, which the command uses: it is a megabyte that stays with the daemon.
    parser = argparse.ArgumentParser(prog="swarmlet-agent", description=main.__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"TOML settings [{DEFAULT_CONFIG}]")
    parser.add_argument("--version", action="version", version=f"swarmlet-agent, version {RELEASE}")
    config: Path | None = parser.parse_args().config
    try:
        settings = load_agent(config, os.environ)
        logs.set_up(settings.log_level, "swarmlet-agent")
        return_early()
        with only_one(Path(settings.data_dir)):
            asyncio.run(_run(settings, process.allow_many_files()))
    except SwarmletError as err:
        sys.exit(f"Error: {err}")


async def _run(settings: AgentSettings, open_files: tuple[int, int]) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Supervision.found(os.environ) as supervision, agent(settings, open_files=open_files):
        # What start-up made stays for the life of the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        log.info("agent is ready", release=RELEASE, socket=f"{settings.run_dir}/{AGENT_SOCKET}")
        supervision.tell_ready(f"release {RELEASE}")
        await stop.wait()
        supervision.tell_stopping()
    log.info("agent ends; containers live on")


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs containers on this host, started."""

    journal: Journal
    images: ImageStore
    volumes: VolumeStore
    networks: BridgeNetworks
    runtime: ConmonRuntime
    engine: Engine
    builder: Builder
    logs: LogReader


@contextlib.asynccontextmanager
async def started_parts(settings: AgentSettings, open_files: tuple[int, int] | None) -> AsyncIterator[Parts]:
    """Taken up as the last agent left them; let go of, not ended, behind the block."""
    data_dir, run_dir = Path(settings.data_dir), Path(settings.run_dir)
    remap = await asyncio.to_thread(read_remap, settings.userns_remap, Path(settings.subid_dir))
    selinux = await asyncio.to_thread(read_policy, settings.selinux_enabled)
    async with contextlib.AsyncExitStack() as stack:
        journal = Journal(data_dir / "journal.db")
        stack.callback(journal.close)
        events = EventBus()
        images = ImageStore(
            data_dir, journal, insecure_registries=settings.insecure_registries,
            registry_mirrors=settings.registry_mirrors, registry_certificates=Path(settings.registry_certificates),
            keep_compressed_layers=settings.keep_compressed_layers,
            mount_label=shared(str(selinux.file)) if selinux is not None else "",
            on_event=functools.partial(adapters.publish_image_event, events),
        )
        volumes = VolumeStore(
            data_dir, journal, owner=remap.root if remap is not None else (0, 0),
            on_event=functools.partial(adapters.publish_volume_event, events),
        )
        networks = BridgeNetworks(
            run_dir, data_dir, journal, bridge_name=settings.bridge_name, default_subnet=settings.bridge_subnet,
            default_subnet6=settings.bridge_subnet6, pools=parse_pools(settings.default_address_pools),
            wireguard_program=settings.wireguard_program,
        )
        runtime = ConmonRuntime(
            run_dir, data_dir=data_dir, cgroup_parent=settings.cgroup_parent, runtime=settings.runtime,
            seccomp_profile=Path(settings.seccomp_profile) if settings.seccomp_profile else None,
            open_files=open_files,
        )
        engine = Engine(
            images, runtime, networks, volumes, journal, data_dir=data_dir, run_dir=run_dir,
            cgroup_parent=settings.cgroup_parent, events=events,
        )
        images.users = engine
        networks.bind(engine, functools.partial(adapters.publish_network_event, events))
        builder = Builder(
            images, images.workshop, engine, journal, data_dir=data_dir,
            on_prune=lambda freed: adapters.publish_prune(events, "builder", freed),
        )
        builder.load()  # before the images, which ask it for the layers it needs
        # Networks before the runtime, which takes a copy of the mount namespace; containers last.
        await images.start()
        stack.push_async_callback(images.close)
        await volumes.start()
        stack.push_async_callback(volumes.close)
        await networks.start()
        stack.push_async_callback(networks.close)
        await runtime.open()
        stack.push_async_callback(runtime.close)
        await engine.start(adapters.host_traits(runtime.supports(), remap, selinux))
        stack.push_async_callback(_end_with_the_host, runtime, engine)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(builder.close)
        await builder.start({container.name: container.id for container in engine.list()})
        await networks.retain({container.id for container in engine.list()})
        reader = LogReader()
        stack.callback(reader.close)
        yield Parts(journal, images, volumes, networks, runtime, engine, builder, reader)


async def _end_with_the_host(runtime: ConmonRuntime, engine: Engine) -> None:
    if await host_goes_down():
        await end_containers(runtime, engine.list())


def view_routes(parts: Parts, system: SystemRoutes, swarm: SwarmRoutes) -> list[Route]:
    """All that the node view answers (docs/api.md)."""
    groups: list[RouteGroup] = [
        BuildRoutes(parts.builder), ImageRoutes(parts.images), DistributionRoutes(parts.images),
        NetworkRoutes(parts.networks, parts.engine.events, swarm), VolumeRoutes(parts.volumes), swarm,
        ArchiveRoutes(ContainerFiles(parts.engine, parts.images)),
    ]
    return node_routes(parts.engine, parts.images, parts.logs, system, groups, swarm)


@contextlib.asynccontextmanager
async def agent(settings: AgentSettings, *, open_files: tuple[int, int] | None = None) -> AsyncIterator[None]:
    """A whole agent, serving inside the block.

    open_files: (soft, hard) limit for containers that ask for none; None: the agent's own.
    """
    shrink_buffers()
    parse_hosts(settings.cluster_hosts, settings.hosts_tls)  # the manager's, but wrong ones are told here
    run_dir = Path(settings.run_dir)
    socket, manager_socket = run_dir / AGENT_SOCKET, run_dir / MANAGER_SOCKET
    hostname = settings.hostname or os.uname().nodename
    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(started_parts(settings, open_files))
        swarm_facts = SwarmFacts()
        system = await _system_routes(settings, parts, swarm_facts)

        def node_view() -> list[Route]:
            return view_routes(parts, system, swarm)

        manager = ManagerProcess(settings, lambda: member.address, lambda: member.manager_port)
        stack.push_async_callback(manager.close)
        line = ClusterLine(
            parts.engine, parts.images, parts.networks, parts.journal, settings, hostname=hostname, release=RELEASE,
            node_routes=lambda: [*node_view(), *TunnelRoutes(socket).routes()], address=lambda: member.address,
            data_address=lambda: member.data_address, manager_port=lambda: member.manager_port,
        )
        member = Member(
            Path(settings.data_dir), manager_socket, manager, line, hostname=hostname,
            default_address=lambda: default_address(settings), ping_manager=manager.answers,
            manager_port=settings.manager_port, node_port=settings.node_port,
        )
        swarm = SwarmRoutes(member, manager_socket)
        stack.push_async_callback(swarm.close)
        swarm_facts.begin(member, swarm)
        stack.push_async_callback(swarm_facts.close)
        server = Server(node_view())
        stack.push_async_callback(server.close)
        await member.start()
        stack.push_async_callback(member.close)
        await server.listen_unix(socket, settings.socket_group)
        await listen_on(server, settings.hosts, settings.hosts_tls)
        yield


async def _system_routes(settings: AgentSettings, parts: Parts, swarm: SwarmFacts) -> SystemRoutes:
    labels = tuple(f"{name}={value}" for name, value in settings.labels.items())
    return SystemRoutes(
        parts.engine, parts.engine.events, parts.runtime, adapters.ImageCount(parts.images),
        adapters.DiskUsage(parts.images, parts.volumes, parts.engine, parts.builder), swarm,
        host=await asyncio.to_thread(read_host_facts, Path(settings.data_dir)),
        node=NodeFacts(
            await _engine_id(parts.journal), Path(settings.data_dir), RELEASE, time.time_ns(), labels,
            userns_remap=bool(settings.userns_remap), selinux=settings.selinux_enabled,
            registries=registry_config(settings.insecure_registries, settings.registry_mirrors),
            proxies=shown_proxies(os.environ),
            address_pools=tuple(
                (str(base), size) for base, size in parse_pools(settings.default_address_pools).configured
            ),
        ),
    )


async def _engine_id(journal: Journal) -> str:
    """This engine's own id (Engine API SystemInfo.ID), kept for ever."""
    known = dict(journal.items("meta")).get("engine_id")
    if known is not None:
        return known.decode()
    ident = new_hex_id()
    await journal.put("meta", "engine_id", ident.encode())
    return ident


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Two agents on one data folder would fight over every container. Conflict if there is one already."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    with process.only_one(data_dir / "agent.lock", f"an agent is running with the data folder {data_dir}"):
        yield


if __name__ == "__main__":
    main()
