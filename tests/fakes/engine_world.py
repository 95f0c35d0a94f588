"""A make-believe machine for the engine: images, runtime, networks, volumes and journal in memory.

A `World` is what survives an agent's death: the kernel's processes, mounts and networks, and what is on disk.
`World.ports()` gives one agent's way to it. After `World.crash()` the ports handed out before are dead: any
further call is cancelled on the spot and changes nothing, as after `kill -9`. `crash_after(n)` does that in
the middle of whatever the agent is doing, before or after the n-th call's effect.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.errors import Conflict, InvalidArgument, NotFound
from swarmlet.model.common import Driver
from swarmlet.model.container import EndpointSettings, ImageConfig, PortBinding
from swarmlet.model.ids import new_hex_id
from swarmlet_agent.decide.remap import MappedIds, Remap
from swarmlet_agent.images.machine import this_machine
from swarmlet_agent.images.types import Image
from swarmlet_agent.journal import Write
from swarmlet_agent.net.types import Attachment, InterfaceCounters, NetworkWish
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, Exit, StartFailed, Usage

BUSYBOX = Image(
    id="sha256:" + "b" * 64,
    config=ImageConfig(cmd=("sh",), env=("PATH=/bin",)),
    layers=("sha256:" + "1" * 64,),
    architecture=this_machine().architecture,
    os="linux",
    created=0,
    size_bytes=1,
    repo_tags=("busybox:latest",),
)


@dataclass
class Process:
    """A container's process. program: its argv; some programs behave in a special way (see World.program)."""

    plan: ContainerPlan
    pid: int
    log_path: Path
    state: str = "created"  # created, running, paused
    streams: list[FakeStreams] = field(default_factory=list)


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = {"busybox:latest": BUSYBOX}
        self.processes: dict[str, Process] = {}
        self.exits: dict[str, Exit] = {}
        self.exit_codes: dict[int, int] = {}
        self.exit_waiters: dict[str, list[asyncio.Future[Exit]]] = {}
        self.networks: dict[str, NetworkWish] = {}
        self.network_names = {"bridge", "host", "none", "web"}
        self.mounted: set[str] = set()
        self.roots: set[str] = set()
        self.root_labels: dict[str, str] = {}
        self.volumes: dict[str, set[str]] = {}
        self.anonymous: set[str] = set()
        self.copied: list[tuple[str, str]] = []
        self.journal: dict[tuple[str, str], bytes] = {}
        self.journal_writes = 0
        self.starts: dict[str, int] = {}
        self.calls: list[str] = []
        self.now = 1_000_000_000_000_000_000
        self.passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n"
        self.group = "root:x:0:\nwheel:x:10:root\nwww:x:34:web\n"
        self._generation = 0
        self._calls_left: int | None = None
        self._pid = 100

    # Dying

    def crash(self) -> None:
        self._generation += 1
        self._calls_left = None

    def crash_after(self, calls: int) -> None:
        self._calls_left = calls

    def reboot(self) -> None:
        """Power off and on: everything of the kernel is gone, also the run folder's content."""
        self.crash()
        self.processes.clear()
        self.exits.clear()
        self.networks.clear()
        self.mounted.clear()
        for marker in (self.root / "run" / "engine").glob("*"):
            marker.unlink()

    def ports(self) -> Ports:
        return Ports(self, self._generation)

    async def enter(self, generation: int, call: str) -> None:
        """Before a call's effect."""
        self._tick(generation)
        self.calls.append(call)
        await asyncio.sleep(0)
        self._check(generation)

    def leave(self, generation: int) -> None:
        """After a call's effect: the caller may die before it learns of it."""
        self._tick(generation)

    def _tick(self, generation: int) -> None:
        self._check(generation)
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left < 0:
                self.crash()
                self._check(generation)

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise asyncio.CancelledError

    # What programs do

    def end(self, ident: str, code: int, *, oom: bool = False) -> None:
        """The container's program ends."""
        process = self.processes.pop(ident, None)
        if process is None:
            return
        for streams in process.streams:
            streams.finish()
        self.exits[ident] = exit = Exit(code, self.now, oom)
        self.exit_codes[process.pid] = code
        for waiter in self.exit_waiters.pop(ident, []):
            if not waiter.done():
                waiter.set_result(exit)

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid


class FakeStreams:
    def __init__(self) -> None:
        self.pieces: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.written = bytearray()
        self.stdin_closed = False
        self.closed = False

    def finish(self) -> None:
        self.pieces.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        while (piece := await self.pieces.get()) is not None:
            yield piece

    async def write(self, data: bytes) -> None:
        self.written += data
        self.pieces.put_nowait((1, data))

    async def close_stdin(self) -> None:
        self.stdin_closed = True

    async def close(self) -> None:
        self.closed = True
        self.finish()


class FakeExec:
    """`echo words` prints them, `exit N` ends with N, `sleep` stays until told, anything else ends with 0."""

    def __init__(self, plan: ExecPlan, pid: int) -> None:
        self.plan = plan
        self.pid = pid
        self.streams = FakeStreams()
        self.size = (0, 0)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        program, *words = plan.args
        if program == "echo":
            self.streams.pieces.put_nowait((1, " ".join(words).encode() + b"\n"))
        if program not in ("sleep", "cat"):
            self.finish(int(words[0]) if program == "exit" else 0)

    def finish(self, code: int) -> None:
        self.streams.finish()
        if not self.ended.done():
            self.ended.set_result(code)

    async def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)


class Ports:
    """One agent's images, runtime, networks, volumes and journal (this object is all of them but for names that
    clash, hence the five small classes)."""

    def __init__(self, world: World, generation: int) -> None:
        self.images = FakeImages(world, generation)
        self.runtime = FakeRuntime(world, generation)
        self.networks = FakeNetworks(world, generation)
        self.volumes = FakeVolumes(world, generation)
        self.journal = FakeJournal(world, generation)


class _Port:
    def __init__(self, world: World, generation: int) -> None:
        self.world = world
        self.generation = generation

    async def enter(self, call: str) -> None:
        await self.world.enter(self.generation, call)

    def leave(self) -> None:
        self.world.leave(self.generation)


class FakeImages(_Port):
    def get(self, ref: str) -> Image:
        for image in self.world.images.values():
            if ref in (image.id, *image.repo_tags) or f"{ref}:latest" in image.repo_tags:
                return image
        raise NotFound("image", ref if ":" in ref else f"{ref}:latest")

    async def ensure_rootfs(
        self, container_id: str, image_id: str, ids: MappedIds | None = None, label: str = ""
    ) -> Path:
        await self.enter("images.ensure_rootfs")
        self.world.root_labels[container_id] = label
        root = self.world.root / "roots" / container_id
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc" / "passwd").write_text(self.world.passwd)
        (root / "etc" / "group").write_text(self.world.group)
        self.world.roots.add(container_id)
        self.world.mounted.add(container_id)
        self.leave()
        return root

    async def unmount_rootfs(self, container_id: str) -> None:
        await self.enter("images.unmount_rootfs")
        self.world.mounted.discard(container_id)
        self.leave()

    async def remove_rootfs(self, container_id: str) -> None:
        await self.enter("images.remove_rootfs")
        self.world.mounted.discard(container_id)
        self.world.roots.discard(container_id)
        self.leave()

    async def rootfs_size(self, container_id: str) -> int:
        return 4096


class FakeRuntime(_Port):
    #: Programs that cannot be started, with the exit code of that.
    REFUSED: Mapping[str, int] = {"nosuch": 127, "/etc": 126, "broken": 128}

    async def user_namespace(self, remap: Remap) -> str:
        return f"/run/userns/{remap.uids[0][0]}"

    async def create(self, plan: ContainerPlan, *, log_path: Path) -> int:
        await self.enter("runtime.create")
        world = self.world
        assert plan.id not in world.processes, "a second process for one container"
        assert plan.id in world.mounted, "its root is not mounted"
        program = plan.args[0]
        if program in self.REFUSED:
            raise StartFailed(f'exec: "{program}": executable file not found in $PATH', self.REFUSED[program])
        world.exits.pop(plan.id, None)
        process = world.processes[plan.id] = Process(plan, world.next_pid(), log_path)
        self.leave()
        return process.pid

    async def start(self, container_id: str) -> None:
        await self.enter("runtime.start")
        process = self.world.processes[container_id]
        process.state = "running"
        self.world.starts[container_id] = self.world.starts.get(container_id, 0) + 1
        program, *words = process.plan.args
        if program == "true":
            self.world.end(container_id, 0)
        elif program == "exit":
            self.world.end(container_id, int(words[0]))
        elif program == "echo":
            for streams in process.streams:
                streams.pieces.put_nowait((1, " ".join(words).encode() + b"\n"))
            self.world.end(container_id, 0)
        self.leave()

    async def attach(self, container_id: str, *, tty: bool) -> FakeStreams:
        await self.enter("runtime.attach")
        process = self.world.processes.get(container_id)
        if process is None:
            raise Conflict(f"container {container_id} is not running")
        streams = FakeStreams()
        process.streams.append(streams)
        return streams

    async def resize(self, container_id: str, rows: int, columns: int) -> None:
        await self.enter(f"runtime.resize {rows}x{columns}")

    async def reopen_log(self, container_id: str) -> None:
        await self.enter("runtime.reopen_log")
        if (process := self.world.processes.get(container_id)) is not None:
            process.log_path.touch()

    async def exec(self, container_id: str, plan: ExecPlan) -> FakeExec:
        await self.enter("runtime.exec")
        if container_id not in self.world.processes:
            raise Conflict(f"container {container_id} is not running")
        if plan.args[0] in self.REFUSED:
            raise StartFailed(f'exec: "{plan.args[0]}": executable file not found in $PATH', 127)
        return FakeExec(plan, self.world.next_pid())

    async def kill(self, container_id: str, signal_number: int, *, everything: bool = False) -> None:
        await self.enter(f"runtime.kill {signal_number}")
        process = self.world.processes.get(container_id)
        ignores = process is not None and process.plan.args[0] == "stubborn"
        if process is not None and (signal_number == signal.SIGKILL or not ignores) and signal_number != signal.SIGHUP:
            self.world.end(container_id, 128 + signal_number)
        self.leave()

    async def pause(self, container_id: str) -> None:
        await self.enter("runtime.pause")
        if (process := self.world.processes.get(container_id)) is not None:
            process.state = "paused"

    async def resume(self, container_id: str) -> None:
        await self.enter("runtime.resume")
        if (process := self.world.processes.get(container_id)) is not None:
            process.state = "running"

    async def wait(self, container_id: str) -> Exit:
        await self.enter("runtime.wait")
        if container_id in self.world.exits:
            return self.world.exits[container_id]
        if container_id not in self.world.processes:
            raise NotFound("container", container_id)
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.world.exit_waiters.setdefault(container_id, []).append(future)
        return await future

    async def alive(self, container_id: str) -> int | None:
        await self.enter("runtime.alive")
        process = self.world.processes.get(container_id)
        return process.pid if process else None

    async def delete(self, container_id: str) -> None:
        await self.enter("runtime.delete")
        self.world.end(container_id, 137)
        self.world.exits.pop(container_id, None)
        self.leave()

    async def usage(self, container_id: str) -> Usage:
        return Usage(read_at=self.world.now, memory_bytes=1000)

    async def pids(self, container_id: str) -> list[int]:
        return [self.world.processes[container_id].pid]

    async def update(self, plan: ContainerPlan) -> None:
        await self.enter("runtime.update")
        self.world.processes[plan.id].plan = plan


class FakeNetworks(_Port):
    async def attach(self, wish: NetworkWish) -> Attachment:
        await self.enter("networks.attach")
        world = self.world
        names = [] if wish.share_with else sorted({wish.mode, *wish.endpoints})
        for name in names:
            if name not in world.network_names:
                raise NotFound("network", name, f"network {name} not found")
        others = [other for other in world.networks.values() if other.container_id != wish.container_id]
        clashing = _host_ports(wish) & set().union(*map(_host_ports, others))
        if clashing:
            raise Conflict(f"Bind for 0.0.0.0:{min(clashing)} failed: port is already allocated")
        world.networks[wish.container_id] = wish
        self.leave()
        return Attachment(
            netns_path=None if wish.mode == "host" else f"/run/netns/{wish.container_id}",
            endpoints={
                name: EndpointSettings(network_id=name, endpoint_id=new_hex_id(), ip_address="172.17.0.2")
                for name in names
            },
            ports={
                port: tuple(PortBinding(host_ip="0.0.0.0", host_port=b.host_port or "40000") for b in bindings)
                for port, bindings in wish.ports.items()
            },
            files={"/etc/hosts": world.root / "hosts"},
            sandbox_id="5" * 64,
        )

    async def detach(self, container_id: str) -> None:
        await self.enter("networks.detach")
        self.world.networks.pop(container_id, None)
        self.leave()

    async def renamed(self, container_id: str, name: str) -> None:
        await self.enter("networks.renamed")
        self.leave()

    async def counters(self, container_id: str) -> Sequence[InterfaceCounters]:
        return (InterfaceCounters("eth0", rx_bytes=7),)


class FakeVolumes(_Port):
    async def ensure(self, name: str, driver: Driver | None, labels: dict[str, str]) -> Path:
        await self.enter("volumes.ensure")
        if driver is not None and driver.name not in ("", "local"):
            raise InvalidArgument(f'could not find plugin "{driver.name}"')
        self.world.volumes.setdefault(name, set())
        self.leave()
        return self.world.root / "volumes" / name

    async def create_anonymous(self, labels: dict[str, str]) -> tuple[str, Path]:
        await self.enter("volumes.create_anonymous")
        name = new_hex_id()
        self.world.volumes[name] = set()
        self.world.anonymous.add(name)
        return name, self.world.root / "volumes" / name

    async def copy_up(self, name: str, image_folder: Path, subpath: str = "") -> None:
        await self.enter("volumes.copy_up")
        self.world.copied.append((name, image_folder.name))

    async def use(self, name: str, container_id: str) -> None:
        await self.enter("volumes.use")
        self.world.volumes[name].add(container_id)
        self.leave()

    async def release(self, container_id: str, *, remove_anonymous: bool) -> None:
        await self.enter("volumes.release")
        for name, users in list(self.world.volumes.items()):
            if container_id in users:
                users.discard(container_id)
                if remove_anonymous and name in self.world.anonymous and not users:
                    del self.world.volumes[name]
        self.leave()


class FakeJournal(_Port):
    """As swarmlet_agent.journal.Journal, on a disk that a crash does not harm."""

    def items(self, table: str) -> list[tuple[str, bytes]]:
        return sorted((key, value) for (name, key), value in self.world.journal.items() if name == table)

    async def write(self, *writes: Write) -> None:
        await self.enter("journal.write")
        self.world.journal_writes += 1
        for write in writes:
            if write.value is None:
                self.world.journal.pop((write.table, write.key), None)
            else:
                self.world.journal[write.table, write.key] = write.value
        self.leave()

    async def put(self, table: str, key: str, value: bytes) -> None:
        await self.write(Write(table, key, value))

    async def delete(self, table: str, key: str) -> None:
        await self.write(Write(table, key, None))


def image(name: str, **config: object) -> Image:
    """Another image for `World.images`."""
    return Image(
        id="sha256:" + (name.encode().hex() * 64)[:64], config=ImageConfig(**config), layers=(),  # type: ignore[arg-type]
        architecture=this_machine().architecture, os="linux", created=0, size_bytes=1, repo_tags=(f"{name}:latest",),
    )  # fmt: skip


def _host_ports(wish: NetworkWish) -> set[str]:
    return {binding.host_port for bindings in wish.ports.values() for binding in bindings if binding.host_port}
