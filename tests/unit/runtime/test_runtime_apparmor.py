"""Which AppArmor profile containers have, and what becomes of a host where none can be had."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmlet.model.container import HostConfig
from swarmlet_agent.runtime import apparmor, security

Host = Callable[..., Path]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with AppArmor, these profiles, and a parser that ends so (None: no parser); it leaves what it read."""

    def make(loaded: str, ends: int | None) -> Path:
        (tmp_path / "enabled").write_text("Y\n")
        (tmp_path / "profiles").write_text(loaded)
        if ends is not None:
            program = tmp_path / "apparmor_parser"
            program.write_text(f"#!/bin/sh\ncat > {tmp_path}/read\necho broken >&2\nexit {ends}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(apparmor, "ENABLED", tmp_path / "enabled")
        monkeypatch.setattr(apparmor, "LOADED", tmp_path / "profiles")
        monkeypatch.setattr(apparmor, "_PATH", f"{tmp_path}:/usr/bin:/bin" if ends is not None else str(tmp_path))
        return tmp_path

    return make


def test_a_profile_is_loaded_if_nobody_has(host: Host) -> None:
    folder = host("lsb_release (enforce)\n", 0)

    assert apparmor.default_profile() == "docker-default"
    assert (folder / "read").read_text() == apparmor.PROFILE


@pytest.mark.parametrize(
    ("loaded", "chosen"),
    [("docker-default (enforce)\n", "docker-default"),
     ("docker-default (enforce)\nswarmlet-default (complain)\n", "swarmlet-default")],
)  # fmt: skip
def test_one_that_is_there_is_left_as_it_is(host: Host, loaded: str, chosen: str) -> None:
    folder = host(loaded, 0)

    assert apparmor.default_profile() == chosen
    assert not (folder / "read").exists()


@pytest.mark.parametrize("ends", [None, 1])
def test_without_a_parser_or_if_it_fails_there_is_none(host: Host, ends: int | None) -> None:
    host("", ends)

    assert apparmor.default_profile() == ""


def test_a_kernel_without_it_has_none(host: Host) -> None:
    (host("docker-default (enforce)\n", 0) / "enabled").write_text("N\n")

    assert apparmor.default_profile() == ""


@pytest.mark.parametrize(
    ("host_config", "shown"),
    [
        (HostConfig(), "docker-default"),
        (HostConfig(privileged=True), "unconfined"),
        (HostConfig(security_opt=("apparmor=mine",)), "mine"),
        (HostConfig(security_opt=("apparmor=unconfined",)), "unconfined"),
    ],
)
def test_inspect_tells_the_profile(host_config: HostConfig, shown: str) -> None:
    assert security.shown_profile(host_config, True, "docker-default") == shown
    assert security.shown_profile(host_config, False, "") == ""
