"""The stream an unpacking reads: the same whether a thread decompresses ahead or not."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.feed import BadLayer, Feed

CONTENT = b"".join(b"%d\n" % number for number in range(600_000))
PACKED = gzip.compress(CONTENT, 1)


def taken(data: bytes, length: int, limit: int, *, ahead: bool) -> tuple[bytes, str, int]:
    feed = Feed(io.BytesIO(data), length, limit, ahead=ahead)
    with feed:
        content = b"".join(feed.pieces(None))
    return content, feed.diff_id, feed.size


@pytest.mark.parametrize("ahead", [True, False])
def test_content_digest_and_size_are_those_of_what_was_packed(ahead: bool) -> None:
    expected = (CONTENT, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))

    assert taken(PACKED, len(PACKED), 1 << 30, ahead=ahead) == expected


@pytest.mark.parametrize("ahead", [True, False])
def test_a_stream_that_is_cut_short_broken_or_too_large_is_an_error(ahead: bool) -> None:
    with pytest.raises(InvalidArgument, match="unexpected end"):
        taken(PACKED[:-100], len(PACKED), 1 << 30, ahead=ahead)
    with pytest.raises(InvalidArgument, match="invalid gzip stream"):
        taken(PACKED[:1000] + b"x" * 1000 + PACKED[2000:], len(PACKED), 1 << 30, ahead=ahead)
    with pytest.raises(BadLayer, match="more than 1000 bytes"):
        taken(PACKED, len(PACKED), 1000, ahead=ahead)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_thread_is_there_only_if_asked_for_and_never_afterwards(ahead: bool) -> None:
    before = threading.active_count()
    feed = Feed(io.BytesIO(PACKED), len(PACKED), 1 << 30, ahead=ahead)
    with feed:
        next(feed.pieces(None))
        assert (threading.active_count() > before) <= ahead
    assert threading.active_count() == before
