"""Where requests end in a byte stream: exact for every way the bytes may be split."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.connection import Framing

ATTACH = b"POST /v1.41/containers/web/attach?stream=1 HTTP/1.1\r\nHost: d\r\n\r\n"


def request(path: str, body: bytes, *, chunked: bool, upgrade: bool = False) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    if chunked:
        middle = len(body) // 2
        parts = [part for part in (body[:middle], body[middle:]) if part]
        framed = b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: 1\r\n\r\n"
        return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def end_of_first(data: bytes, cuts: list[int]) -> int | None:
    """Feed the data in pieces; the offset that the framing reports."""
    framing, start = Framing(), 0
    for cut in [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]:
        if cut == start:
            continue
        end = framing.feed(data[start:cut])
        if end is not None:
            return start + end
        start = cut
    return None


# Bodies that look like the start of a hijackable request must not fool it.
bodies = st.one_of(st.binary(max_size=200), st.just(ATTACH), st.just(b"\r\n\r\n" + ATTACH))


@given(
    before=st.lists(st.tuples(bodies, st.booleans()), max_size=3),
    body=bodies,
    chunked=st.booleans(),
    tail=st.binary(max_size=50),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_the_end_of_an_exec_request_is_found_however_the_bytes_arrive(
    before: list[tuple[bytes, bool]], body: bytes, chunked: bool, tail: bytes, cuts: list[int]
) -> None:
    start = b"".join(request("/v1.41/images/load", each, chunked=how) for each, how in before)
    whole = start + request("/v1.41/exec/abc/start", body, chunked=chunked)

    assert end_of_first(whole + tail, cuts) == len(whole)


@given(body=bodies, chunked=st.booleans(), cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_other_requests_are_passed_on_whole(body: bytes, chunked: bool, cuts: list[int]) -> None:
    whole = request("/v1.41/containers/create", body, chunked=chunked) * 2

    assert end_of_first(whole, cuts) is None


def test_any_upgrade_but_a_websocket_is_held() -> None:
    upgrade = request("/session", b"", chunked=False, upgrade=True)

    assert Framing().feed(upgrade + b"h2") == len(upgrade)
    assert Framing().feed(upgrade.replace(b"tcp", b"websocket") + b"ws") is None


def test_bytes_that_are_no_http_are_left_to_the_parser() -> None:
    framing = Framing()

    assert framing.feed(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + ATTACH) is None
    assert framing.feed(json.dumps({"a": 1}).encode() + ATTACH) is None
