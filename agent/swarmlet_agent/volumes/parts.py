"""A part of a volume or an image by its path (`volume-subpath`, `image-subpath`): inside it, or refused. Blocking."""

from __future__ import annotations

import errno
import os
import posixpath

from swarmlet.errors import InvalidArgument
from swarmlet_agent.engine.inside import open_beneath


def open_part(whole: str, subpath: str, flags: int = 0) -> int:
    """A descriptor (O_PATH) of the part, which stays the same whatever is renamed. InvalidArgument, as dockerd says it,
    for what is not there, and for a link that leads out: Docker follows links as the host sees them."""
    root = os.open(whole, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(root, subpath, os.O_PATH | flags)
    except OSError as err:
        if err.errno == errno.EXDEV:
            raise InvalidArgument(
                f'path concatenation escapes the base directory, base: "{whole}", subpath: "{subpath}"'
            ) from err
        path = posixpath.join(whole, subpath)
        raise InvalidArgument(f"cannot access path {path}: {(err.strerror or str(err)).lower()}") from err
    finally:
        os.close(root)
