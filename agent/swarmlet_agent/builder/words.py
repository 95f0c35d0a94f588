"""Words of a Dockerfile: variables, quotes and escapes, after the rules of the Dockerfile reference. Pure.

`$name` and `${name}` are replaced, also inside double quotes; single quotes and the escape character take away the
meaning of what they cover. Modifiers: `:-` `-` `:+` `+` `:?` `?`, and the patterns `#` `##` `%` `%%` `/` `//`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

#: Names of one character that a shell would know; a Dockerfile has no value for them.
_SPECIAL = frozenset("@*#?-$!0")
_MAX_DEPTH = 50
_SPACES = " \t\r\n\v\f"


class BadWord(ValueError):
    """What is wrong with a word, in the words of Docker's builder."""


def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """One word: variables replaced, quotes and escapes gone. BadWord."""
    reader = _Reader(text, variables, escape)
    return "".join(piece for piece, _ in reader.until(""))


def expand_content(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """A here-document: variables replaced, quotes kept; the escape character covers "$" and itself. BadWord."""
    return _Reader(text, variables, escape).content()


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """Several words: blanks that are not quoted separate, also those that a variable brings. BadWord."""
    words: list[str] = []
    current: list[str] | None = None
    for piece, quoted in _Reader(text, variables, escape).until(""):
        if quoted:
            current = [*(current or ()), piece]
            continue
        for character in piece:
            if character in _SPACES:
                if current is not None:
                    words.append("".join(current))
                current = None
            else:
                current = current if current is not None else []
                current.append(character)
    return words if current is None else [*words, "".join(current)]


def split_words(text: str, escape: str = "\\") -> list[str]:
    """Words as they are written, with their quotes and escapes; only blanks outside of those separate."""
    words: list[str] = []
    start = -1
    quote, at = "", 0
    while at < len(text):
        character = text[at]
        if not quote and character in _SPACES:
            if start >= 0:
                words.append(text[start:at])
                start = -1
            at += 1
            continue
        start = at if start < 0 else start
        if character == escape and quote != "'":
            at += 2
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        at += 1
    return words if start < 0 else [*words, text[start:]]


class _Reader:
    """Goes through a text once; gives (piece, whether it was quoted)."""

    def __init__(self, text: str, variables: Mapping[str, str], escape: str) -> None:
        self._text, self._variables, self._escape = text, variables, escape
        self._at = 0
        self._depth = 0

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def until(self, stop: str) -> list[tuple[str, bool]]:
        """Up to the stop character, which is taken, or to the end if stop is ""."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadWord("substitutions are nested too deeply")
        pieces: list[tuple[str, bool]] = []
        while True:
            character = self._peek()
            if not character:
                if stop:
                    raise BadWord(f"syntax error: missing '{stop}'")
                break
            if character == stop:
                self._at += 1
                break
            if character == "'":
                pieces.append((self._single(), True))
            elif character == '"':
                pieces.append((self._double(), True))
            elif character == "$":
                pieces.append((self._dollar(), False))
            elif character == self._escape:
                self._at += 1
                pieces.append((self._next(), True))
            else:
                self._at += 1
                pieces.append((character, False))
        self._depth -= 1
        return pieces

    def content(self) -> str:
        pieces: list[str] = []
        while character := self._peek():
            if character == "$":
                pieces.append(self._dollar())
                continue
            self._at += 1
            if character == self._escape and self._peek() in ("$", self._escape):
                character = self._next()
            pieces.append(character)
        return "".join(pieces)

    def _single(self) -> str:
        self._at += 1
        end = self._text.find("'", self._at)
        if end < 0:
            raise BadWord("unexpected end of statement while looking for matching single-quote")
        text, self._at = self._text[self._at : end], end + 1
        return text

    def _double(self) -> str:
        self._at += 1
        pieces: list[str] = []
        while True:
            character = self._peek()
            if not character:
                raise BadWord("unexpected end of statement while looking for matching double-quote")
            if character == '"':
                self._at += 1
                return "".join(pieces)
            if character == "$":
                pieces.append(self._dollar())
                continue
            self._at += 1
            if character == self._escape:
                following = self._next()
                if not following:
                    raise BadWord("unexpected end of statement while looking for matching double-quote")
                pieces.append(following if following in ('"', "$", self._escape) else character + following)
            else:
                pieces.append(character)

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._at += 1
        if not self._peek():
            raise BadWord("syntax error: missing '}'")
        name = self._name()
        modifier = self._next()
        if modifier == "}":
            if not name:
                raise BadWord("bad substitution")
            return self._variables.get(name, "")
        if not name or not modifier:
            raise BadWord("syntax error: missing '}'" if not modifier else "bad substitution")
        return self._modified(name, modifier)

    def _modified(self, name: str, modifier: str) -> str:
        value = self._variables.get(name)
        if modifier == ":":
            modifier = self._next()
            if modifier not in tuple("+-?"):
                raise BadWord(f"unsupported modifier ({modifier}) in substitution")
            value = value or None
        if modifier in "+-?":
            word = self._plain("}")
            match modifier:
                case "+":
                    return word if value is not None else ""
                case "-":
                    return word if value is None else value
            if value is None:
                raise BadWord(f"{name}: {word or 'is not allowed to be unset'}")
            return value
        if modifier in "#%":
            longest = self._peek() == modifier
            self._at += longest
            pattern = self._plain("}")
            return _trim(value or "", pattern, front=modifier == "#", longest=longest)
        if modifier == "/":
            everywhere = self._peek() == "/"
            self._at += everywhere
            pattern, replacement = self._plain("/"), self._plain("}")
            return _glob(pattern).sub(lambda _: replacement, value or "", count=0 if everywhere else 1)
        raise BadWord(f"unsupported modifier ({modifier}) in substitution")

    def _plain(self, stop: str) -> str:
        return "".join(piece for piece, _ in self.until(stop))

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first and first in _SPECIAL:
            self._at += 1
            return first
        fits: Callable[[str], bool] = (
            str.isdigit if first.isdigit() else lambda character: character.isalnum() or character == "_"
        )
        while (character := self._peek()) and character.isascii() and fits(character):
            self._at += 1
        return self._text[start : self._at]


def _glob(pattern: str, *, greedy: bool = True) -> re.Pattern[str]:
    star = ".*" if greedy else ".*?"
    parts = [star if part == "*" else "." if part == "?" else re.escape(part) for part in pattern]
    return re.compile("".join(parts), re.DOTALL)


def _trim(value: str, pattern: str, *, front: bool, longest: bool) -> str:
    """The shell's `#` and `%`: the shortest or longest match at one end goes."""
    whole = _glob(pattern)
    lengths = range(len(value), -1, -1) if longest else range(len(value) + 1)
    for length in lengths:
        part = value[:length] if front else value[len(value) - length :]
        if whole.fullmatch(part):
            return value[length:] if front else value[: len(value) - length]
    return value
