"""One real agent in a network namespace of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker


@dataclass
class RealNode:
    """An agent; `start` may follow `kill`, as after a crash."""

    name: str
    base: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix:///run/{self.name}/agent.sock"

    def start(self) -> None:
        config = self.base / "agent.toml"
        config.write_text(
            f'data_dir = "{self.base}/data"\nrun_dir = "/run/{self.name}"\ncgroup_parent = "/{self.name}"\n'
        )
        program = Path(sys.executable).with_name("swarmlet-agent")
        with (self.base / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", str(program), "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"/run/{self.name}/agent.sock")
                return
            text = (self.base / "agent.log").read_text()
            assert self.process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.05)

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        client = docker.DockerClient(base_url=self.url, timeout=30)
        try:
            yield client
        finally:
            client.close()


def busybox_archive() -> bytes:
    """`docker save` form of an image with the static busybox as its shell and tools."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add("/usr/bin/busybox", "bin/busybox")
        listed = subprocess.run(["/usr/bin/busybox", "--list"], capture_output=True, text=True, check=True)
        for name in listed.stdout.split():
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return _saved(layer.getvalue())


def _saved(layer: bytes) -> bytes:
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()
