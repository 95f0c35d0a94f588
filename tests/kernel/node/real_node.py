"""One real agent in a network namespace of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
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
        deadline = time.monotonic() + 30
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
            self.process.wait(20)
            self.process = None

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        client = docker.DockerClient(base_url=self.url, timeout=30)
        try:
            yield client
        finally:
            client.close()
