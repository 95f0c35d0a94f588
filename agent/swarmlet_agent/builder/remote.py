"""POST /build?remote=…: a context that the engine fetches itself: a tar, a lone Dockerfile, or a git repository."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet_agent.builder.context import DEFAULT_NAME, receive
from swarmlet_agent.builder.dockerfile import MAX_BYTES
from swarmlet_agent.builder.options import BuildOptions
from swarmlet_agent.images.compression import kind_of
from swarmlet_agent.images.unpack import remove_tree

_GIT = re.compile(r"(?:git://|git@|ssh://|github\.com/)|https?://.*\.git(?:#.*)?$")
_GIT_TIMEOUT_S = 600.0
_SAFE_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def is_git(url: str) -> bool:
    return _GIT.match(url) is not None


async def fetch_remote(
    options: BuildOptions, folder: Path, fetch: Callable[[str], AsyncIterator[bytes]]
) -> tuple[Path, str]:
    """(context, name of the Dockerfile). InvalidArgument, NotSupported, RegistryUnreachable."""
    url = options.remote
    if is_git(url):
        return await _clone(url, folder), options.dockerfile
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f'unable to prepare context: unsupported remote "{url}": use an http(s) or git URL')
    chunks = fetch(url)
    start = b""
    async for piece in chunks:
        start += piece
        if len(start) >= 512:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield start
        async for piece in chunks:
            yield piece

    if kind_of(start) or start[257:262] == b"ustar":
        return await receive(whole(), folder), options.dockerfile
    text = b""
    async for piece in whole():
        text += piece
        if len(text) > MAX_BYTES:
            raise InvalidArgument(f"{url} is neither a tar archive nor a Dockerfile")
    context = folder / "context"
    await asyncio.to_thread(_write, context, text)
    return context, DEFAULT_NAME


def _write(context: Path, text: bytes) -> None:
    context.mkdir()
    (context / DEFAULT_NAME).write_bytes(text)


async def _clone(url: str, folder: Path) -> Path:
    """repository[#ref[:folder]], by the git command of this host."""
    git = shutil.which("git")
    if git is None:
        raise NotSupported("building from a git repository needs the git command on the engine's host")
    repository, _, fragment = url.partition("#")
    ref, _, inner = fragment.partition(":")
    if repository.startswith("github.com/"):
        repository = f"https://{repository}"
    if ref and _SAFE_REF.fullmatch(ref) is None:
        raise InvalidArgument(f"invalid git reference {ref!r}")
    place = folder / "repository"
    await _git(git, "init", "-q", str(place))
    fetch = (git, "-C", str(place), "fetch", "-q")
    try:
        await _git(*fetch, "--depth", "1", "--", repository, ref or "HEAD")
    except InvalidArgument as err:
        if "shallow" not in str(err):
            raise
        await _git(*fetch, "--", repository, ref or "HEAD")  # a plain file server has whole histories only
    await _git(git, "-C", str(place), "checkout", "-q", "FETCH_HEAD")
    await _git(git, "-C", str(place), "submodule", "update", "-q", "--init", "--recursive", "--depth", "1")
    await asyncio.to_thread(remove_tree, place / ".git")
    top, context = os.path.realpath(place), os.path.realpath(place / inner.lstrip("/"))
    if context != top and not context.startswith(top + "/"):
        raise InvalidArgument(f"the folder {inner!r} is outside the repository")
    if not os.path.isdir(context):
        raise InvalidArgument(f"the folder {inner!r} is not in the repository")
    return Path(context)


async def _git(*argv: str) -> None:
    environment = {
        **os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
        "GIT_ALLOW_PROTOCOL": "git:http:https:ssh",  # also for submodules
    }
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(_GIT_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError as err:
        raise InvalidArgument(f"git took longer than {_GIT_TIMEOUT_S:.0f} s") from err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise InvalidArgument(f"unable to fetch the git repository: {said.decode(errors='replace').strip()[-500:]}")
