"""TLS of a listening socket: each side may end its own direction, and those who may not come in do not disturb."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from fakes.pki_made import make_pki

from swarmlet.config import TlsFiles
from swarmlet.engine_api import tls_transport
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.hosts import clients_context, listen_on, parse_hosts
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet.engine_api.streams import JsonStream, hijack
from swarmlet.errors import InvalidArgument

ATTACH = b"POST /v1.47/containers/x/attach HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n"
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
LARGE = 48 << 20


class Peer:
    """A client that speaks TLS by hand, since no library of Python's ends one direction alone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self._reader, self.writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")

    async def shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._send()
                await self._fill()
        await self._send()

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        await self._send()

    async def end_input(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # it would wait for the server to say so too
            self._tls.unwrap()
        await self._send()

    async def read(self) -> bytes:
        """b"" at the server's end of the stream."""
        while True:
            try:
                return self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    async def read_all(self) -> bytes:
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    async def _send(self) -> None:
        self.writer.write(self._out.read())
        await self.writer.drain()

    async def _fill(self) -> None:
        data = await self._reader.read(1 << 16)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()


class Place:
    """A server with TLS for docker clients; `gone` is set when a client of /forever has left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gone = asyncio.Event()
        self.secure: list[bool] = []
        self.server = Server([
            Route("POST", "/containers/{name}/attach", self.echo), Route("GET", "/forever", self.forever),
            Route("GET", "/who", self.who),
        ])
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def echo(self, call: Call) -> web.StreamResponse:
        stream, response = await hijack(call, tty=True)
        while data := await stream.read():
            await stream.write(data)
        await stream.write(b"<end>")
        stream.close()
        return response

    async def forever(self, call: Call) -> web.StreamResponse:
        stream = JsonStream(call)
        try:
            async with WhileConnected(call.request):
                await stream.send({})
                await asyncio.Event().wait()
        finally:
            self.gone.set()
        return await stream.end()

    async def who(self, call: Call) -> web.StreamResponse:
        transport = call.request.transport
        assert transport is not None
        names = dict(part[0] for part in transport.get_extra_info("peercert")["subject"])
        return web.json_response({"name": names["commonName"], "secure": call.request.secure})

    def context(self, name: str = "client", ca: str = "ca") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / f"{ca}.pem")
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 would have more than docker's clients want
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def peer(self, context: ssl.SSLContext | None = None) -> Peer:
        peer = Peer(*await self.connect(), context or self.context())
        await peer.shake_hands()
        return peer


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    make_pki(tmp_path)
    place = Place(tmp_path)
    place.port = await place.server.listen_tcp("127.0.0.1", 0, clients_context(files(tmp_path)))
    try:
        yield place
    finally:
        for writer in place.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await place.server.close()


def files(folder: Path) -> TlsFiles:
    return TlsFiles(ca=f"{folder}/ca.pem", cert=f"{folder}/server.pem", key=f"{folder}/server.key")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_that_has_ended_its_input_reads_on(place: Place, version: ssl.TLSVersion) -> None:
    context = place.context()
    context.minimum_version = context.maximum_version = version
    peer = await place.peer(context)
    await peer.write(ATTACH + b"sent with the request")
    await peer.write(b", and after it")
    await peer.end_input()
    head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert body == b"sent with the request, and after it<end>"


async def test_much_goes_both_ways_past_a_slow_reader(place: Place) -> None:
    peer = await place.peer()
    data = os.urandom(LARGE)
    await peer.write(ATTACH)

    async def send() -> None:
        for start in range(0, LARGE, 1 << 18):
            await peer.write(data[start : start + (1 << 18)])
        await peer.end_input()

    sending = asyncio.create_task(send())
    await asyncio.sleep(0.3)
    assert not sending.done(), "the server takes in what it cannot hand on"
    head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
    await sending
    assert head.startswith(b"HTTP/1.1 101 ")
    assert body == data + b"<end>"


@pytest.mark.parametrize("politely", [True, False])
async def test_a_client_that_goes_is_noticed(place: Place, politely: bool) -> None:
    peer = await place.peer()
    await peer.write(b"GET /forever HTTP/1.1\r\nHost: d\r\n\r\n")
    assert b"200 OK" in await peer.read()
    if politely:
        await peer.end_input()
    peer.writer.close()
    async with asyncio.timeout(30):
        await place.gone.wait()


async def test_a_client_is_known_by_its_certificate(place: Place) -> None:
    peer = await place.peer()
    await peer.write(b"GET /who HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
    assert (await peer.read_all()).endswith(b'{"name": "client", "secure": true}')


@pytest.mark.parametrize("name", ["", "stranger"])
async def test_a_client_without_a_certificate_of_the_ca_gets_nothing(place: Place, name: str) -> None:
    with pytest.raises(ssl.SSLError):
        peer = await place.peer(place.context(name))
        await peer.write(b"GET /who HTTP/1.1\r\nHost: d\r\n\r\n")
        await peer.read()  # TLS 1.3 tells a client of its refusal only now
    assert place.server.connections() == 0
    peer = await place.peer()
    await peer.write(b"GET /who HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
    assert b"200 OK" in await peer.read_all()


@pytest.mark.parametrize("first", [b"GET /who HTTP/1.1\r\nHost: d\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(200)])
async def test_what_is_not_tls_is_cut_off(place: Place, first: bytes) -> None:
    reader, writer = await place.connect()
    writer.write(first)
    with contextlib.suppress(ConnectionResetError):
        assert b"HTTP" not in await asyncio.wait_for(reader.read(), 30)


async def test_a_handshake_that_does_not_come_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "HANDSHAKE_S", 0.1)
    reader, _ = await place.connect()
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 30) == b""


@pytest.mark.parametrize(
    "text", ["", "tcp://", "tcp://127.0.0.1", "tcp://name:2376", "tcp://127.0.0.1:0", "tcp://127.0.0.1:99999",
             "http://127.0.0.1:2376", "unix:///run/x.sock", "tcp://u@127.0.0.1:2376", "tcp://127.0.0.1:2376/x"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid host") as told:
        parse_hosts([text], TlsFiles())
    assert repr(text) in str(told.value)


def test_without_certificates_only_this_host_may_come() -> None:
    assert [str(host) for host in parse_hosts(["tcp://127.0.0.1:2375", "tcp://[::1]:2375"], TlsFiles())] == [
        "tcp://127.0.0.1:2375", "tcp://[::1]:2375",
    ]
    with pytest.raises(InvalidArgument, match=r"^tcp://0\.0\.0\.0:2375 without TLS would make root"):
        parse_hosts(["tcp://127.0.0.1:1", "tcp://0.0.0.0:2375"], TlsFiles())
    with pytest.raises(InvalidArgument, match="hosts_tls needs ca, cert and key"):
        parse_hosts([], TlsFiles(ca="/ca.pem"))


async def test_files_and_addresses_that_cannot_be_used_are_named(place: Place, tmp_path: Path) -> None:
    good = files(tmp_path)
    for wrong, named in (
        (TlsFiles(ca="/none.pem", cert=good.cert, key=good.key), r"hosts_tls\.ca: /none\.pem: No such file"),
        (TlsFiles(ca=good.ca, cert=good.cert, key=f"{tmp_path}/client.key"), r"hosts_tls\.cert, hosts_tls\.key: "),
    ):
        with pytest.raises(InvalidArgument, match=named):
            await listen_on(place.server, ["tcp://127.0.0.1:1"], wrong)
    with pytest.raises(InvalidArgument, match=f"cannot listen on tcp://127.0.0.1:{place.port}: .*in use"):
        await listen_on(place.server, [f"tcp://127.0.0.1:{place.port}"], good)
