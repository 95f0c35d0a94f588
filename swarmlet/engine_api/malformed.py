"""What is wrong with a body that is no JSON, in the words of dockerd's decoder: clients' suites look for them. Pure.

Only asked once decoding has failed, so it may take its time.
"""

from __future__ import annotations

import json

_LITERALS = {"n": "null", "t": "true", "f": "false"}
_AFTER = {
    "Expecting property name": "looking for beginning of object key string",
    "Illegal trailing comma": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting value": "looking for beginning of value",
}


def complaint(body: bytes, otherwise: str) -> str:
    """The whole message; "invalid JSON: " and `otherwise` where there is no better word."""
    try:
        json.loads(body)
    except json.JSONDecodeError as err:
        if err.msg == "Extra data":
            return "unexpected content after JSON"
        why = _why(err.doc, err.pos, err.msg)
        return f"invalid JSON: {why or otherwise}"
    except (ValueError, RecursionError):
        pass
    return f"invalid JSON: {otherwise}"


def _why(text: str, at: int, told: str) -> str:
    if not text[at:].strip():
        return "unexpected EOF"
    for begins, words in _AFTER.items():
        if told.startswith(begins):
            if begins == "Expecting value" and (literal := _LITERALS.get(text[at])):
                return _in_literal(text[at:], literal)
            return f"invalid character {text[at]!r} {words}"
    return ""


def _in_literal(rest: str, literal: str) -> str:
    """For "nojson": where it leaves "null"."""
    for found, wanted in zip(rest[1:], literal[1:], strict=False):
        if found != wanted:
            return f"invalid character {found!r} in literal {literal} (expecting {wanted!r})"
    return "unexpected EOF"
