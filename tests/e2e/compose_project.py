"""A docker-compose project, driven by docker-compose 1.29 as packaged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from e2e_cluster import View


class Project:
    def __init__(self, folder: Path, view: View, name: str = "comp") -> None:
        self.folder = folder
        self.name = name
        self.view = view

    def write(self, text: str) -> None:
        (self.folder / "docker-compose.yml").write_text(text)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which("docker-compose")
        assert program, "docker-compose is missing: install the package docker-compose"
        return subprocess.run(
            [program, "--ansi", "never", *args], cwd=self.folder, capture_output=True, text=True, timeout=90,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"DOCKER_HOST": self.view.url, "COMPOSE_PROJECT_NAME": self.name},
        )  # fmt: skip

    def __call__(self, *args: str) -> str:
        """Standard output and error of a command that succeeds."""
        done = self.run(*args)
        assert done.returncode == 0, f"docker-compose {' '.join(args)}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def ids(self, service: str) -> set[str]:
        return set(self("ps", "-q", service).split())
