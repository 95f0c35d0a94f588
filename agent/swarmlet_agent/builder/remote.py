"""POST /build?remote=…: a context that the engine fetches itself: a tar, a lone Dockerfile, or a git repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.context import DEFAULT_NAME, receive
from swarmlet_agent.builder.dockerfile import MAX_BYTES
from swarmlet_agent.builder.git import check_out, is_git, parse_git_url
from swarmlet_agent.builder.options import BuildOptions
from swarmlet_agent.images.compression import kind_of

#: The build argument that has a context keep its .git (the Dockerfile reference, BuildKit's own arguments).
KEEP_GIT_DIR = "BUILDKIT_CONTEXT_KEEP_GIT_DIR"


async def fetch_remote(
    options: BuildOptions, folder: Path, fetch: Callable[[str], AsyncIterator[bytes]]
) -> tuple[Path, str]:
    """(context, name of the Dockerfile). InvalidArgument, NotSupported, RegistryUnreachable."""
    url = options.remote
    if is_git(url, github=True):
        keep = (options.build_args.get(KEEP_GIT_DIR) or "").lower() in ("1", "true", "t")
        checkout = await check_out(parse_git_url(url), folder / "repository", keep_git_dir=keep)
        return checkout.folder, options.dockerfile
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
