"""Bodies that are no JSON are refused in the words of dockerd's decoder."""

from __future__ import annotations

import pytest

from swarmlet.engine_api.malformed import complaint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{invalid json", "invalid JSON: invalid character 'i' looking for beginning of object key string"),
        (b"{} trailing content", "unexpected content after JSON"),
        (b"{}{}", "unexpected content after JSON"),
        (b"nojson", "invalid JSON: invalid character 'o' in literal null (expecting 'u')"),
        (b"x", "invalid JSON: invalid character 'x' looking for beginning of value"),
        (b'{"a" 1}', "invalid JSON: invalid character '1' after object key"),
        (b'{"a":', "invalid JSON: unexpected EOF"),
        (b"nul", "invalid JSON: unexpected EOF"),
        (b"\xff", "invalid JSON: odd"),
        (b"[1 2]", "invalid JSON: odd"),
    ],
)
def test_what_is_wrong_is_said_as_dockerd_says_it(body: bytes, message: str) -> None:
    assert complaint(body, "odd") == message
