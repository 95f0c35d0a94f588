"""Fills a registry over its own HTTP API, and plays registries that lie: images made in the test, no other tool."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import select
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from swarmlet.demo_image import busybox_archive

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_TIMEOUT_S = 20


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar of regular files and symbolic links, names as given: also names that no honest tool would write."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True)
class Image:
    """A configuration and uncompressed layers, lowest first."""

    config: Mapping[str, Any]
    layers: tuple[bytes, ...]

    @property
    def document(self) -> bytes:
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in self.layers]}
        return json.dumps({**self.config, "rootfs": rootfs}, sort_keys=True).encode()

    @property
    def id(self) -> str:
        return digest_of(self.document)

    def on(self, files: Mapping[str, bytes], **config: Any) -> Image:
        """This image with one more layer, and with parts of its `config` replaced."""
        layer = tar_of(files)
        history = [*self.config["history"], {"created": "2024-01-02T03:04:05Z", "created_by": "ADD files in /"}]
        inner = {**self.config["config"], **config}
        return Image({**self.config, "config": inner, "history": history}, (*self.layers, layer))

    def archive(self, name: str) -> bytes:
        """As `docker save` writes it."""
        names = [f"{number}/layer.tar" for number in range(len(self.layers))]
        listed = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
        return tar_of({
            "config.json": self.document,
            **dict(zip(names, self.layers, strict=True)),
            "manifest.json": json.dumps(listed).encode(),
        })

    def packed(self) -> Packed:
        """As a registry holds it: gzipped layers, a manifest."""
        blobs = [self.document, *(gzip.compress(layer, 1, mtime=0) for layer in self.layers)]
        entries = [
            {"mediaType": kind, "size": len(blob), "digest": digest_of(blob)}
            for kind, blob in zip([CONFIG, *[LAYER] * len(self.layers)], blobs, strict=True)
        ]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries[0], "layers": entries[1:]}
        return Packed(json.dumps(manifest).encode(), {digest_of(blob): blob for blob in blobs})


@dataclass(frozen=True)
class Packed:
    """What is uploaded to, or served by, a registry."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    media_type: str = MANIFEST

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def config(self) -> str:
        """The configuration's digest."""
        digest: str = json.loads(self.manifest)["config"]["digest"]
        return digest

    @property
    def layers(self) -> list[str]:
        """Digests of the compressed layers, lowest first."""
        return [entry["digest"] for entry in json.loads(self.manifest)["layers"]]


def busybox_image() -> Image:
    """The image that every node of a local cluster has as busybox:latest."""
    with tarfile.open(fileobj=io.BytesIO(busybox_archive(Path("/usr/bin/busybox"), "busybox:latest"))) as tar:
        parts = {name: _content(tar, name) for name in tar.getnames()}
    listed = json.loads(parts["manifest.json"])[0]
    config = json.loads(parts[listed["Config"]])
    del config["rootfs"]
    return Image(config, tuple(parts[name] for name in listed["Layers"]))


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def push(registry: str, repository: str, tag: str, image: Image) -> Packed:
    """Upload blobs, then the manifest, as the specification says."""
    packed = image.packed()
    for digest, blob in packed.blobs.items():
        with _ask("POST", f"http://{registry}/v2/{repository}/blobs/uploads/") as answer:
            place = answer.headers["Location"]
        joint = "&" if "?" in place else "?"
        _ask("PUT", f"{place}{joint}digest={digest}", blob, "application/octet-stream").close()
    put_manifest(registry, repository, tag, packed.manifest, packed.media_type)
    return packed


def push_list(registry: str, repository: str, tag: str, members: Mapping[tuple[str, str], Packed]) -> bytes:
    """A list of platforms ("os", "architecture") over manifests that are there already; the list's bytes."""
    raw = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST_LIST,
        "manifests": [
            {
                "mediaType": packed.media_type, "size": len(packed.manifest), "digest": packed.digest,
                "platform": {"os": system, "architecture": architecture},
            }
            for (system, architecture), packed in members.items()
        ],
    }).encode()  # fmt: skip
    put_manifest(registry, repository, tag, raw, MANIFEST_LIST)
    return raw


def put_manifest(registry: str, repository: str, tag: str, raw: bytes, media_type: str) -> None:
    _ask("PUT", f"http://{registry}/v2/{repository}/manifests/{tag}", raw, media_type).close()


def _ask(method: str, url: str, data: bytes = b"", media_type: str = "") -> Any:
    headers = {"Content-Type": media_type} if media_type else {}
    return urlopen(Request(url, data=data, method=method, headers=headers), timeout=_TIMEOUT_S)


@dataclass(frozen=True)
class Liar:
    """A registry with one image under any name and tag; `tampered` replaces what some digests should bring.

    `cut` names blobs whose transfer breaks off half-way, every time; those in `held` stop half-way until `go_on` is
    set, or the client hangs up. `asked` counts requests for each blob, `ranges` are those for a part of one.
    """

    packed: Packed
    tampered: Mapping[str, bytes] = field(default_factory=dict)
    cut: Sequence[str] = ()
    held: Sequence[str] = ()
    go_on: threading.Event = field(default_factory=threading.Event)
    asked: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def content(self, path: str) -> tuple[bytes, str] | None:
        """(bytes, media type) of a request path below /v2/."""
        kind, _, wanted = path.rpartition("/")
        if kind.endswith("/manifests"):
            return self.tampered.get(wanted, self.packed.manifest), self.packed.media_type
        blob = self.tampered.get(wanted, self.packed.blobs.get(wanted))
        return None if blob is None else (blob, "application/octet-stream")


@contextmanager
def lying_registry(address: str, liar: Liar) -> Iterator[str]:
    """Serve it at a free port of this address; yields "address:port"."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = (b"{}", "application/json") if self.path == "/v2/" else liar.content(self.path)
            body, media_type = found or (b'{"errors":[{"code":"BLOB_UNKNOWN"}]}', "application/json")
            wanted = self.path.rpartition("/")[2]
            liar.asked[wanted] += 1
            start = 0
            if given := self.headers.get("Range", ""):
                liar.ranges.append(given)
                start = int(given.removeprefix("bytes=").rstrip("-"))
            body = body[start:]
            self.send_response(404 if found is None else 206 if start else 200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if wanted in liar.cut:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            if wanted in liar.held and not liar.go_on.is_set():
                half = len(body) // 2
                self.wfile.write(body[:half])
                body = body[half:]
                if not self._wait():
                    self.close_connection = True
                    return
            self.wfile.write(body)

        def _wait(self) -> bool:
            """Until it may go on; False if the client has hung up."""
            while not liar.go_on.wait(0.02):
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    liar.hung_up.set()
                    return False
            return True

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{address}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def with_layer(image: Image, layer: bytes) -> Image:
    """The image with one more layer of exactly these bytes."""
    return replace(image, layers=(*image.layers, layer))
