"""Go's path.Match as regular expressions: "*" and "?" stop at slashes, "[a-z]" and "[^a-z]" are classes, a backslash
quotes. Pure."""

from __future__ import annotations

import re

from swarmlet.errors import InvalidArgument


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
