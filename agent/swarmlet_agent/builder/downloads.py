"""ADD of a URL: one file, named and dated as its server says, into the build's own folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet_agent.images.registry import Download

#: Of a file whose server gives it no name: its target must name it then.
UNNAMED = "__unnamed__"
OpenUrl = Callable[[str], AbstractAsyncContextManager[Download]]


async def download(open_url: OpenUrl, url: str, target: str, checksum: str, folder: Path) -> str:
    """The file's name in `folder`, which is made; 0600 as Docker has it. InvalidArgument in the builder's words."""
    if checksum and not checksum.startswith("sha256:"):
        raise InvalidArgument(f"invalid checksum {checksum!r}: only sha256 is supported")
    digest = hashlib.sha256()
    try:
        async with open_url(url) as answer:
            name = _base(unquote(urlsplit(url).path)) or _base(answer.file_name)
            if not name and target.endswith("/"):
                raise InvalidArgument(f"cannot determine filename for source {url}")
            place = folder / (name or UNNAMED)
            await asyncio.to_thread(folder.mkdir)
            with place.open("xb") as file:
                async for piece in answer.pieces:
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
            modified_at = answer.modified_at
    except SwarmletError as err:
        raise InvalidArgument(f"ADD failed: {err}") from err
    if checksum and checksum != f"sha256:{digest.hexdigest()}":
        raise InvalidArgument(f"digest mismatch sha256:{digest.hexdigest()}: {checksum}")
    place.chmod(0o600)
    os.utime(place, (modified_at, modified_at))
    return place.name


def _base(path: str) -> str:
    """The last word of a path, "" if it ends with a slash."""
    name = posixpath.basename(path)
    return "" if name in (".", "..") or "\0" in name else name
