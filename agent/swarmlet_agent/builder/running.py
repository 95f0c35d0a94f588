"""RUN: a container of the stage's image so far, whose changes become a layer."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from msgspec.structs import replace

from swarmlet.errors import NotFound, SwarmletError
from swarmlet.log import get_logger
from swarmlet.model.common import HealthConfig, Mount
from swarmlet.model.container import ContainerCreate, LogConfig
from swarmlet.model.ids import short_id
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.cache import key_of
from swarmlet_agent.builder.output import BuildFailed, Lane
from swarmlet_agent.builder.runmounts import check_given, mounts_of, private_mounts, script_mount
from swarmlet_agent.builder.stage import PREDEFINED, StageRun
from swarmlet_agent.builder.state import env_of, shell_of
from swarmlet_agent.engine.container import Container
from swarmlet_agent.engine.ports import Streams
from swarmlet_agent.images.layers import Layer
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
    ran = (f"|{len(shown)}", *shown, *command.argv) if shown else command.argv
    async with AsyncExitStack() as stack:
        mounts, marks = await mounts_of(run, step, stack)
        key = key_of(run.state, created_by, command.script, step.network, *marks)
        if await run.cached(key, run.config, created_by, ran):
            return
        check_given(run, step)
        if command.script:
            mounts.insert(0, await script_mount(run, command.argv[0], command.script))
        mounts += await private_mounts(run, step, stack)
        request = _request(run, step, command, args, mounts)
        layer = await _in_container(run, request, [mount.target for mount in mounts])
        run.keep(key, run.config, created_by, layer, ran=ran)


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
        keep, failure, layer = False, None, None
        try:
            container, warnings = await asyncio.shield(making)
            for warning in warnings:
                await run.lane.say(f" ---> [Warning] {warning}\n")
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
        except SwarmletError as err:
            failure = err
        finally:
            removed = await to_the_end(_clear(run, making, name, keep=keep))
    if removed:
        await run.lane.say(f" ---> Removed intermediate container {short_id(removed)}\n")
    if failure is not None:
        raise failure
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
