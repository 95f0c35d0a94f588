"""Git repositories as build contexts and as sources of ADD, by the git command of this host.

What they are called: repository[#ref[:folder]]. git gets no prompt, no configuration of the host's, and no transport
that reads this host's files.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet_agent.images.unpack import remove_tree

_GIT = re.compile(r"(?:git://|ssh://|[\w.-]+@[\w.-]+:)|https?://[^#]*\.git(?:#.*)?$")
_TIMEOUT_S = 600.0
_SAFE_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_CHECKSUM = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True, slots=True)
class GitUrl:
    """ref: branch, tag or commit, "" = what the repository has as its own; folder: within it, "" = all of it."""

    repository: str
    ref: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Checkout:
    """folder: what was asked for of the repository; commit: its full name."""

    folder: Path
    commit: str


def is_git(url: str, *, github: bool = False) -> bool:
    """github: "github.com/…" counts, too: of a context it cannot be a path, of ADD's source it can."""
    return _GIT.match(url) is not None or (github and url.startswith("github.com/"))


def parse_git_url(url: str) -> GitUrl:
    """InvalidArgument for a ref that git could take for something else."""
    repository, _, fragment = url.partition("#")
    ref, _, folder = fragment.partition(":")
    if repository.startswith("github.com/"):
        repository = f"https://{repository}"
    if ref and _SAFE_REF.fullmatch(ref) is None:
        raise InvalidArgument(f"invalid git reference {ref!r}")
    return GitUrl(repository, ref, folder.strip("/"))


async def check_out(url: GitUrl, place: Path, *, keep_git_dir: bool = False, checksum: str = "") -> Checkout:
    """Into `place`, which is made. InvalidArgument with git's words, or if the commit is not `checksum`; NotSupported.

    keep_git_dir: with the folder .git, if all of the repository was asked for; checksum: a commit, at least seven
    digits of it.
    """
    git = shutil.which("git")
    if git is None:
        raise NotSupported("a git repository needs the git command on the engine's host")
    if checksum and _CHECKSUM.fullmatch(checksum) is None:
        raise InvalidArgument(f"invalid checksum {checksum!r} for Git source: expected a commit in hexadecimal")
    here = (git, "-C", str(place))
    await _git(git, "init", "-q", str(place))
    await _fetch(here, url)
    await _git(*here, "checkout", "-q", "FETCH_HEAD")
    commit = (await _git(*here, "rev-parse", "--verify", "HEAD")).strip()
    if checksum and not commit.startswith(checksum):
        raise InvalidArgument(f"expected checksum to match {checksum}, got {commit}")
    await _git(*here, "submodule", "update", "-q", "--init", "--recursive", "--depth", "1")
    if keep_git_dir and not url.folder:
        await _git(*here, "remote", "add", "origin", _without_password(url.repository))
        (place / ".git/FETCH_HEAD").unlink(missing_ok=True)
    else:
        await asyncio.to_thread(remove_tree, place / ".git")
    top, folder = os.path.realpath(place), os.path.realpath(place / url.folder)
    if folder != top and not folder.startswith(top + "/"):
        raise InvalidArgument(f"the folder {url.folder!r} is outside the repository")
    if not os.path.isdir(folder):
        raise InvalidArgument(f"the folder {url.folder!r} is not in the repository")
    return Checkout(Path(folder), commit)


async def _fetch(here: tuple[str, ...], url: GitUrl) -> None:
    """As little as the server lets us have."""
    fetch, wanted = (*here, "fetch", "-q"), url.ref or "HEAD"
    try:
        await _git(*fetch, "--depth", "1", "--", url.repository, wanted)
    except InvalidArgument as err:
        if "shallow" not in str(err):
            raise
        await _git(*fetch, "--", url.repository, wanted)  # a plain file server has whole histories only


def _without_password(repository: str) -> str:
    """As it may stand in an image."""
    if "://" not in repository:
        return repository
    parts = urlsplit(repository)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.password else repository


async def _git(*argv: str) -> str:
    """What it says. InvalidArgument with the end of its complaint."""
    environment = {
        **os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
        "GIT_ALLOW_PROTOCOL": "git:http:https:ssh",  # also for submodules
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "LC_ALL": "C",
    }
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            said, complaint = await process.communicate()
    except TimeoutError as err:
        raise InvalidArgument(f"git took longer than {_TIMEOUT_S:.0f} s") from err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = complaint.decode(errors="replace").strip()[-500:]
        raise InvalidArgument(f"unable to fetch the git repository: {words}")
    return said.decode(errors="replace")
