"""A watch that does not lose its place.

A stream can die loudly (reset), quietly (its member is frozen) or politely (its member lost its leader, which
it only tells because we ask with `hasleader`). After each, the watch goes on at the next endpoint from the
revision after the last event it delivered. If what lies between may be gone, it says so instead.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from swarmlet.log import get_logger
from swarmlet_manager.store.etcd.channels import FIRST_PAUSE_S, LONGEST_PAUSE_S, Channels, method, translate
from swarmlet_manager.store.etcd.messages import EVENT_DELETE, message
from swarmlet_manager.store.kv import ClusterChanged, Compacted, Event, KeyValue, NoAnswer, WatchBatch

log = get_logger(__name__)

#: A stream that is silent for so long is asked for its progress, and is dead if it does not answer in time.
IDLE_S = 1.0
ANSWER_S = 1.5
#: A watch that was down for longer reads everything anew. History is kept for longer than that, but resuming
#: exactly at its edge can lose a removal (etcd issue 18089).
RESUME_WITHIN_S = 240.0

_RANGE = method("KV", "Range")
_PATH = "/etcdserverpb.Watch/Watch"
_REQUEST = message("WatchRequest")
_RESPONSE = message("WatchResponse")
_CREATE = message("WatchCreateRequest")
_PROGRESS = message("WatchProgressRequest")


class _StreamLost(Exception):
    """This stream is of no more use; another may be."""


class _Behind(_StreamLost):
    """The member does not know the revision we wait for."""


async def watch(channels: Channels, key: bytes, end: bytes, revision: int) -> AsyncGenerator[WatchBatch, None]:
    """As kv.KV.watch."""
    loop = asyncio.get_running_loop()
    last_life = loop.time()
    cluster_id = 0
    failures = 0
    rng = random.Random()
    while True:
        number, channel = channels.current()
        try:
            async with aclosing(_stream(channel, key, end, revision, channels)) as batches:
                async for batch in batches:
                    if cluster_id not in (0, batch.cluster_id):
                        raise ClusterChanged(f"cluster {batch.cluster_id:x} answers instead of {cluster_id:x}")
                    cluster_id = batch.cluster_id
                    failures, last_life = 0, loop.time()
                    if batch.events:
                        revision = batch.events[-1].mod_revision + 1
                    yield batch
        except _Behind as err:
            # It has not caught up yet, or all have gone back to a backup: an answer by majority tells.
            answer = await channels.call(_RANGE, _RANGE.request(key=key), RESUME_WITHIN_S)
            if answer.header.revision < revision - 1:
                raise ClusterChanged(str(err)) from err
        except _StreamLost as err:
            log.debug("watch interrupted", reason=err)
        if loop.time() - last_life > RESUME_WITHIN_S:
            raise Compacted(f"the watch was down for more than {RESUME_WITHIN_S:g} s")
        channels.rotate(number)
        failures += 1
        if failures % channels.count == 0:
            rounds = min(failures // channels.count, 8)
            await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (rounds - 1), LONGEST_PAUSE_S) * rng.uniform(0.5, 1))


async def _stream(
    channel: Any, key: bytes, end: bytes, revision: int, channels: Channels
) -> AsyncGenerator[WatchBatch, None]:
    import grpc

    open_stream = channel.stream_stream(
        _PATH, request_serializer=_REQUEST.SerializeToString, response_deserializer=_RESPONSE.FromString
    )
    call = open_stream(metadata=(("hasleader", "true"),))
    try:
        create = _CREATE(key=key, range_end=end, start_revision=revision)
        await asyncio.wait_for(call.write(_REQUEST(create_request=create)), ANSWER_S)
        while True:
            response = await _next(call)
            _check(response, revision, channels)
            if response.events or response.created:
                header = response.header
                events = tuple(_event(event) for event in response.events)
                yield WatchBatch(events, header.revision, header.cluster_id)
            else:
                yield WatchBatch((), response.header.revision, response.header.cluster_id)
    except grpc.aio.AioRpcError as err:
        error = translate(err.code().name, err.details() or "")
        if not isinstance(error, NoAnswer):
            raise error from err
        raise _StreamLost(str(error)) from err
    except (TimeoutError, asyncio.InvalidStateError) as err:
        raise _StreamLost("no answer to the watch") from err
    finally:
        call.cancel()


async def _next(call: Any) -> Any:
    """The next response; asks for a sign of life when there is none for a while."""
    import grpc

    # Cancelling a read ends the whole stream, so the read goes on while we wait in two steps.
    reading = asyncio.ensure_future(call.read())
    try:
        done, _ = await asyncio.wait({reading}, timeout=IDLE_S)
        if not done:
            await asyncio.wait_for(call.write(_REQUEST(progress_request=_PROGRESS())), ANSWER_S)
            done, _ = await asyncio.wait({reading}, timeout=ANSWER_S)
        if not done:
            raise _StreamLost("the member is silent")
        response = reading.result()
    finally:
        if not reading.done():
            call.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    if response is grpc.aio.EOF:
        raise _StreamLost("the member has ended the stream")
    return response


def _check(response: Any, revision: int, channels: Channels) -> None:
    header = response.header
    if response.canceled:
        if response.compact_revision:
            raise Compacted(f"the watch fell behind revision {response.compact_revision}")
        raise _StreamLost(response.cancel_reason or "cancelled")
    if response.created:
        if header.raft_term < channels.raft_term:
            raise _StreamLost("the member is behind the others")
        if header.revision < revision - 1:
            raise _Behind(f"etcd is at revision {header.revision}, before the {revision} we wait for")


def _event(event: Any) -> Event:
    kv = event.kv
    if event.type == EVENT_DELETE:
        return Event(kv.key, kv.mod_revision, None)
    return Event(kv.key, kv.mod_revision, key_value(kv))


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)
