"""TLS of a listening socket whose clients may end their input and read on (TLS close_notify in one direction).

asyncio's own TLS ends a connection as a whole when the peer sends close_notify; an attach or exec whose client has
sent all its input would lose the output (RFC 8446 section 6.1: each side closes its own direction alone). This is
asyncio's job done with the ssl module's memory buffers, and with a half-closed state.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from swarmlet.errors import Internal
from swarmlet.log import get_logger

log = get_logger(__name__)

#: How long a client may take for its handshake.
HANDSHAKE_S = 30.0
#: Plain text is taken out in pieces of at most one TLS record.
RECORD_BYTES = 16 << 10

ProtocolFactory = Callable[[], asyncio.Protocol]


def over_tls(context: ssl.SSLContext, factory: ProtocolFactory) -> ProtocolFactory:
    """What a server gives asyncio so that each connection speaks TLS; `factory` makes the protocol above it."""
    return lambda: TlsConnection(context, factory)


class TlsConnection(asyncio.Protocol):
    """Cipher text below, plain text above: the protocol of the socket's transport."""

    def __init__(self, context: ssl.SSLContext, factory: ProtocolFactory) -> None:
        self._factory = factory
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._context = context
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._socket: asyncio.Transport | None = None
        self._upper: TlsTransport | None = None
        self._handshake_ends: asyncio.TimerHandle | None = None

    # asyncio.Protocol, towards the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise Internal("the server needs stream transports")
        self._socket = transport
        self._handshake_ends = asyncio.get_running_loop().call_later(HANDSHAKE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._upper is None:
            self._shake_hands()
        if self._upper is not None:
            self._upper.take_plain()

    def eof_received(self) -> bool:
        return False  # without close_notify, or after it: nobody is there any more

    def pause_writing(self) -> None:
        if self._upper is not None:
            self._upper.get_protocol().pause_writing()

    def resume_writing(self) -> None:
        if self._upper is not None:
            self._upper.get_protocol().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._handshake_ends is not None:
            self._handshake_ends.cancel()
        if self._upper is not None:
            self._upper.lost(exc)

    def _shake_hands(self) -> None:
        assert self._socket is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._socket.write(self._outgoing.read())
            return
        except (ssl.SSLError, ssl.CertificateError) as err:
            log.debug("TLS handshake failed", peer=self._socket.get_extra_info("peername"), error=err)
            self._socket.write(self._outgoing.read())  # the alert that says why
            self._socket.close()
            return
        if self._handshake_ends is not None:
            self._handshake_ends.cancel()
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())
        self._upper = TlsTransport(self._socket, self._context, self._tls, self._incoming, self._outgoing)
        upper_protocol = self._factory()
        self._upper.set_protocol(upper_protocol)
        upper_protocol.connection_made(self._upper)


class TlsTransport(asyncio.Transport):
    """The plain-text side of one connection, after its handshake."""

    def __init__(
        self, below: asyncio.Transport, context: ssl.SSLContext, tls: ssl.SSLObject, incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:  # fmt: skip
        super().__init__({
            "sslcontext": context, "ssl_object": tls, "peercert": tls.getpeercert(), "cipher": tls.cipher(),
            "compression": tls.compression(),
        })
        self._below = below
        self._tls = tls
        self._incoming, self._outgoing = incoming, outgoing
        self._protocol: asyncio.Protocol | None = None
        self._reading = True
        self._input_ended = False
        self._closing = False
        self._taking = False

    def take_plain(self) -> None:
        """Hand up what has been decrypted, for as long as the protocol reads."""
        if self._taking:
            return  # the protocol above resumed reading while it was given something: the loop below goes on
        self._taking = True
        try:
            while self._reading and not self._input_ended and not self._closing:
                try:
                    data = self._tls.read(RECORD_BYTES)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    data = b""
                if data:
                    self.get_protocol().data_received(data)
                else:
                    self._end_input()
        except ssl.SSLError as err:
            log.debug("TLS connection broken", peer=self._below.get_extra_info("peername"), error=err)
            self._below.abort()
        finally:
            self._taking = False
        self._flush()  # answers of TLS itself: key updates, alerts

    def lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._closing = True
        self.get_protocol().connection_lost(exc)

    def _end_input(self) -> None:
        self._input_ended = True
        if not self.get_protocol().eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    # asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        own = super().get_extra_info(name)
        return self._below.get_extra_info(name, default) if own is None else own

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise Internal("TLS carries stream protocols")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        if self._protocol is None:
            raise Internal("this TLS connection has no protocol")
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not data or self._closing or self._below.is_closing():
            return
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as err:  # a memory buffer is never full: nothing passes
            log.debug("TLS connection broken", peer=self._below.get_extra_info("peername"), error=err)
            self._below.abort()
            return
        self._flush()

    def write_eof(self) -> None:
        raise NotImplementedError("close() ends what is sent")

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            self._tls.unwrap()  # our close_notify
        except ssl.SSLError as err:
            # That the peer has not said so too is what it usually says here.
            log.debug("TLS closed from this side", error=err)
        self._flush()
        self._below.close()

    def abort(self) -> None:
        self._closing = True
        self._below.abort()

    def is_closing(self) -> bool:
        return self._closing or self._below.is_closing()

    def pause_reading(self) -> None:
        if not self._reading:
            return
        self._reading = False
        if not self._below.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._reading or self._closing:
            return
        self._reading = True
        if not self._below.is_closing():
            self._below.resume_reading()
        asyncio.get_running_loop().call_soon(self.take_plain)

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()
