"""RUN: a container of the stage's image so far, whose changes become a layer."""

from __future__ import annotations

import asyncio
import codecs
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from dataclasses import replace as fields_replaced
from pathlib import Path

from msgspec.structs import replace

from swarmlet.errors import NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.common import HealthConfig, Mount, TmpfsOptions
from swarmlet.model.container import ContainerCreate, LogConfig
from swarmlet.model.ids import short_id
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.cache import key_of
from swarmlet_agent.builder.filing import source_state
from swarmlet_agent.builder.mounts import RunMount
from swarmlet_agent.builder.output import BuildFailed, Lane
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.sources import digest_of_sources, find_sources
from swarmlet_agent.builder.stage import PREDEFINED, StageRun
from swarmlet_agent.builder.state import env_of, shell_of
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.ports import Streams
from swarmlet_agent.images.layers import Layer, stoppable
from swarmlet_agent.images.manifests import digest_of
from swarmlet_agent.images.workshop import to_the_end

log = get_logger(__name__)
#: Where the runtime mounts something in every container.
_ALWAYS = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_SCRIPTS = "/dev/pipes"
_ONLY_HEREDOC = re.compile(r"\d*<<-?\s*['\"]?[^\s'\"<]+['\"]?")


@dataclass(frozen=True, slots=True)
class _Command:
    """argv; script: a here-document with a "#!" of its own, which is mounted and run; said: for the history."""

    argv: tuple[str, ...]
    script: str
    said: str


async def do_run(run: StageRun, step: kinds.Run) -> None:
    """Run it, unless an earlier build has. BuildFailed with the program's exit code."""
    command = _command(run, step)
    args = _args(run)
    shown = [f"{name}={value}" for name, value in sorted(args.items()) if name not in PREDEFINED or name in run.args]
    created_by = f"|{len(shown)} {' '.join(shown)} {command.said}" if shown else command.said
    async with AsyncExitStack() as stack:
        mounts, marks = await _mounts(run, step, command, stack)
        key = key_of(run.state, created_by, command.script, step.network, *marks)
        if await run.cached(key, run.config, created_by):
            return
        mounts = [*mounts, *await _private_mounts(run, step, stack)]
        request = _request(run, step, command, args, mounts)
        layer = await _in_container(run, request, [mount.target for mount in mounts])
        run.keep(key, run.config, created_by, layer)


def _command(run: StageRun, step: kinds.Run) -> _Command:
    shell = shell_of(run.config)
    if not step.shell:
        return _Command(step.words, "", " ".join(step.words))
    text = step.words[0]
    if step.heredocs:
        if len(step.heredocs) == 1 and _ONLY_HEREDOC.fullmatch(text):
            content = step.heredocs[0].content
            if content.startswith("#!"):
                place = f"{_SCRIPTS}/{step.heredocs[0].name}"
                return _Command((place,), content, f"{place} # {digest_of(content.encode())}")
            text = content
        else:
            # The shell reads its here-documents itself.
            text = "\n".join([text, *(document.raw.rstrip("\n") for document in step.heredocs), ""])
    argv = (*shell, text)
    return _Command(argv, "", " ".join(argv))


def _args(run: StageRun) -> dict[str, str]:
    """Build arguments that the program sees as variables: those declared, and the predefined that were given."""
    hidden = env_of(run.config)
    return {name: value for name, value in run.scope.args.items() if name not in hidden}


def _request(
    run: StageRun, step: kinds.Run, command: _Command, args: dict[str, str], mounts: Sequence[Mount]
) -> ContainerCreate:
    host = run.build.options.host
    return ContainerCreate(
        image=run.state.id, cmd=command.argv, entrypoint=("",), attach_stdout=True, attach_stderr=True,
        env=(*(f"{name}={value}" for name, value in args.items()), *run.config.env), user=run.config.user,
        working_dir=run.config.working_dir or "/", healthcheck=HealthConfig(test=("NONE",)),
        host_config=replace(
            host, mounts=(*host.mounts, *mounts), network_mode=step.network or host.network_mode,
            log_config=LogConfig(type="none"),
        ),
    )


async def _in_container(run: StageRun, request: ContainerCreate, targets: Sequence[str]) -> Layer | None:
    """The layer of what the program changed; None if it changed nothing."""
    build, containers = run.build, run.build.containers
    await build.cache.begin(build.id)
    name = f"build-{build.id}-{build.serial()}"
    with build.workshop.lending(run.state.configuration):
        making = asyncio.ensure_future(containers.create(name, request))
        keep = False
        try:
            container, _warnings = await asyncio.shield(making)
            await run.lane.say(f" ---> Running in {short_id(container.id)}\n")
            code = await _until_its_end(run, container.id)
            if code:
                keep = not build.options.force_remove
                shown = " ".join(request.cmd or ())
                raise BuildFailed(f"The command '{shown}' returned a non-zero code: {code}", code)
            record = await containers.settle(container.id)
            places = [*_ALWAYS, *targets, *(point.destination for point in record.mounts)]
            layer = await build.workshop.take(container.id, run.state.chains, build.keep_layer, places)
            keep = not build.options.remove
        finally:
            removed = await to_the_end(_clear(run, making, name, keep=keep))
    if removed:
        await run.lane.say(f"Removing intermediate container {short_id(removed)}\n")
    return layer


async def _until_its_end(run: StageRun, container: str) -> int:
    """Start it, pass on what it writes; its exit code."""
    containers = run.build.containers
    streams = await containers.attach(container)
    waiter = containers.register_wait(container, "next-exit")
    try:
        await containers.start_container(container)
        await _pump(streams, run.lane)
        return (await waiter.result()).exit_code
    finally:
        waiter.close()
        await streams.close()


async def _clear(run: StageRun, making: asyncio.Future[tuple[Container, list[str]]], name: str, *, keep: bool) -> str:
    """Remove the container, whatever happened to its step; its id, "" if none was removed."""
    await asyncio.wait([making])
    if making.cancelled() or making.exception() is not None:
        return ""
    container, _ = making.result()
    if keep:
        return ""
    containers = run.build.containers
    try:
        with suppress(NotFound):
            await containers.remove(container.id, force=True, volumes=True)
    except SwarmletError as err:
        log.warning("a build's container stays behind", container=name, error=str(err))
        return ""
    return container.id


async def _mounts(
    run: StageRun, step: kinds.Run, command: _Command, stack: AsyncExitStack
) -> tuple[list[Mount], list[str]]:
    """Mounts of files that the step depends on, and what they and all others are to the cache."""
    mounts: list[Mount] = []
    marks: list[str] = []
    if command.script:
        mounts.append(await _script(run, command))
    for wish in _wishes(run, step):
        mark = repr(wish)
        if wish.type == "bind":
            mount, digest = await _bind(run, wish, stack)
            mounts.append(mount)
            mark += digest
        marks.append(mark)
    return mounts, marks


def _wishes(run: StageRun, step: kinds.Run) -> list[RunMount]:
    """With variables replaced and targets absolute. Secrets that were not required are left out: there are none."""
    text, working_dir = run.scope.text, run.config.working_dir or "/"
    return [
        fields_replaced(
            wish, target=posixpath.join("/", working_dir, text(wish.target)), source=text(wish.source), id=text(wish.id)
        )
        for wish in step.mounts if wish.type != "secret"
    ]


async def _script(run: StageRun, command: _Command) -> Mount:
    place = run.build.folder / f"script-{run.build.serial()}"
    await asyncio.to_thread(_write_script, place, command.script)
    return Mount(type="bind", source=str(place), target=command.argv[0], read_only=True)


def _write_script(place: Path, content: str) -> None:
    place.write_text(content)
    place.chmod(0o755)


async def _bind(run: StageRun, wish: RunMount, stack: AsyncExitStack) -> tuple[Mount, str]:
    """A file or folder of the context, a stage or an image, for reading; and the digest of what is in it."""
    folder = run.build.context
    if wish.stage:
        state = await source_state(run, wish.stage)
        folder = (await stack.enter_async_context(run.build.workshop.bench(state.chains))).path
    root = stack.enter_context(Root(folder))
    found = await asyncio.to_thread(
        find_sources, root, [wish.source.replace("*", "\\*") or "."], what="RUN --mount", of_context=not wish.stage
    )
    digest = await stoppable(lambda stopped: digest_of_sources(found, owners=True, stopped=stopped))
    source = folder / found[0].path
    return Mount(type="bind", source=str(source), target=wish.target, read_only=True), digest


async def _private_mounts(run: StageRun, step: kinds.Run, stack: AsyncExitStack) -> list[Mount]:
    """Caches and tmpfs: nothing that the result may depend on."""
    mounts = []
    for wish in _wishes(run, step):
        if wish.type == "tmpfs":
            options = TmpfsOptions(size_bytes=wish.size)
            mounts.append(Mount(type="tmpfs", target=wish.target, tmpfs_options=options))
        elif wish.type == "cache":
            folder = await _cache_folder(run, wish, stack)
            mounts.append(Mount(type="bind", source=str(folder), target=wish.target, read_only=wish.read_only))
    return mounts


async def _cache_folder(run: StageRun, wish: RunMount, stack: AsyncExitStack) -> Path:
    """Kept between builds. "locked" waits for other steps that use it so; "private" takes another one then."""
    locks = run.build.cache_locks
    name = wish.id
    if wish.sharing == "private":
        count = 0
        while (taken := locks.get(name)) is not None and taken.locked():
            count += 1
            name = f"{wish.id}\0{count}"
    if wish.sharing != "shared":
        lock = locks.setdefault(name, asyncio.Lock())
        await lock.acquire()
        stack.callback(lock.release)
    folder = run.build.caches_folder / digest_of(name.encode()).removeprefix("sha256:")[:32]
    await asyncio.to_thread(_make_cache, folder, wish)
    return folder


def _make_cache(folder: Path, wish: RunMount) -> None:
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True)
    os.chown(folder, wish.uid, wish.gid)
    folder.chmod(wish.mode)


async def _pump(streams: Streams, lane: Lane) -> None:
    """What the program writes, as text."""
    decoders = {
        stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (1, 2)
    }
    async for stream, data in streams:
        if text := decoders[stream].decode(data):
            await lane.program(stream, text)
    for stream, decoder in decoders.items():
        if text := decoder.decode(b"", final=True):
            await lane.program(stream, text)
