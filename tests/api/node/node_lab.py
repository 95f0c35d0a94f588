"""A whole node view on a unix socket: the real engine and routes over ports without a kernel.

The fake runtime runs little programs of its own, by the first word of a container's command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from swarmlet.engine_api.server import Server
from swarmlet.errors import Conflict, NotFound, Unavailable
from swarmlet.model.container import EndpointSettings, ImageConfig, PortBinding
from swarmlet.model.times import rfc3339
from swarmlet_agent.api.routes.system import SystemRoutes
from swarmlet_agent.api.server import node_routes
from swarmlet_agent.api.shapes.info import NodeFacts, read_host_facts
from swarmlet_agent.engine.engine import Engine
from swarmlet_agent.images.types import Image
from swarmlet_agent.journal import Journal
from swarmlet_agent.logs.reader import LogReader
from swarmlet_agent.net.types import Attachment, InterfaceCounters, NetworkWish
from swarmlet_agent.runtime.host import RuntimeInfo
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, Exit, StartFailed, Usage

IMAGE_ID = "sha256:" + "ab" * 32


class FakeImages:
    revision = 0

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, ref: str) -> Image:
        if ref not in ("busybox", "busybox:latest", IMAGE_ID, IMAGE_ID[7:19]):
            raise NotFound("image", ref)
        return Image(
            id=IMAGE_ID, config=ImageConfig(cmd=("cat",), env=("PATH=/bin",)), layers=("l1",), architecture="amd64",
            os="linux", created=1, size_bytes=1000, repo_tags=("busybox:latest",),
        )

    def count(self) -> int:
        return 1

    def size(self, image_id: str) -> int:
        return 1000

    def size_below(self, container_id: str, image_id: str) -> int:
        return self.get(image_id).size_bytes

    def root_folders(self, container_id: str, image_id: str = "") -> tuple[Path, tuple[Path, ...]]:
        return self._root / container_id / "upper", (self._root / "two", self._root / "one")

    async def ensure_rootfs(self, container_id: str, image_id: str, ids: object = None, label: str = "") -> Path:
        folder = self._root / container_id
        (folder / "etc").mkdir(parents=True, exist_ok=True)
        return folder

    async def unmount_rootfs(self, container_id: str) -> None: ...

    async def remove_rootfs(self, container_id: str) -> None: ...

    async def rootfs_size(self, container_id: str) -> int:
        return 234


class FakeNetworks:
    async def attach(self, wish: NetworkWish) -> Attachment:
        if wish.mode in ("none", "host"):
            return Attachment(None, {}, {}, {})
        settings = EndpointSettings(
            network_id="n" * 64, endpoint_id="e" * 64, gateway="172.17.0.1", ip_address="172.17.0.2",
            ip_prefix_len=16, mac_address="02:42:ac:11:00:02",
        )
        ports = {
            port: tuple(
                PortBinding(host_ip=each.host_ip or "0.0.0.0", host_port=each.host_port or "49153") for each in wanted
            )
            for port, wanted in wish.ports.items()
        }
        return Attachment(None, {"bridge": settings}, ports, {})

    async def detach(self, container_id: str) -> None: ...

    async def renamed(self, container_id: str, name: str) -> None:
        pass

    async def counters(self, container_id: str) -> Sequence[InterfaceCounters]:
        return [InterfaceCounters("eth0", rx_bytes=10, tx_bytes=20)]


class FakeVolumes:
    def __init__(self, root: Path) -> None:
        self._root = root

    async def ensure(self, name: str, driver: object, labels: dict[str, str]) -> Path:
        folder = self._root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def create_anonymous(self, labels: dict[str, str]) -> tuple[str, Path]:
        name = os.urandom(32).hex()
        return name, await self.ensure(name, None, labels)

    async def copy_up(self, name: str, image_folder: Path, subpath: str = "") -> None: ...

    async def use(self, name: str, container_id: str) -> None: ...

    async def release(self, container_id: str, *, remove_anonymous: bool) -> None: ...


class FakeStreams:
    """One client of a process: a queue of one piece, so that a slow client slows the process."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(1)
        self.closed = False

    async def put(self, item: tuple[int, bytes] | None) -> None:
        while not self.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._queue.put(item)
                return

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._queue.get()) is not None:
            yield item

    async def write(self, data: bytes) -> None:
        await self._process.feed(data)

    async def close_stdin(self) -> None:
        await self._process.feed(b"")

    async def close(self) -> None:
        self.closed = True
        if self in self._process.clients:
            self._process.clients.remove(self)


class FakeProcess:
    def __init__(self, args: tuple[str, ...], log_path: Path | None = None) -> None:
        self.args = args
        self.pid = 4_000_000
        self.clients: list[FakeStreams] = []
        self.sizes: list[tuple[int, int]] = []
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue(4)
        self._log = log_path
        self._task: asyncio.Task[None] | None = None
        self.started = False

    def run(self) -> None:
        self.started = True
        self._task = asyncio.create_task(self._program())

    @property
    def streams(self) -> FakeStreams:
        if not self.clients:
            self.clients.append(FakeStreams(self))
        return self.clients[0]

    async def feed(self, data: bytes) -> None:
        if not self.exit.done():
            await self._stdin.put(data)

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def wait(self) -> int:
        return (await asyncio.shield(self.exit)).code

    def kill(self, signal: int) -> None:
        if self._task is not None and (signal == 9 or self.args[0] != "trap"):
            self._task.cancel()
            self._end(128 + signal)

    def _end(self, code: int) -> None:
        if not self.exit.done():
            self.exit.set_result(Exit(code, time.time_ns()))

    async def say(self, stream: int, data: bytes) -> None:
        if self._log is not None and str(self._log) != os.devnull:
            with self._log.open("ab") as log:
                for line in data.splitlines(keepends=True):
                    flag = "F" if line.endswith(b"\n") else "P"
                    stamp = rfc3339(time.time_ns())[:-1] + "+00:00"
                    log.write(f"{stamp} {'stdout' if stream == 1 else 'stderr'} {flag} ".encode())
                    log.write(line.rstrip(b"\n") + b"\n")
        for client in tuple(self.clients):
            await client.put((stream, data))

    async def _program(self) -> None:
        code = 0
        match self.args:
            case ("echo", *words):
                await self.say(1, " ".join(words).encode() + b"\n")
            case ("both", *_):
                await self.say(1, b"out\n")
                await self.say(2, b"err\n")
            case ("cat", *_):
                while data := await self._stdin.get():
                    await self.say(1, data)
            case ("flood", size):
                for _ in range(int(size) // 65536):
                    for client in tuple(self.clients):
                        await client.put((1, b"x" * 65536))
            case ("exit", number):
                code = int(number)
            case _:
                await asyncio.sleep(3600)
        self._end(code)
        for client in tuple(self.clients):
            await client.put(None)


class FakeRuntime:
    def __init__(self) -> None:
        self.processes: dict[str, FakeProcess] = {}
        self._execs: dict[str, list[FakeProcess]] = {}

    async def user_namespace(self, remap: object) -> str:
        raise NotImplementedError("nothing is remapped here")

    def supports(self) -> RuntimeInfo:
        return RuntimeInfo(
            name="crun", runtimes=("crun", "runc"), version="1.8.1", conmon_version="2.1.6", memory_limit=True
        )

    async def create(self, plan: ContainerPlan, *, log_path: Path) -> int:
        if plan.args[0] == "missing":
            raise StartFailed(f'exec: "{plan.args[0]}": executable file not found in $PATH: unknown', 127)
        self.processes[plan.id] = process = FakeProcess(plan.args, log_path)
        return process.pid

    async def start(self, container_id: str) -> None:
        self.processes[container_id].run()

    async def attach(self, container_id: str, *, tty: bool) -> FakeStreams:
        process = self.processes[container_id]
        streams = FakeStreams(process)
        process.clients.append(streams)
        return streams

    async def resize(self, container_id: str, rows: int, columns: int) -> None:
        await self.processes[container_id].resize(rows, columns)

    async def exec(self, container_id: str, plan: ExecPlan) -> FakeProcess:
        if plan.args[0] == "missing":
            raise StartFailed(f'OCI runtime exec failed: exec: "{plan.args[0]}": executable file not found', 127)
        process = FakeProcess(plan.args)
        process.streams  # noqa: B018  # the first client is there from the start
        process.run()
        self._execs.setdefault(container_id, []).append(process)
        return process

    async def kill(self, container_id: str, signal: int, *, everything: bool = False) -> None:
        if (process := self.processes.get(container_id)) is not None:
            process.kill(signal)
            for client in tuple(process.clients):
                await client.put(None)

    async def pause(self, container_id: str) -> None: ...

    async def resume(self, container_id: str) -> None: ...

    async def wait(self, container_id: str) -> Exit:
        return await asyncio.shield(self.processes[container_id].exit)

    async def alive(self, container_id: str) -> int | None:
        process = self.processes.get(container_id)
        return process.pid if process is not None and not process.exit.done() else None

    async def delete(self, container_id: str) -> None:
        if (process := self.processes.pop(container_id, None)) is not None:
            process.kill(9)
        for process in self._execs.pop(container_id, []):
            process.kill(9)

    async def usage(self, container_id: str) -> Usage:
        if container_id not in self.processes:
            raise Conflict("gone")
        now = time.time_ns()
        return Usage(
            read_at=now, cpu_total_ns=now // 10, memory_bytes=5 << 20, memory_limit_bytes=1 << 30, pids=1,
            memory_stats={"inactive_file": 1 << 20}, blkio=((8, 0, "read", 77),),
        )

    async def pids(self, container_id: str) -> list[int]:
        return [os.getpid()]

    async def update(self, plan: ContainerPlan) -> None: ...


class FakeSwarm:
    def ping_state(self) -> str:
        return "active/worker"

    def info(self) -> dict[str, Any]:
        return {"NodeID": "n1", "LocalNodeState": "active", "ControlAvailable": False}

    def good(self) -> bool:
        return True

    async def refresh(self) -> None: ...


class FakeManager:
    """This host's manager as the route of events asks it; `is_manager` False until a test says otherwise."""

    def __init__(self) -> None:
        self.is_manager = False
        self.asked: list[str] = []
        self.tells: list[dict[str, Any]] = []

    async def follow(self, path_qs: str) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(path_qs)
        for event in self.tells:
            yield event
        raise Unavailable("the manager has gone")


class FakeUsage:
    async def images(self, version: tuple[int, int]) -> tuple[int, list[dict[str, Any]]]:
        return 1000, [{"Id": IMAGE_ID, "Size": 1000, "SharedSize": 0, "Containers": 0}]

    async def volumes(self) -> list[dict[str, Any]]:
        return []

    async def build_cache(self) -> list[dict[str, Any]]:
        return []


@dataclass
class Node:
    engine: Engine
    runtime: FakeRuntime
    socket: Path
    server: Server
    session: aiohttp.ClientSession
    manager: FakeManager

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of a call."""
        async with self.session.request(method, f"http://d{path}", json=body, headers=headers) as answer:
            text = await answer.read()
            if answer.content_type == "application/json" and text:
                with contextlib.suppress(ValueError):
                    return answer.status, await answer.json()
            return answer.status, text

    async def make(self, *command: str, start: bool = True, name: str = "", **more: Any) -> str:
        """A container's id."""
        body = {"Image": "busybox", "Cmd": list(command), **more}
        status, answer = await self.call("POST", f"/containers/create?name={name}", body)
        assert status == 201, answer
        ident = str(answer["Id"])
        if start:
            status, answer = await self.call("POST", f"/containers/{ident}/start")
            assert status == 204, answer
        return ident

    async def hijack(self, path: str, body: bytes = b"") -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """(head of the answer, reader, writer) of an upgraded connection."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=1 << 20)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        async with asyncio.timeout(30):
            return await reader.readuntil(b"\r\n\r\n"), reader, writer


@contextlib.asynccontextmanager
async def running_node(tmp_path: Path) -> AsyncIterator[Node]:
    journal = Journal(tmp_path / "journal.db")
    runtime, images = FakeRuntime(), FakeImages(tmp_path / "roots")
    engine = Engine(
        images, runtime, FakeNetworks(), FakeVolumes(tmp_path / "volumes"), journal,
        data_dir=tmp_path / "data", run_dir=tmp_path / "run", cpus=4,
    )
    await engine.start()
    logs = LogReader()
    facts = NodeFacts(node_id="node-1", data_dir=tmp_path / "data", release="0.1.0", started_at=time.time_ns())
    system = SystemRoutes(
        engine, engine.events, runtime, images, FakeUsage(), FakeSwarm(), host=read_host_facts(tmp_path), node=facts
    )
    manager = FakeManager()
    server = Server(node_routes(engine, images, logs, system, cluster=manager))
    await server.listen_unix(tmp_path / "agent.sock")
    connector = aiohttp.UnixConnector(str(tmp_path / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Node(engine, runtime, tmp_path / "agent.sock", server, session, manager)
    await server.close()
    for container in engine.list():
        await runtime.delete(container.id)
    await engine.close()
    logs.close()
    journal.close()
