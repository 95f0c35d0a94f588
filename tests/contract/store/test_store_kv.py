"""What the store relies on in etcd: the same suite on the real one and on the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_manager.store.kv import (
    KV,
    Compacted,
    CreatedAt,
    DeleteKeys,
    Event,
    HasValue,
    LeaseGone,
    ModifiedAt,
    PutKey,
    ReadKeys,
    TooLarge,
    WatchBatch,
    prefix_end,
)


async def put(kv: KV, key: bytes, value: bytes, lease: int = 0) -> int:
    return (await kv.txn([], [PutKey(key, value, lease)])).revision


async def gather(batches: AsyncGenerator[WatchBatch, None], count: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(30):
        async for batch in batches:
            events += batch.events
            if len(events) >= count:
                break
    return events


async def test_reads_are_in_key_order_and_a_limit_says_that_there_is_more(kv: KV, prefix: bytes) -> None:
    for name in (b"c", b"a", b"b"):
        await put(kv, prefix + name, name)
    end = prefix_end(prefix)
    assert [found.value for found in (await kv.read(prefix, end)).kvs] == [b"a", b"b", b"c"]
    page = await kv.read(prefix, end, limit=2)
    assert (len(page.kvs), page.more) == (2, True)
    rest = await kv.read(page.kvs[-1].key + b"\0", end, revision=page.revision, limit=2)
    assert ([found.value for found in rest.kvs], rest.more) == ([b"c"], False)
    assert [found.value for found in (await kv.read(prefix + b"a")).kvs] == [b"a"]
    assert (await kv.read(prefix + b"x")).kvs == ()


async def test_a_prefix_ending_in_the_highest_byte_covers_only_its_own_keys(kv: KV, prefix: bytes) -> None:
    for name in (b"a\xff", b"a\xff1", b"b", b"bz"):
        await put(kv, prefix + name, name)
    found = (await kv.read(prefix + b"a\xff", prefix_end(prefix + b"a\xff"))).kvs
    assert [each.value for each in found] == [b"a\xff", b"a\xff1"]


async def test_revisions_tell_when_a_key_was_made_and_changed(kv: KV, prefix: bytes) -> None:
    first = await put(kv, prefix + b"k", b"1")
    second = await put(kv, prefix + b"k", b"2")
    (found,) = (await kv.read(prefix + b"k")).kvs
    assert (found.create_revision, found.mod_revision, found.value) == (first, second, b"2")
    assert second > first


async def test_a_past_revision_can_be_read_until_it_is_compacted(kv: KV, prefix: bytes) -> None:
    first = await put(kv, prefix + b"k", b"1")
    second = await put(kv, prefix + b"k", b"2")
    assert (await kv.read(prefix, prefix_end(prefix), revision=first)).kvs[0].value == b"1"
    await kv.compact(second)
    with pytest.raises(Compacted):
        await kv.read(prefix + b"k", revision=first)
    with pytest.raises(Compacted):
        await kv.compact(first)
    assert (await kv.read(prefix + b"k", revision=second)).kvs[0].value == b"2"


async def test_a_future_revision_is_refused(kv: KV, prefix: bytes) -> None:
    revision = await put(kv, prefix + b"k", b"1")
    with pytest.raises(InvalidArgument):
        await kv.read(prefix + b"k", revision=revision + 1000)


async def test_a_transaction_is_made_whole_or_not_at_all(kv: KV, prefix: bytes) -> None:
    key, other = prefix + b"k", prefix + b"o"
    made = await kv.txn([CreatedAt(key, 0)], [PutKey(key, b"1"), PutKey(other, b"1")], [ReadKeys(key)])
    assert made.succeeded
    reads = [ReadKeys(key), ReadKeys(other)]
    refused = await kv.txn([CreatedAt(key, 0)], [PutKey(key, b"2"), DeleteKeys(other)], reads)
    assert not refused.succeeded
    assert [[found.value for found in read] for read in refused.reads] == [[b"1"], [b"1"]]
    assert refused.reads[0][0].create_revision == made.revision == refused.reads[1][0].mod_revision


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (lambda key, revision: CreatedAt(key, revision), lambda key, revision: CreatedAt(key, revision - 1)),
        (lambda key, revision: ModifiedAt(key, revision), lambda key, revision: ModifiedAt(key, 0)),
        (lambda key, revision: HasValue(key, b"1"), lambda key, revision: HasValue(key, b"")),
    ],
)
async def test_each_comparison_holds_only_when_it_should(kv: KV, prefix: bytes, right, wrong) -> None:  # type: ignore[no-untyped-def]
    key = prefix + b"k"
    revision = await put(kv, key, b"1")
    assert (await kv.txn([right(key, revision)], [])).succeeded
    assert not (await kv.txn([wrong(key, revision)], [])).succeeded
    assert not (await kv.txn([right(key, revision), wrong(key, revision)], [])).succeeded


async def test_a_missing_key_has_no_value_not_even_an_empty_one(kv: KV, prefix: bytes) -> None:
    assert not (await kv.txn([HasValue(prefix + b"k", b"1")], [])).succeeded
    assert (await kv.txn([CreatedAt(prefix + b"k", 0), ModifiedAt(prefix + b"k", 0)], [])).succeeded


async def test_a_transaction_that_changes_nothing_takes_no_revision(kv: KV, prefix: bytes) -> None:
    revision = await put(kv, prefix + b"k", b"1")
    assert (await kv.txn([], [DeleteKeys(prefix + b"x"), ReadKeys(prefix + b"k")])).revision == revision


async def test_the_same_key_twice_in_a_transaction_is_refused(kv: KV, prefix: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await kv.txn([], [PutKey(prefix + b"k", b"1"), PutKey(prefix + b"k", b"2")])
    assert (await kv.read(prefix + b"k")).kvs == ()


async def test_too_many_operations_are_refused_as_too_large(kv: KV, prefix: bytes) -> None:
    with pytest.raises(TooLarge):
        await kv.txn([], [PutKey(prefix + b"%d" % n, b"") for n in range(1025)])
    with pytest.raises(TooLarge):
        await kv.txn([], [PutKey(prefix + b"%d" % n, b"x" * (1 << 20)) for n in range(9)])
    assert (await kv.txn([], [PutKey(prefix + b"%d" % n, b"") for n in range(1024)])).succeeded


async def test_a_watch_tells_every_change_in_order_with_its_revision(kv: KV, prefix: bytes) -> None:
    start = await put(kv, prefix + b"before", b"")
    async with aclosing(kv.watch(prefix, prefix_end(prefix), revision=start + 1)) as batches:
        standing = await anext(batches)
        assert standing.events == ()
        one = await put(kv, prefix + b"a", b"1")
        await put(kv, b"/elsewhere/" + prefix, b"")
        two = (await kv.txn([], [PutKey(prefix + b"b", b"2"), DeleteKeys(prefix + b"a")])).revision
        events = await gather(batches, 3)
    told = sorted((event.mod_revision, event.key, event.kv.value if event.kv else None) for event in events)
    assert told == sorted([(one, prefix + b"a", b"1"), (two, prefix + b"b", b"2"), (two, prefix + b"a", None)])
    assert [event.mod_revision for event in events] == [one, two, two]


async def test_a_watch_from_the_past_catches_up_first(kv: KV, prefix: bytes) -> None:
    start = await put(kv, prefix + b"k", b"0")
    for n in range(1, 50):
        await put(kv, prefix + b"k", b"%d" % n)
    async with aclosing(kv.watch(prefix, prefix_end(prefix), revision=start)) as batches:
        events = await gather(batches, 50)
    assert [event.kv.value for event in events if event.kv] == [b"%d" % n for n in range(50)]


async def test_a_revision_is_never_spread_over_two_batches(kv: KV, prefix: bytes) -> None:
    start = await put(kv, prefix + b"k", b"0")
    for n in range(5):
        await kv.txn([], [PutKey(prefix + b"%d" % i, b"%d" % n) for i in range(100)])
    seen: list[int] = []
    async with asyncio.timeout(30), aclosing(kv.watch(prefix, prefix_end(prefix), revision=start + 1)) as batches:
        async for batch in batches:
            revisions = [event.mod_revision for event in batch.events]
            assert all(revisions.count(revision) == 100 for revision in set(revisions))
            seen += revisions
            if len(seen) == 500:
                break


async def test_a_watch_below_the_compacted_revision_says_so(kv: KV, prefix: bytes) -> None:
    first = await put(kv, prefix + b"k", b"1")
    await put(kv, prefix + b"k", b"2")
    await kv.compact(await put(kv, prefix + b"k", b"3"))
    with pytest.raises(Compacted):
        async with asyncio.timeout(30), aclosing(kv.watch(prefix, prefix_end(prefix), revision=first)) as batches:
            async for _ in batches:
                pass


async def test_an_idle_watch_stays_alive(kv: KV, prefix: bytes) -> None:
    start = await put(kv, prefix + b"k", b"1")
    async with asyncio.timeout(30), aclosing(kv.watch(prefix, prefix_end(prefix), revision=start + 1)) as batches:
        await anext(batches)
        pending = asyncio.ensure_future(gather(batches, 1))
        await asyncio.sleep(3)
        await put(kv, prefix + b"k", b"2")
        assert [event.kv.value for event in await pending if event.kv] == [b"2"]


async def test_a_leased_key_lives_as_long_as_its_lease_is_renewed(kv: KV, prefix: bytes) -> None:
    lease = await kv.lease_grant(3)
    await put(kv, prefix + b"k", b"1", lease)
    for _ in range(9):  # longer than it would live by itself
        await asyncio.sleep(0.5)
        await kv.lease_renew(lease)
    assert (await kv.read(prefix + b"k")).kvs[0].lease == lease
    async with asyncio.timeout(30):
        while (await kv.read(prefix + b"k")).kvs:
            await asyncio.sleep(0.1)
    with pytest.raises(LeaseGone):
        await kv.lease_renew(lease)
    with pytest.raises(LeaseGone):
        await put(kv, prefix + b"k", b"1", lease)


async def test_revoking_a_lease_removes_its_keys_at_once_and_watchers_are_told(kv: KV, prefix: bytes) -> None:
    lease = await kv.lease_grant(60)
    start = await put(kv, prefix + b"k", b"1", lease)
    async with aclosing(kv.watch(prefix, prefix_end(prefix), revision=start + 1)) as batches:
        await anext(batches)
        await kv.lease_revoke(lease)
        (event,) = await gather(batches, 1)
    assert (event.key, event.kv) == (prefix + b"k", None)
    await kv.lease_revoke(lease)


async def test_a_key_put_again_without_the_lease_outlives_it(kv: KV, prefix: bytes) -> None:
    lease = await kv.lease_grant(60)
    await put(kv, prefix + b"k", b"1", lease)
    await put(kv, prefix + b"k", b"2")
    await kv.lease_revoke(lease)
    assert (await kv.read(prefix + b"k")).kvs[0].value == b"2"


async def test_the_status_tells_size_and_revision(kv: KV, prefix: bytes) -> None:
    revision = await put(kv, prefix + b"k", b"1")
    status = await kv.status()
    assert status.version
    assert status.revision >= revision
    assert status.size_bytes > 0
    assert status.alarms == ()
