"""`swarmlet doctor` on this very host."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
SWARMLET = str(Path(sys.executable).with_name("swarmlet"))


def doctor(data_dir: Path, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """(exit status, findings by what was looked at)."""
    environ = os.environ | {"SWARMLET_DATA_DIR": str(data_dir)} | environment
    done = subprocess.run([SWARMLET, "doctor", "--json"], capture_output=True, text=True, env=environ, timeout=60)
    assert done.stderr == ""
    return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_host_on_which_these_tests_run_is_fit_and_left_as_it_was(tmp_path: Path) -> None:
    ports = {"SWARMLET_NODE_PORT": str(free_port()), "SWARMLET_MANAGER_PORT": str(free_port())}
    status, found = doctor(tmp_path / "to" / "be" / "made", **ports)
    assert (status, [what for what, finding in found.items() if finding["verdict"] == "problem"]) == (0, [])
    assert found["overlayfs"]["verdict"] == found["nftables"]["verdict"] == found["programs"]["verdict"] == "ok"
    assert list(tmp_path.iterdir()) == []
    assert not [link for link in os.listdir("/sys/class/net") if link.startswith("doctor")]
    assert "doctor" not in Path("/proc/self/mounts").read_text()


def test_a_port_that_another_program_has_is_a_problem(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        status, found = doctor(tmp_path, SWARMLET_NODE_PORT=port, SWARMLET_MANAGER_PORT=str(free_port()))
    assert status == 1
    assert found[f"port {port}/tcp"]["remedy"] == "end that, or choose another port for node_port"


def test_settings_that_are_wrong_are_a_finding_too(tmp_path: Path) -> None:
    status, found = doctor(tmp_path, SWARMLET_NODE_PORT="many")
    assert status == 1 and list(found) == ["settings"]
    assert "node_port" in found["settings"]["found"]


def test_an_nft_that_takes_no_rules_of_services_is_a_problem(tmp_path: Path) -> None:
    """Where all else works."""
    nft = tmp_path / "nft"
    real = shutil.which("nft")
    refuse = 'case "$*" in *"dnat to"*) echo "Error: no map in dnat" >&2; exit 1;; esac'
    nft.write_text(f'#!/bin/sh\n{refuse}\nexec {real} "$@"\n')
    nft.chmod(0o755)
    status, found = doctor(tmp_path / "data", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert status == 1 and found["nftables"]["verdict"] == "ok"
    assert found["services"]["found"] == "Error: no map in dnat" and "1.0.2" in found["services"]["remedy"]
