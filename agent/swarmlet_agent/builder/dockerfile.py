"""The lines of a Dockerfile: directives, continuations, comments, here-documents. Pure.

What comes out is one `Line` per instruction; what the instruction means is `instructions.py`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument
from swarmlet_agent.builder.words import split_words

#: A Dockerfile larger than this is none.
MAX_BYTES = 4 << 20
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = ("escape", "syntax", "check")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]*)")
_WITH_HEREDOCS = ("add", "copy", "run")
_BLANKS = re.compile(r"[\t\v\f\r ]+")


class BadDockerfile(InvalidArgument):
    """A mistake in the Dockerfile, with its line."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"dockerfile parse error on line {line}: {message}" if line else message)


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document. expands: its name was not quoted, so variables in it are replaced (COPY and ADD)."""

    name: str
    content: str
    expands: bool = True
    chomp: bool = False
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction. number: of its first line, from 1; original: without continuations; rest: behind the flags."""

    number: int
    original: str
    keyword: str
    flags: tuple[str, ...]
    rest: str
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"


@dataclass(frozen=True, slots=True)
class Dockerfile:
    lines: tuple[Line, ...]
    escape: str = "\\"


def parse_lines(text: str) -> Dockerfile:
    """All instructions. BadDockerfile names the line."""
    rows = text.removeprefix("\ufeff").splitlines()
    escape = _escape_of(rows)
    source = _Rows(rows)
    lines = tuple(_lines(source, escape))
    if not lines:
        raise BadDockerfile("file with no instructions")
    return Dockerfile(lines, escape)


def parse_one(text: str, escape: str = "\\") -> Line:
    """A single instruction (ONBUILD's trigger, `commit --change`)."""
    lines = tuple(_lines(_Rows(text.splitlines()), escape))
    if len(lines) != 1:
        raise BadDockerfile(f"expected one instruction: {text!r}")
    return lines[0]


class _Rows:
    """The file's rows, counted."""

    def __init__(self, rows: Sequence[str]) -> None:
        self._rows = rows
        self.number = 0

    def next(self) -> str | None:
        if self.number >= len(self._rows):
            return None
        self.number += 1
        return self._rows[self.number - 1]


def _escape_of(rows: Sequence[str]) -> str:
    """The directives at the top, of which only `escape` changes how the file is read."""
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        match = _DIRECTIVE.fullmatch(row.strip())
        if match is None or (name := match[1].lower()) not in _DIRECTIVES:
            break
        if name in seen:
            raise BadDockerfile(f"only one {name} parser directive can be used", number)
        seen[name] = match[2]
    escape = seen.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise BadDockerfile(f"invalid escape token '{escape}' does not match ` or \\", 1)
    _check_options(seen.get("check", ""))
    return escape


def _check_options(text: str) -> None:
    """`# check=skip=…;error=…`: what to lint, which this builder does not; what is not such an option is a mistake."""
    for option in filter(None, text.split(";", 1)):
        name, equals, value = option.partition("=")
        name = name.strip()
        if not equals or name not in ("skip", "experimental", "error"):
            raise BadDockerfile(f'invalid check option "{name if equals else option}"', 1)
        if name == "error" and value.strip().lower() not in ("1", "t", "true", "0", "f", "false"):
            raise BadDockerfile(f'failed to parse check option "{option}"', 1)


def _lines(source: _Rows, escape: str) -> Iterator[Line]:
    token = re.escape(escape)
    continued = re.compile(rf"(?:^|(?<=[^{token}])){token}[ \t]*$")
    while (row := source.next()) is not None:
        row = row.lstrip()
        if not row or row.startswith("#"):
            continue
        first = source.number
        text = ""
        while True:
            joined, goes_on = continued.subn("", row)
            text += joined if goes_on else row
            if not goes_on:
                break
            following = _continuation(source)
            if following is None:
                break
            row = following
        text = text.strip()
        if text:
            yield _line(text, first, source, escape)


def _continuation(source: _Rows) -> str | None:
    """The next row that counts: comments and empty rows inside an instruction are passed over."""
    while (row := source.next()) is not None:
        stripped = row.strip()
        if stripped and not stripped.startswith("#"):
            return row
    return None


def _line(text: str, number: int, source: _Rows, escape: str) -> Line:
    keyword, _, _ = _BLANKS.sub(" ", text, count=1).partition(" ")
    rest = text[len(keyword) :].strip()
    flags, rest = _flags(rest, number, escape)
    heredocs: tuple[Heredoc, ...] = ()
    target = rest
    name = keyword.lower()
    if name == "onbuild":
        name, _, target = _BLANKS.sub(" ", rest, count=1).partition(" ")
    if name.lower() in _WITH_HEREDOCS and "<<" in target and not target.lstrip().startswith("["):
        heredocs = tuple(_heredoc(begin, source, number) for begin in _heredoc_words(target, escape))
    return Line(number, text, keyword.lower(), flags, rest, heredocs, escape)


def _flags(rest: str, number: int, escape: str) -> tuple[tuple[str, ...], str]:
    """Leading words that begin with two dashes, quotes taken off; "--" alone ends them."""
    flags: list[str] = []
    while rest.startswith("--"):
        word = split_words(rest, escape)[0]
        rest = rest[len(word) :].strip()
        if word == "--":
            break
        flags.append(_unquoted(word, escape))
    return tuple(flags), rest


def _unquoted(word: str, escape: str) -> str:
    """Quotes and escapes off; variables stay to be replaced later."""
    out: list[str] = []
    quote, at = "", 0
    while at < len(word):
        character = word[at]
        following = word[at + 1 : at + 2]
        if character == escape and following and (following == escape or following in (quote or "'\" \t")):
            at += 1
            out.append(word[at])
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        else:
            out.append(character)
        at += 1
    return "".join(out)


def _heredoc_words(text: str, escape: str) -> list[tuple[str, bool, bool, str]]:
    """(name, expands, chomp, the word) of each `<<name` in an instruction."""
    found = []
    for word in split_words(text, escape):
        match = _HEREDOC.fullmatch(word)
        if match is None or not match[3]:
            continue
        name = match[3]
        plain = name
        if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
            plain = name[1:-1]
        if not plain or any(character in plain for character in "'\" \t"):
            continue
        found.append((plain, plain == name, bool(match[2]), word))
    return found


def _heredoc(begin: tuple[str, bool, bool, str], source: _Rows, number: int) -> Heredoc:
    name, expands, chomp, _ = begin
    rows: list[str] = []
    raw: list[str] = []
    while (row := source.next()) is not None:
        raw.append(row)
        possible = row.lstrip("\t") if chomp else row
        if possible == name:
            content = "".join(f"{line}\n" for line in rows)
            return Heredoc(name, content, expands, chomp, "".join(f"{line}\n" for line in raw))
        rows.append(possible)
    raise BadDockerfile("unterminated heredoc", number)
