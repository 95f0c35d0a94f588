"""The steps that bring files into an image without running anything: COPY, ADD, WORKDIR."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder import instructions as kinds
from swarmlet_agent.builder.build import Build
from swarmlet_agent.builder.cache import key_of
from swarmlet_agent.builder.copying import How, copy_sources, owner_of, resolve_target
from swarmlet_agent.builder.downloads import download
from swarmlet_agent.builder.git import check_out, is_git, parse_git_url
from swarmlet_agent.builder.modes import Mode, parse_mode
from swarmlet_agent.builder.patterns import NOTHING, Ignore, parse_ignore
from swarmlet_agent.builder.plan import find_stage
from swarmlet_agent.builder.rooted import Root
from swarmlet_agent.builder.sources import Found, digest_of_sources, find_sources
from swarmlet_agent.builder.stage import StageRun
from swarmlet_agent.builder.state import State, noted, working_dir
from swarmlet_agent.builder.words import expand_content
from swarmlet_agent.images.layers import stoppable

_SCHEMES = ("http://", "https://")


async def do_workdir(run: StageRun, step: kinds.Workdir) -> None:
    """WORKDIR: the folder is made if it is missing, and then it is a layer."""
    path = working_dir(step, run.scope)
    config = run.with_config(working_dir=path)
    created_by = noted(config, f"WORKDIR {path}")
    key = key_of(run.state, created_by)
    if await run.cached(key, config, created_by):
        return
    async with run.build.workshop.bench(run.state.chains) as bench:
        await asyncio.to_thread(_make_folder, bench.path, path)
        layer = await bench.take(run.build.keep_layer)
        run.keep(key, config, created_by, layer)


def _make_folder(root: Path, path: str) -> None:
    with Root(root) as opened:
        try:
            os.close(opened.make_folders(path))
        except NotADirectoryError as err:
            raise InvalidArgument(f"Cannot mkdir: {path} is not a directory") from err


async def do_copy(run: StageRun, step: kinds.Copy) -> None:
    """COPY and ADD."""
    what, scope, cache = "ADD" if step.add else "COPY", run.scope, run.build.cache
    chown, chmod, target = scope.text(step.chown), scope.text(step.chmod), scope.text(step.target)
    mode = parse_mode(chmod)
    excluded = tuple(scope.text(word) for word in step.exclude)
    asked = _Asked(
        what, tuple(scope.text(source) for source in step.sources), target, excluded, _exclude(excluded), step.parents,
        step.unpack, step.checksum, step.keep_git_dir,
        tuple((doc.name, expand_content(doc.content, scope.variables, scope.escape) if doc.expands else doc.content)
              for doc in step.heredocs),
    )
    state = await _source_state(run, step)
    # What a finished stage or image has cannot change: its digest is known after the first time.
    memo = (state.chains, asked.sources, step.parents, step.exclude) if state is not None else None
    known = cache.digest(memo) if memo is not None else None
    async with AsyncExitStack() as stack:
        files: _Files | None = None
        if known is None:
            files = await _gather(run.build, asked, state, stack)
            known = f"{len(files.found)} {files.digest}"
            if memo is not None:
                cache.keep_digest(memo, known)
        count, _, digest = known.partition(" ")
        place, as_folder = resolve_target(target, run.config.working_dir, several=int(count) > 1, what=what)
        unpack = "" if step.unpack is None else str(step.unpack).lower()
        flags = "".join(f"--{name}={value} " for name, value in (("chmod", chmod), ("unpack", unpack)) if value)
        # Nothing parts the owner from the digest: so Docker's histories have it, and --cache-from compares them.
        owner = f"--chown={chown}" if chown else ""
        created_by = noted(run.config, f"{what} {flags}{owner}{digest} in {target} ")
        key = key_of(run.state, created_by)
        if await run.cached(key, run.config, created_by):
            return
        files = files or await _gather(run.build, asked, state, stack)
        default = None if state is not None else (0, 0)
        await _put(run, key, created_by, files, place, as_folder, chown, default, mode, asked.exclude)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The instruction with its variables replaced. excluded: as given, exclude: what it means; inline: (name, content)
    of here-documents."""

    what: str
    sources: tuple[str, ...]
    target: str
    excluded: tuple[str, ...]
    exclude: Ignore
    parents: bool
    unpack: bool | None
    checksum: str
    keep_git_dir: bool
    inline: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Files:
    """(source, whether ADD unpacks it) of each, and the digest of all."""

    found: tuple[tuple[Found, bool], ...]
    digest: str


def _exclude(words: Sequence[str]) -> Ignore:
    return parse_ignore("\n".join(words)) if words else NOTHING


async def _put(
    run: StageRun, key: str, created_by: str, files: _Files, place: str, as_folder: bool, chown: str,
    default: tuple[int, int] | None, mode: Mode | None, exclude: Ignore,
) -> None:
    """Copy, and keep what came of it."""
    async with run.build.workshop.bench(run.state.chains) as bench:

        def copy(stopped: Callable[[], bool]) -> None:
            with Root(bench.path) as root:
                given = owner_of(root, chown) if chown else None
                for one, unpack in files.found:
                    how = How(given or default, given, mode, exclude, unpack)
                    copy_sources([one], root, place, as_folder, how, stopped)

        await stoppable(copy)
        layer = await bench.take(run.build.keep_layer)
        run.keep(key, run.config, created_by, layer)


async def _source_state(run: StageRun, step: kinds.Copy) -> State | None:
    """The stage or image of --from; None: the build context."""
    return await source_state(run, step.source) if step.source else None


async def source_state(run: StageRun, name: str) -> State:
    """An earlier stage by name or number, once it is done, or else an image."""
    build = run.build
    number = find_stage(build.plan.stages, name, run.stage.number)
    return await build.results[number] if number is not None else await build.image(name, "", run.lane)


async def _gather(build: Build, asked: _Asked, state: State | None, stack: AsyncExitStack) -> _Files:
    """Find all sources; their roots stay open, and mounted, as long as the stack."""
    if state is not None:
        bench = await stack.enter_async_context(build.workshop.bench(state.chains))
        root = stack.enter_context(Root(bench.path))
    else:
        root = stack.enter_context(Root(build.context))
    found: list[tuple[Found, bool]] = []
    add = asked.what == "ADD"
    if asked.checksum and len(asked.sources) != 1:
        raise InvalidArgument("checksum can't be specified for multiple sources")
    for source in asked.sources:
        if is_git(source) and state is None:
            if not add:
                raise InvalidArgument("COPY failed: source can't be a git ref for COPY")
            found.append((await _repository(build, source, asked, stack), False))
            continue
        if source.startswith(_SCHEMES):
            if not add:
                raise InvalidArgument("COPY failed: source can't be a URL for COPY")
            one = await _download(build, source, asked, stack)
            found.append((one, bool(asked.unpack)))
            continue
        if asked.checksum:
            raise InvalidArgument("checksum requires HTTP(S) or Git sources")
        local = await asyncio.to_thread(
            find_sources, root, [source], what=asked.what, parents=asked.parents, of_context=state is None
        )
        found += [(one, add and asked.unpack is not False) for one in local]
    for name, content in asked.inline:
        found.append((await _inline(build, name, content, stack), False))
    sources = [one for one, _ in found]
    digest = await stoppable(lambda stopped: digest_of_sources(
        sources, owners=state is not None, exclude=asked.exclude, stopped=stopped
    ))
    return _Files(tuple(found), digest)


async def _inline(build: Build, name: str, content: str, stack: AsyncExitStack) -> Found:
    folder = build.folder / f"inline-{build.serial()}"
    await asyncio.to_thread(_write, folder, name, content)
    return Found(stack.enter_context(Root(folder)), name, name, False)


def _write(folder: Path, name: str, content: str) -> None:
    folder.mkdir()
    if "/" in name or name in (".", ".."):
        raise InvalidArgument(f"invalid name of a here-document: {name!r}")
    place = folder / name
    place.write_text(content)
    place.chmod(0o644)
    os.utime(place, (0, 0))


async def _download(build: Build, url: str, asked: _Asked, stack: AsyncExitStack) -> Found:
    folder = build.folder / f"download-{build.serial()}"
    name = await download(build.images.open_url, url, asked.target, asked.checksum, folder)
    return Found(stack.enter_context(Root(folder)), name, name, False)


async def _repository(build: Build, url: str, asked: _Asked, stack: AsyncExitStack) -> Found:
    """What a git repository has, as the folder that is copied. The commit says what is in it; .git is never twice the
    same, and does not count."""
    source = parse_git_url(url)
    place = build.folder / f"repository-{build.serial()}"
    checkout = await check_out(source, place, keep_git_dir=asked.keep_git_dir, checksum=asked.checksum)
    kept = ".git" if asked.keep_git_dir else ""
    words = "\0".join((checkout.commit, source.folder, kept, *asked.excluded))
    digest = f"git:{sha256(words.encode()).hexdigest()}"
    return Found(stack.enter_context(Root(checkout.folder)), "", "", True, digest=digest)
