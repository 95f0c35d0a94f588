"""The keys that detach a client from a terminal (`--detach-keys`, ctrl-p ctrl-q unless told otherwise)."""

from __future__ import annotations

from swarmlet.errors import InvalidArgument

DEFAULT_KEYS = "ctrl-p,ctrl-q"


def parse_keys(text: str) -> bytes:
    """ "ctrl-p,ctrl-q" -> b"\\x10\\x11"; "" means the default. InvalidArgument for anything that is no key."""
    keys = bytearray()
    for word in (text or DEFAULT_KEYS).split(","):
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif word.startswith("ctrl-") and len(word) == 6 and ("a" <= word[5] <= "z" or word[5] in "@[\\]^_"):
            keys.append(ord(word[5].upper()) - ord("@"))
        else:
            raise InvalidArgument(f"Invalid detach keys ({text}) provided")
    return bytes(keys)


class DetachKeys:
    """Looks for the sequence in a client's input; what might be its beginning is held back until it is known."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what is to be passed on, whether the sequence is complete)."""
        if not self._matched and self._keys[0] not in data:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(passed), True
                continue
            passed += self._keys[: self._matched]
            # The byte that broke the sequence may begin it anew.
            self._matched = int(byte == self._keys[0])
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False
