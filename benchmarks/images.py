"""Pull with unpacking, and push, of 300 MB in 20,000 files: of what was pulled, and of what never was in a registry.

The floors, of the same run: GNU tar unpacking the very blobs of the registry into the same disk, the same blobs
uploaded to Debian's registry by bare HTTP, and layers in memory compressed on all cores and then uploaded so. That disk
is a fresh ext4 in a file, for the node's images alone, and every round has an image of its own: ext4 steps over freshly
freed inodes for a minute (whoever freed them), which would be measured instead. The figures are the best of the rounds:
what else the machine does only ever adds.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import random
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.figures import Figure
from benchmarks.lab import docker
from swarmlet.local import cluster as clusters
from swarmlet.local.layout import ClusterLayout
from swarmlet_agent.images.deflating import LEVEL, deflate

NAME = "bench-images"
ROUNDS = 3
LAYERS = 4
FILES = 20_000
MEGABYTES = 300
DISK_BYTES = 12 << 30
#: (bytes, percent of the files); the rest are as large as it takes.
SIZES = ((4096, 70), (16384, 25))
CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class Image:
    """As a registry has it: gzipped layers, the configuration, the manifest."""

    layers: list[bytes]
    config: bytes
    manifest: bytes


def measure() -> Iterator[Figure]:
    pulled, alone, together, pushed, uploaded = [], [], [], [], []
    made, compressed, again = [], [], []
    with (
        _node() as layout, _fresh_disk(layout) as scratch,
        _registry(layout, scratch / "from", 5000) as source, _registry(layout, scratch / "to", 5001) as target,
    ):
        socket = layout.nodes[0].agent_socket
        for number in range(ROUNDS):
            image, name = _image(number), f"bench/{number}"
            uploaded.append(_timed(_upload, source, name, image))
            blobs = _write(scratch / f"blobs-{number}", image)
            os.sync()
            alone.append(_timed(_untar, blobs, scratch / f"alone-{number}", 1))
            together.append(_timed(_untar, blobs, scratch / f"together-{number}", LAYERS))
            os.sync()
            pulled.append(_timed(docker, socket, "pull", "-q", f"{source}/{name}:1"))
            os.sync()
            docker(socket, "tag", f"{source}/{name}:1", f"{target}/{name}:1")
            pushed.append(_timed(docker, socket, "push", "-q", f"{target}/{name}:1"))
            os.sync()
            layers = _layers(f"made {number}")
            archive = scratch / f"archive-{number}"
            archive.write_bytes(_archive(layers, f"{target}/made/{number}:1"))
            docker(socket, "load", "-q", "-i", str(archive))
            archive.unlink()
            os.sync()
            compressed.append(_timed(_compress_and_upload, source, f"made/{number}", layers))
            os.sync()
            made.append(_timed(docker, socket, "push", "-q", f"{target}/made/{number}:1"))
            os.sync()
            docker(socket, "tag", f"{target}/made/{number}:1", f"{source}/again/{number}:1")
            again.append(_timed(docker, socket, "push", "-q", f"{source}/again/{number}:1"))
            os.sync()
    what = f"{MEGABYTES} MB in {FILES} files"
    for floor, name, bound in ((alone, "tar -xz, one by one", 1.3), (together, "tar -xz, all at once", None)):
        yield Figure(f"pull and unpack, {what}", min(pulled), "s", min(floor), name, bound, ROUNDS)
    bare = (min(uploaded), "bare upload of the blobs")
    yield Figure("push of what was pulled", min(pushed), "s", *bare, 1.3, ROUNDS)
    both = (min(compressed), "compressing on all cores, then bare upload")
    yield Figure("push of what was made here", min(made), "s", *both, 1.3, ROUNDS)
    yield Figure("the same", min(made), "s", *bare, None, ROUNDS)
    yield Figure("push of it to another registry", min(again), "s", *bare, 1.3, ROUNDS)


def _timed(work: Callable[..., object], *args: object) -> float:
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


@contextmanager
def _node() -> Iterator[ClusterLayout]:
    if NAME in clusters.all_names():
        clusters.down(NAME)
    try:
        yield clusters.up(NAME, 1, lambda line: None)
    finally:
        if NAME in clusters.all_names():
            clusters.down(NAME)


@contextmanager
def _fresh_disk(layout: ClusterLayout) -> Iterator[Path]:
    """A file system for the node's images; a folder of it for the floor. Goes with the node, too."""
    images = layout.nodes[0].data_dir / "data" / "images"
    disk = layout.nodes[0].data_dir / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(images)], check=True)
    try:
        for name in ("layers", "blobs", "tmp", "partial", "bench"):
            (images / name).mkdir(mode=0o700)
        yield images / "bench"
    finally:
        subprocess.run(["umount", "--lazy", str(images)], check=True)


@contextmanager
def _registry(layout: ClusterLayout, folder: Path, port: int) -> Iterator[str]:
    """Debian's registry on the bridge of the node; its host:port."""
    folder.mkdir()
    host = f"{layout.gateway}:{port}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                _ask(host, "GET", "/v2/")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(10)


def _layers(seed: object) -> list[bytes]:
    return [_layer(random.Random(f"{seed}/{number}"), number) for number in range(LAYERS)]


def _config(layers: list[bytes]) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    return json.dumps({"architecture": machine, "os": "linux", "rootfs": rootfs}).encode()


def _archive(layers: list[bytes], name: str) -> bytes:
    """As `docker save` writes it."""
    names = [f"{number}.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    files = {"config.json": _config(layers), "manifest.json": json.dumps(listed).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file, content in (*files.items(), *zip(names, layers, strict=True)):
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _compress_and_upload(host: str, name: str, layers: list[bytes]) -> None:
    """With the compressor that pushes use; it lets go of the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blobs = list(pool.map(_compress, layers))
    _upload(host, name, _packed(layers, blobs))


def _compress(layer: bytes) -> bytes:
    deflater = deflate.compressobj(LEVEL, zlib.DEFLATED, 31)
    packed: bytes = deflater.compress(layer) + deflater.flush()
    return packed


def _image(seed: object) -> Image:
    layers = _layers(seed)
    return _packed(layers, [gzip.compress(layer, 6, mtime=0) for layer in layers])


def _packed(layers: list[bytes], blobs: list[bytes]) -> Image:
    config = _config(layers)
    entries = [
        {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}
        for kind, blob in ((CONFIG, config), *((LAYER, blob) for blob in blobs))
    ]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries[0], "layers": entries[1:]}
    return Image(blobs, config, json.dumps(manifest).encode())


def _layer(rng: random.Random, number: int) -> bytes:
    """A quarter of the files; each half noise, half text."""
    count = FILES // LAYERS
    sizes = [size for size, share in SIZES for _ in range(count * share // 100)]
    rest = count - len(sizes)
    sizes += [(MEGABYTES * 10**6 // LAYERS - sum(sizes)) // rest] * rest
    rng.shuffle(sizes)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index, size in enumerate(sizes):
            if index % 100 == 0:
                folder = tarfile.TarInfo(f"data/{number}/{index // 100:04d}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            info = tarfile.TarInfo(f"data/{number}/{index // 100:04d}/file-{index:05d}")
            info.size, info.mode, info.mtime = size, 0o644, 1_700_000_000
            content = rng.randbytes(size // 2) + b"the same few words " * (size // 38 + 1)
            tar.addfile(info, io.BytesIO(content[:size]))
    return buffer.getvalue()


def _write(folder: Path, image: Image) -> list[Path]:
    folder.mkdir()
    blobs = [folder / f"{number}.tar.gz" for number in range(len(image.layers))]
    for blob, content in zip(blobs, image.layers, strict=True):
        blob.write_bytes(content)
    return blobs


def _untar(blobs: list[Path], folder: Path, parallel: int) -> None:
    def one(blob: Path) -> None:
        target = folder / blob.name
        target.mkdir(parents=True)
        subprocess.run(["tar", "-xzf", str(blob), "-C", str(target)], check=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, blobs))


def _upload(host: str, name: str, image: Image) -> None:
    """Blobs side by side, as a push sends them; then the manifest."""
    with ThreadPoolExecutor(LAYERS) as pool:
        list(pool.map(lambda blob: _upload_blob(host, name, blob), (*image.layers, image.config)))
    _ask(host, "PUT", f"/v2/{name}/manifests/1", image.manifest, MANIFEST)


def _upload_blob(host: str, name: str, blob: bytes) -> None:
    place = urlsplit(_ask(host, "POST", f"/v2/{name}/blobs/uploads/"))
    mark = f"?{place.query}&" if place.query else "?"
    _ask(host, "PUT", f"{place.path}{mark}digest={_digest(blob)}", blob)


def _ask(host: str, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
    """The answer's Location."""
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": kind, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {said[:200]!r}")
        return answer.headers.get("Location", "")
    finally:
        connection.close()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
