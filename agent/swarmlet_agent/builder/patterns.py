"""Patterns of file names: `.dockerignore`, and the wildcards of COPY and ADD. Pure.

Both are Go's filepath.Match ("*", "?", "[a-z]", backslash), in `.dockerignore` with "**" for any number of folders
and "!" for an exception; there the last pattern that fits decides, and a folder that is out takes all of it along.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.globs import compile_pattern


@dataclass(frozen=True, slots=True)
class Pattern:
    expression: re.Pattern[str]
    exception: bool


@dataclass(frozen=True, slots=True)
class Ignore:
    patterns: tuple[Pattern, ...] = ()

    def matches(self, path: str) -> bool:
        """Whether a path, relative to the context's root and with "/", is out."""
        out = False
        parents = list(_prefixes(path))
        for pattern in self.patterns:
            if out != pattern.exception:
                continue
            if any(pattern.expression.fullmatch(parent) for parent in parents):
                out = not pattern.exception
        return out

    @property
    def has_exceptions(self) -> bool:
        return any(pattern.exception for pattern in self.patterns)


NOTHING = Ignore()


def parse_ignore(text: str) -> Ignore:
    """The lines of a .dockerignore. InvalidArgument for a pattern that is none."""
    patterns = []
    for row in text.removeprefix("\ufeff").splitlines():
        if row.startswith("#"):
            continue
        word = row.strip()
        exception = word.startswith("!")
        if exception:
            word = word[1:].strip()
        if not word:
            if exception:
                raise InvalidArgument('illegal exclusion pattern: "!"')
            continue
        word = posixpath.normpath(word)
        word = word.lstrip("/") if len(word) > 1 else word
        if word in (".", "/"):
            continue
        patterns.append(Pattern(compile_pattern(word, deep=True), exception))
    return Ignore(tuple(patterns))


def has_wildcards(path: str) -> bool:
    at = 0
    while at < len(path):
        if path[at] == "\\":
            at += 1
        elif path[at] in "*?[":
            return True
        at += 1
    return False


def _prefixes(path: str) -> Sequence[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
