"""--chmod: an octal mode, or a symbolic one as chmod(1) takes it ("u=rwX,go=rX"). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swarmlet.errors import InvalidArgument

_SYMBOLIC = re.compile(r"[augo]*(?:[-+=][rwxXstugo]*)+(?:,[augo]*(?:[-+=][rwxXstugo]*)+)*")
_CLAUSE = re.compile(r"[-+=][rwxXstugo]*")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o6777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000}
_SHIFT = {"u": 6, "g": 3, "o": 0}
_STICKY = 0o1000
#: Where no one is named, bits of this mask stay as they are (chmod(1)): the usual one, whatever the agent's own is.
_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Mode:
    """octal: the mode itself; None: `clauses`, as (who, operations), are applied to what a file has."""

    octal: int | None = None
    clauses: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def of(self, before: int, *, is_folder: bool) -> int:
        """The mode (at most 0o7777) of what had the mode `before`."""
        if self.octal is not None:
            return self.octal
        mode = before & 0o7777
        # "X" asks for what was there before the first clause: so BuildKit has it.
        searchable = is_folder or bool(mode & 0o111)
        for who, operations in self.clauses:
            for operation in operations:
                mode = _apply(mode, who, operation[0], operation[1:], searchable=searchable)
        return mode


def parse_mode(text: str) -> Mode | None:
    """None for "". InvalidArgument in BuildKit's words."""
    if not text:
        return None
    if text.isascii() and text.isdigit() and not set("89") & set(text) and int(text, 8) <= 0o7777:
        return Mode(int(text, 8))
    if _SYMBOLIC.fullmatch(text) is None:
        raise InvalidArgument(
            f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, "
            "or a symbolic mode such as u=rwX,go=rX"
        )
    clauses = []
    for clause in text.split(","):
        operations = tuple(_CLAUSE.findall(clause))
        clauses.append((clause[: len(clause) - len("".join(operations))], operations))
    return Mode(None, tuple(clauses))


def _apply(mode: int, who: str, operator: str, letters: str, *, searchable: bool) -> int:
    """One operation: "+", "-" or "=", and its letters."""
    reach = 0
    for letter in who:
        reach |= _WHO[letter]
    bits = 0
    for letter in letters:
        if letter == "t":
            bits |= _STICKY
        elif letter == "X":
            bits |= 0o111 if searchable else 0
        elif letter in _SHIFT:
            bits |= (mode >> _SHIFT[letter] & 7) * 0o111
        else:
            bits |= _BITS[letter]
    sticky = _STICKY if who != "o" else 0
    chosen = bits & ((reach or 0o6777 & ~_UMASK) | sticky)
    if operator == "+":
        return mode | chosen
    if operator == "-":
        return mode & ~chosen
    return mode & ~(reach or 0o6777) | chosen
