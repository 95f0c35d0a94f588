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


def compile_pattern(pattern: str, *, deep: bool = False) -> re.Pattern[str]:
    """As a regular expression for whole paths. deep: "**" means any folders. InvalidArgument (Go: ErrBadPattern)."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if deep and pattern[at : at + 1] == "*":
                while pattern[at : at + 1] == "*":
                    at += 1
                slash = pattern[at : at + 1] == "/"
                at += slash
                out.append(".*" if at >= len(pattern) else "(?:.*/)?")
            else:
                out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "[":
            text, at = _class(pattern, at)
            out.append(text)
        elif character == "\\":
            if at >= len(pattern):
                raise _bad(pattern)
            out.append(re.escape(pattern[at]))
            at += 1
        else:
            out.append(re.escape(character))
    return re.compile("".join(out), re.DOTALL)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A bracket expression from behind its "["."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while True:
        if at >= len(pattern):
            raise _bad(pattern)
        if pattern[at] == "]" and ranges:
            return f"[{'^/' if negated else ''}{''.join(ranges)}]", at + 1
        low, at = _member(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _member(pattern, at + 1)
        if high < low:
            raise _bad(pattern)
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")


def _member(pattern: str, at: int) -> tuple[str, int]:
    if at < len(pattern) and pattern[at] == "\\":
        at += 1
    elif at < len(pattern) and pattern[at] in "-]":
        raise _bad(pattern)
    if at >= len(pattern):
        raise _bad(pattern)
    return pattern[at], at + 1


def _bad(pattern: str) -> InvalidArgument:
    return InvalidArgument(f"syntax error in pattern: {pattern!r}")


def _prefixes(path: str) -> Sequence[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
