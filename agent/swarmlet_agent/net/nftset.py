"""Elements of nftables sets and maps, changed by raw nfnetlink: some 0.02 ms a change, one transaction each.

The rules themselves are text, loaded once (`net/nft.py`); what changes while containers run is elements only. Layouts
from linux/netfilter/nfnetlink.h and nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from swarmlet.errors import Internal
from swarmlet_agent.net.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attr,
    nested,
    split_messages,
)

_NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # nf_tables
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_TABLE, _NEW_ELEMENTS, _DELETE_ELEMENTS = (SUBSYSTEM << 8 | kind for kind in (1, 12, 14))
_TABLE_NAME, _LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 1, 2, 3
_ELEMENT, _ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _DATA_VALUE = 1, 1, 2, 3, 1
_INTERVAL_END = attr(_ELEMENT_FLAGS, struct.pack("!I", 1))
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct("!BBH")
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SMALL_BYTES = 131072
#: An attribute's length has 16 bits: so many elements (each below 120 bytes) fit a message.
_PER_MESSAGE = 512
_BUFFER_BYTES = 1 << 20


class Verb(Enum):
    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Element:
    """key and value as the kernel keeps them: in network order, the parts of a joined one each padded to four bytes.

    value b"": an element of a set, or one to be removed. end: the first key after an interval (of an interval set).
    """

    key: bytes
    value: bytes = b""
    end: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """Elements that one set or map (`name`) of a table gets or loses. REMOVE without elements: all of them."""

    verb: Verb
    family: int
    table: str
    name: str
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a transaction that makes tables, chains or rules. body: from the family's header on."""

    kind: int
    flags: int
    body: bytes


class ElementsError(Internal):
    """The kernel refused a change of elements; none of its transaction was applied. `code` is the errno."""

    def __init__(self, code: int, purpose: str) -> None:
        super().__init__(f"{purpose}: {os.strerror(code)}")
        self.code = code


def encode(changes: Sequence[Change], first: int) -> tuple[bytes, list[str]]:
    """One transaction: its bytes, and what each message is for. Messages are numbered from `first` on."""
    parts = [_message(_BATCH_BEGIN, 0, first, _NFGEN.pack(0, 0, SUBSYSTEM))]
    purposes = ["changing elements of nftables sets"]
    bodies = [(change, body) for change in changes for body in _bodies(change)]
    for place, (change, body) in enumerate(bodies, start=1):
        kind = _NEW_ELEMENTS if change.verb is Verb.ADD else _DELETE_ELEMENTS
        # Only the last asks for an answer: it comes when the whole transaction has been decided.
        flags = (NLM_F_CREATE if change.verb is Verb.ADD else 0) | (NLM_F_ACK if place == len(bodies) else 0)
        parts.append(_message(kind, flags, first + place, body))
        purposes.append(f"{change.verb.value} elements of {change.table} {change.name}")
    parts.append(_message(_BATCH_END, 0, first + len(purposes), _NFGEN.pack(0, 0, SUBSYSTEM)))
    return b"".join(parts), purposes


class ElementSocket:
    """A netfilter socket of the network namespace its opener's thread is in. For one thread.

    It keeps the namespace alive: close it before the namespace is to go.
    """

    def __init__(self) -> None:
        self.channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self.channel.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self.channel.bind((0, 0))
            self.channel.settimeout(10)
        except BaseException:  # of any kind: undo, and pass it on
            self.channel.close()
            raise
        self._sequence = 1
        self._room = 0

    def __enter__(self) -> ElementSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def apply(self, changes: Sequence[Change]) -> None:
        """All changes as one transaction. ElementsError with the first that was refused."""
        if changes:
            self._transact(*encode(changes, self._sequence))

    def make(self, requests: Sequence[Request], purpose: str) -> None:
        """All requests as one transaction. ElementsError with the purpose."""
        first = self._sequence
        parts = [_message(_BATCH_BEGIN, 0, first, _NFGEN.pack(0, 0, SUBSYSTEM))]
        for place, request in enumerate(requests, start=1):
            flags = request.flags | (NLM_F_ACK if place == len(requests) else 0)
            parts.append(_message(request.kind, flags, first + place, request.body))
        parts.append(_message(_BATCH_END, 0, first + len(requests) + 1, _NFGEN.pack(0, 0, SUBSYSTEM)))
        self._transact(b"".join(parts), [purpose] * (len(requests) + 1))

    def _transact(self, data: bytes, purposes: Sequence[str]) -> None:
        """purposes: of each message but the last, whose numbers begin with the next one of this socket."""
        first = self._sequence
        self._sequence = first + len(purposes) + 1
        self._make_room(len(data))
        self.channel.send(data)
        last = first + len(purposes) - 1
        failure: ElementsError | None = None
        while True:
            for kind, _, sequence, body in split_messages(self.channel.recv(_BUFFER_BYTES)):
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                if (code := -struct.unpack_from("=i", body)[0]) and failure is None:
                    failure = ElementsError(code, purposes[sequence - first])
                # A transaction that fails as a whole (no memory) is answered under the number of its beginning.
                if sequence == last or (sequence == first and code):
                    if failure is not None:
                        raise failure
                    return

    def has_table(self, family: int, name: str) -> bool:
        self._sequence += 1
        wanted = self._sequence
        self._sequence += 1
        body = _NFGEN.pack(family, 0, 0) + attr(_TABLE_NAME, name.encode() + b"\0")
        self.channel.send(_message(_GET_TABLE, 0, wanted, body))
        while True:
            for kind, _, sequence, answer in split_messages(self.channel.recv(65536)):
                if sequence != wanted:
                    continue
                if kind != NLMSG_ERROR:
                    return True
                code = -struct.unpack_from("=i", answer)[0]
                if code == errno.ENOENT:
                    return False
                raise ElementsError(code, f"looking for table {name}")

    def _make_room(self, size: int) -> None:
        """A transaction is one datagram, and must fit the socket's buffer."""
        wanted = size + size // 4 + 4096
        if wanted > self._room and wanted > _SMALL_BYTES:
            self.channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted)
            # Each refused message is answered by one of its own.
            self.channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._room = wanted


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def _bodies(change: Change) -> Iterator[bytes]:
    head = _NFGEN.pack(change.family, 0, 0)
    head += attr(_LIST_TABLE, change.table.encode() + b"\0") + attr(_LIST_SET, change.name.encode() + b"\0")
    if not change.elements:
        if change.verb is Verb.REMOVE:
            yield head
        return
    for start in range(0, len(change.elements), _PER_MESSAGE):
        yield head + nested(_LIST_ELEMENTS, *_elements(change, change.elements[start : start + _PER_MESSAGE]))


def _elements(change: Change, elements: Iterable[Element]) -> Iterator[bytes]:
    for element in elements:
        parts = [nested(_ELEMENT_KEY, attr(_DATA_VALUE, element.key))]
        if element.value and change.verb is Verb.ADD:
            parts.append(nested(_ELEMENT_DATA, attr(_DATA_VALUE, element.value)))
        if element.end:
            parts.append(_INTERVAL_END)
        yield nested(_ELEMENT, *parts)
