"""Where `./dev test` has put the clients that are no Python packages of ours."""

from __future__ import annotations

from pathlib import Path

_DEV = Path(__file__).parents[2] / ".dev"


def _there(path: Path) -> Path:
    assert path.exists(), f"{path} is missing: ./dev test installs it"
    return path


def node_modules() -> Path:
    """NODE_PATH for dockerode."""
    return _there(_DEV / "node_modules/dockerode").parent


def ansible(program: str) -> Path:
    """One of Ansible's commands, with community.docker."""
    return _there(_DEV / "ansible/bin" / program)
