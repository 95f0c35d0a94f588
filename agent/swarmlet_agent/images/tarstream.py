"""Reading a tar stream entry by entry, with every raw byte in hand.

`tarfile` hides the bytes between files, but a layer must be given back byte for byte (its digest is its
name), so this reader hands out each entry's raw header beside its meaning. Formats: v7, ustar, GNU (long names,
base-256 numbers, old sparse), pax (with its sparse forms). The stream is not trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from swarmlet.errors import InvalidArgument

BLOCK = 512
_ZERO = bytes(BLOCK)
#: Extended headers (pax records, GNU long names) above this are an attack, not a file.
_MAX_EXTENDED = 1 << 20
_MAX_EXTENDED_IN_A_ROW = 8
_SPARSE_PAIR = struct.Struct("12s12s")

REGULAR, HARDLINK, SYMLINK, DIRECTORY = "file", "hardlink", "symlink", "folder"
CHARDEV, BLOCKDEV, FIFO = "character device", "block device", "fifo"
_TYPES = {
    b"0": REGULAR, b"\0": REGULAR, b"7": REGULAR, b"S": REGULAR, b"1": HARDLINK, b"2": SYMLINK,
    b"3": CHARDEV, b"4": BLOCKDEV, b"5": DIRECTORY, b"6": FIFO,
}


class BadTar(InvalidArgument):
    """The archive is broken, truncated, or uses what no image does."""


@dataclass(slots=True)
class Entry:
    """One member. names are bytes as stored; mode is the permission bits (07777); mtime in ns.

    size: payload bytes in the stream. sparse: (offset, length) of the pieces the payload consists of, and
    real_size the file's length then; None for an ordinary file.
    """

    name: bytes
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None
    real_size: int = 0
    raw: bytes = b""


class TarReader:
    """Iterate `entries()`; for each, take the payload (`payload`) or let the next step skip it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._view = memoryview(b"")
        self._at = 0
        self.position = 0  # bytes taken from the stream

    def entries(self) -> Iterator[Entry]:
        """Members in order; ends at the end mark. Each member's payload must have been taken before the next."""
        while (entry := self._next_entry()) is not None:
            yield entry

    def payload(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes in pieces. BadTar if the stream ends before."""
        while size:
            if self._at >= len(self._view) and not self._refill():
                raise BadTar("unexpected end of the tar archive")
            piece = self._view[self._at : self._at + size]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. BadTar if the stream ends before."""
        end = self._at + size
        if end <= len(self._view):
            data = bytes(self._view[self._at : end])
            self._at = end
            self.position += size
            return data
        return b"".join(self.payload(size))

    def rest(self) -> Iterator[memoryview]:
        """Whatever follows the end mark."""
        while self._at < len(self._view) or self._refill():
            piece = self._view[self._at :]
            self._at = len(self._view)
            self.position += len(piece)
            yield piece

    def _refill(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._view, self._at = memoryview(piece), 0
                return True
        return False

    def _next_entry(self) -> Entry | None:
        raw: list[bytes] = []
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        for _ in range(_MAX_EXTENDED_IN_A_ROW):
            if self._at >= len(self._view) and not self._refill():
                if raw:
                    raise BadTar("unexpected end of the tar archive")
                self.end = b""
                return None  # no end mark: as lenient as Go's reader, the digest tells whether bytes are missing
            block = self.take(BLOCK)
            raw.append(block)
            if block == _ZERO:
                if len(raw) > 1:
                    raise BadTar("an extended header without an entry")
                self.end = block
                return None
            _check_sum(block)
            flag = block[156:157]
            if flag not in b"xgLK" or flag == b"":
                return self._finish(block, raw, pax, long_name, long_link)
            data = self._extended(block, raw)
            if flag == b"x":
                pax = parse_pax(data)
            elif flag == b"L":
                long_name = data.split(b"\0", 1)[0]
            elif flag == b"K":
                long_link = data.split(b"\0", 1)[0]
            # "g" (global records) is ignored, as Docker does.
        raise BadTar("too many extended headers in a row")

    #: The raw block that ended the entries: a zero block, or nothing.
    end: bytes = b""

    def _extended(self, block: bytes, raw: list[bytes]) -> bytes:
        size = _number(block[124:136])
        if not 0 <= size <= _MAX_EXTENDED:
            raise BadTar("an extended header is too large")
        data = self.take(size)
        raw.append(data)
        if padding := -size % BLOCK:
            raw.append(self.take(padding))
        return data

    def _finish(
        self, block: bytes, raw: list[bytes], pax: dict[bytes, bytes], long_name: bytes | None, long_link: bytes | None
    ) -> Entry:
        entry = _parse(block)
        if long_name is not None:
            entry.name = long_name
        if long_link is not None:
            entry.link = long_link
        if pax:
            _apply_pax(entry, pax)
        if entry.size < 0 or entry.size >= 1 << 62:
            raise BadTar(f"impossible size of {entry.name!r}")
        if block[156:157] == b"S":
            self._old_sparse(entry, block, raw)
        elif pax and (sparse := _pax_sparse(pax)) is not None:
            entry.sparse, entry.real_size = sparse
        if entry.kind != REGULAR:
            entry.size = 0  # some tools write a link's size, but no data follows
        entry.name = pax.get(b"GNU.sparse.name", entry.name)
        if pax.get(b"GNU.sparse.major") == b"1":
            self._new_sparse(entry, pax, raw)
        if entry.sparse is not None:
            _check_sparse(entry)
        entry.raw = raw[0] if len(raw) == 1 else b"".join(raw)
        return entry

    def _old_sparse(self, entry: Entry, block: bytes, raw: list[bytes]) -> None:
        """GNU's old sparse form: a map in the header and, if it does not fit, in blocks behind it."""
        pieces: list[tuple[int, int]] = []
        _sparse_pairs(block[386:482], pieces)
        more = block[482] != 0
        while more:
            extension = self.take(BLOCK)
            raw.append(extension)
            _sparse_pairs(extension[:504], pieces)
            more = extension[504] != 0
            if len(pieces) > _MAX_EXTENDED // 24:
                raise BadTar("a sparse map is too large")
        entry.sparse, entry.real_size = pieces, _number(block[483:495])

    def _new_sparse(self, entry: Entry, pax: dict[bytes, bytes], raw: list[bytes]) -> None:
        """pax sparse 1.0: the map is text in the first blocks of the payload."""
        text, wanted = b"", 1
        lines: list[bytes] = []
        while len(lines) < wanted:
            if len(text) >= min(entry.size, _MAX_EXTENDED):
                raise BadTar("a sparse map is too large")
            block = self.take(BLOCK)
            raw.append(block)
            text += block
            lines = text.split(b"\n")[:-1]
            if lines:
                wanted = 1 + 2 * _decimal(lines[0])
        values = [_decimal(line) for line in lines[1:wanted]]
        entry.size -= len(text)
        entry.sparse = list(zip(values[::2], values[1::2], strict=True))
        entry.real_size = _decimal(pax.get(b"GNU.sparse.realsize", b"0"))


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records "<length> <key>=<value>\\n". BadTar if the lengths do not add up."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        if space < 0:
            raise BadTar("broken pax record")
        end = at + _decimal(data[at:space])
        record = data[space + 1 : end]
        if end > len(data) or end <= space or not record.endswith(b"\n"):
            raise BadTar("broken pax record")
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise BadTar("broken pax record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # 0.0 repeats these: keep them as a 0.1 map
            previous = records.get(b"GNU.sparse.map")
            value = value if previous is None else previous + b"," + value
            key = b"GNU.sparse.map"
        records[key] = value
        at = end
    return records


def _parse(block: bytes) -> Entry:
    name = block[0:100].split(b"\0", 1)[0]
    magic = block[257:265]
    if magic == b"ustar\x0000" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    flag = block[156:157]
    kind = _TYPES.get(flag)
    if kind is None:
        raise BadTar(f"unsupported tar entry type {flag!r} of {name!r}")
    if flag in b"0\0" and name.endswith(b"/"):
        kind = DIRECTORY
    device = kind in (CHARDEV, BLOCKDEV)
    return Entry(
        name=name, kind=kind, size=_number(block[124:136]), mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]), gid=_number(block[116:124]), mtime=_number(block[136:148]) * 1_000_000_000,
        link=block[157:257].split(b"\0", 1)[0],
        major=_number(block[329:337]) if device else 0, minor=_number(block[337:345]) if device else 0,
    )


def _apply_pax(entry: Entry, pax: dict[bytes, bytes]) -> None:
    for key, value in pax.items():
        if key == b"path":
            entry.name = value
            if entry.kind == REGULAR and value.endswith(b"/"):
                entry.kind = DIRECTORY
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = _decimal(value)
        elif key == b"uid":
            entry.uid = _decimal(value)
        elif key == b"gid":
            entry.gid = _decimal(value)
        elif key == b"mtime":
            entry.mtime = _time(value)
        elif key.startswith(b"SCHILY.xattr."):
            entry.xattrs[key[len(b"SCHILY.xattr.") :]] = value


def _pax_sparse(pax: dict[bytes, bytes]) -> tuple[list[tuple[int, int]], int] | None:
    """The map of pax sparse 0.0 and 0.1, which is in the records themselves."""
    text = pax.get(b"GNU.sparse.map")
    if text is None:
        return None
    values = [_decimal(part) for part in text.split(b",")] if text else []
    if len(values) % 2:
        raise BadTar("broken sparse map")
    return list(zip(values[::2], values[1::2], strict=True)), _decimal(pax.get(b"GNU.sparse.size", b"0"))


def _check_sparse(entry: Entry) -> None:
    """Pieces in order, inside the file, and as long together as the payload."""
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise BadTar("broken sparse map")
        end = offset + length
        total += length
    if total != entry.size or end > entry.real_size:
        raise BadTar("broken sparse map")


def _sparse_pairs(data: bytes, pieces: list[tuple[int, int]]) -> None:
    for offset, length in _SPARSE_PAIR.iter_unpack(data):
        if not offset[0]:
            return
        pieces.append((_number(offset), _number(length)))


def _check_sum(block: bytes) -> None:
    try:
        stored = _number(block[148:156])
    except BadTar as err:
        raise BadTar("invalid tar header") from err
    others = block[:148] + block[156:]
    if stored != sum(others) + 256:
        signed = sum(byte - 256 if byte > 127 else byte for byte in others) + 256
        if stored != signed:  # old tools summed signed characters
            raise BadTar("invalid tar header")


def _number(data: bytes) -> int:
    """Octal text, or base-256 with the top bit set."""
    first = data[0]
    if first & 0x80:
        if first == 0xFF:
            return int.from_bytes(data, "big", signed=True)
        return int.from_bytes(bytes([first & 0x7F]) + data[1:], "big")
    text = data.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError as err:
        raise BadTar("invalid number in a tar header") from err


def _decimal(data: bytes) -> int:
    if not data.isdigit() or len(data) > 20:
        raise BadTar("invalid number in a pax record")
    return int(data)


def _time(data: bytes) -> int:
    """Seconds with an optional fraction, in ns."""
    whole, _, fraction = data.partition(b".")
    negative = whole.startswith(b"-")
    if not whole.lstrip(b"-").isdigit() or (fraction and not fraction.isdigit()) or len(whole) > 20:
        raise BadTar("invalid time in a pax record")
    ns = abs(int(whole)) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")
    return -ns if negative else ns
