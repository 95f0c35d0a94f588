"""Calls to one of several etcd endpoints: which one, how long, and what its errors mean.

One channel per endpoint, used until it fails; then the next one is tried. Every attempt has its own deadline
inside the caller's, because a frozen member keeps its sockets open and would otherwise be waited for for
ever. Whoever waits pauses only after a full round.

grpc is imported when the first channel is made: it costs some 10 MB that a process without etcd need not pay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmlet.errors import Internal, InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet_manager.store.etcd.messages import message
from swarmlet_manager.store.kv import Compacted, LeaseGone, NoAnswer, NoSpace, TooLarge

log = get_logger(__name__)

#: One attempt at one endpoint, while there are others; a single endpoint gets what is left.
ATTEMPT_S = 1.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd answers GOAWAY to pings more often than every 5 s, and to any while no call is open.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A local etcd is back within a second; the default would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the CA that etcd's certificate must be from, and our own certificate and key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Method:
    """One unary method: where it is, and its answer's class."""

    path: str
    request: Any
    response: Any


def method(service: str, name: str, stem: str = "") -> Method:
    """Messages are called after the method, or after `stem` where etcd does otherwise (Compact)."""
    stem = stem or name
    return Method(f"/etcdserverpb.{service}/{name}", message(f"{stem}Request"), message(f"{stem}Response"))


def grpc_target(endpoint: str) -> tuple[str, bool]:
    """("host:port" or "unix:/path", is it TLS). InvalidArgument for anything else."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("http", "https") and rest.strip("/"):
        return rest.rstrip("/"), scheme == "https"
    if endpoint.startswith("unix:/"):
        path = "/" + endpoint.removeprefix("unix:").lstrip("/")
        # struct sockaddr_un: 108 bytes with the closing zero.
        if len(path.encode()) > 107:
            raise InvalidArgument(f"the path of etcd's socket is too long (107 bytes at most): {path}")
        return f"unix:{path}", False
    raise InvalidArgument(f"etcd endpoint {endpoint!r} is neither https://host:port, http://host:port nor unix:/path")


class Channels:
    """Made in a running loop and closed in it."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None, rng: random.Random | None = None) -> None:
        if not endpoints:
            raise InvalidArgument("no etcd endpoint is given")
        self._targets = [grpc_target(endpoint) for endpoint in endpoints]
        if tls is None and any(secure for _, secure in self._targets):
            raise InvalidArgument("an https:// etcd endpoint needs a CA, a certificate and a key")
        self._tls = tls
        self._credentials: Any = None
        self._open: dict[int, Any] = {}
        self._current = 0
        self._rng = rng or random.Random()
        #: The raft term of the newest answer that a majority stood behind.
        self.raft_term = 0

    @property
    def count(self) -> int:
        return len(self._targets)

    def current(self) -> tuple[int, Any]:
        """The number of the endpoint in use, and its channel."""
        if self._current not in self._open:
            self._open[self._current] = self._connect(self._current)
        return self._current, self._open[self._current]

    def rotate(self, failed: int) -> None:
        """Use the next endpoint from now on, unless somebody has moved on from this one already."""
        if failed == self._current:
            self._current = (failed + 1) % len(self._targets)

    async def close(self) -> None:
        channels, self._open = list(self._open.values()), {}
        for channel in channels:
            await channel.close()

    async def call(self, what: Method, request: Any, timeout_s: float) -> Any:
        """The answer of the first endpoint that gives one; sent again after a failure that leaves open
        whether it was carried out. NoAnswer when the time is up; other errors as etcd means them."""

        async def attempt(channel: Any, left_s: float) -> Any:
            invoke = channel.unary_unary(
                what.path,
                request_serializer=what.request.SerializeToString,
                response_deserializer=what.response.FromString,
            )
            return await invoke(request, timeout=left_s)

        answer = await self.attempts(attempt, timeout_s)
        self.raft_term = answer.header.raft_term
        return answer

    async def attempts(self, attempt: Callable[[Any, float], Any], timeout_s: float) -> Any:
        """Run `attempt(channel, seconds)` over the endpoints until one answers."""
        import grpc

        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        tried, uncertain, reason = 0, False, "no time was given"
        pause = FIRST_PAUSE_S
        while (left := deadline - loop.time()) > 0.001:
            number, channel = self.current()
            try:
                return await attempt(channel, left if self.count == 1 else min(left, ATTEMPT_S))
            except grpc.aio.AioRpcError as err:
                error = translate(err.code().name, err.details() or "")
                if not isinstance(error, NoAnswer):
                    if uncertain and isinstance(error, NoSpace):
                        raise NoAnswer("etcd is out of space; an earlier attempt may have been made") from err
                    raise error from err
                uncertain, reason = True, str(error)
            self.rotate(number)
            tried += 1
            if tried % self.count == 0:
                await asyncio.sleep(min(pause * self._rng.uniform(0.5, 1.0), max(0.0, deadline - loop.time())))
                pause = min(pause * 2, LONGEST_PAUSE_S)
        raise NoAnswer(f"etcd has not answered within {timeout_s:g} s: {reason}")

    def _connect(self, number: int) -> Any:
        import grpc

        target, secure = self._targets[number]
        if not secure:
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        if self._credentials is None:
            assert self._tls is not None
            self._credentials = grpc.ssl_channel_credentials(
                self._tls.ca.read_bytes(), self._tls.key.read_bytes(), self._tls.cert.read_bytes()
            )
        return grpc.aio.secure_channel(target, self._credentials, options=_OPTIONS)


def translate(code: str, details: str) -> SwarmletError:
    """What a gRPC status means. NoAnswer: another endpoint or a later attempt may do better. Pure.

    The texts are those of etcd's rpctypes; UNKNOWN is what etcd gives for errors it has no code for.
    """
    text = details.removeprefix("etcdserver: ")
    if code == "OUT_OF_RANGE" and "compacted" in text:
        return Compacted(text)
    if code == "RESOURCE_EXHAUSTED" and "space exceeded" in text:
        return NoSpace("etcd has used up its space quota: compact, defragment, then disarm its alarm")
    if "too many operations" in text or "request is too large" in text or "larger than max" in text:
        return TooLarge(f"etcd refuses a write of this size: {text}")
    if code == "NOT_FOUND" and "lease" in text:
        return LeaseGone(text)
    retried = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "INTERNAL")
    if code in retried or (code == "RESOURCE_EXHAUSTED" and "too many requests" in text):
        return NoAnswer(text or code)
    if code == "UNKNOWN" and ("context deadline" in text or "context canceled" in text or "not a primary" in text):
        return NoAnswer(text)  # the last one: etcd issue 21671
    if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
        return InvalidArgument(f"etcd refuses the request: {text}")
    return Internal(f"etcd answers {code}: {text}")
