"""Devices by the Container Device Interface: files read, devices chosen, configurations changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.container import DeviceRequest
from swarmlet_agent.runtime.cdi import Registry, apply, check_requests, choose, load

SPEC = {
    "cdiVersion": "0.6.0",
    "kind": "acme.com/gpu",
    "containerEdits": {"env": ["ACME=1"], "additionalGids": [44, 0]},
    "devices": [
        {"name": name, "containerEdits": {"env": [f"CARD={name}"], "deviceNodes": [
            {"path": f"/dev/acme{name}", "hostPath": "/dev/null", "permissions": "rw"}
        ]}}
        for name in ("0", "1", "all")
    ],
}  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "acme.json").write_text(json.dumps(SPEC))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.yaml").write_text("kind: x")
    return load([tmp_path / "missing", tmp_path])


def gpus(count: int = 0, *ids: str) -> DeviceRequest:
    return DeviceRequest(count=count, device_ids=ids, capabilities=(("gpu",),))


def config() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "CARD=old"], "user": {"uid": 0, "gid": 0}},
        "mounts": [],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }


def test_files_that_cannot_be_read_are_passed_over_by_name(registry: Registry) -> None:
    assert sorted(registry.devices) == ["acme.com/gpu=0", "acme.com/gpu=1", "acme.com/gpu=all"]
    assert [Path(text.partition(":")[0]).name for text in registry.passed_over] == ["broken.json", "other.yaml"]


@pytest.mark.parametrize(
    ("request_", "cards"),
    [
        (gpus(-1), ["all"]),
        (gpus(2), ["0", "1"]),
        (gpus(1), ["0"]),
        (gpus(0, "1"), ["1"]),
        (DeviceRequest(driver="cdi", device_ids=("acme.com/gpu=1",)), ["1"]),
    ],
)
def test_which_devices_are_meant(registry: Registry, request_: DeviceRequest, cards: list[str]) -> None:
    check_requests([request_])
    edits = choose([request_], registry)
    assert [entry.removeprefix("CARD=") for each in edits for entry in each.env if "CARD" in entry] == cards
    assert sum("ACME=1" in each.env for each in edits) == 1  # what is common to the devices comes once


def test_devices_that_there_are_not_are_refused(registry: Registry) -> None:
    with pytest.raises(InvalidArgument, match=r"unresolvable CDI devices acme\.com/gpu=7 .*only JSON is read"):
        choose([gpus(0, "7")], registry)
    with pytest.raises(InvalidArgument, match="3 GPUs are wanted, but this host has 2"):
        choose([gpus(3)], registry)
    with pytest.raises(Internal, match=r'could not select device driver "" with capabilities: \[\[gpu\]\]'):
        choose([gpus(-1)], Registry(devices={}))
    for request in (DeviceRequest(driver="amd", capabilities=(("gpu",),)), DeviceRequest(capabilities=(("tpu",),))):
        with pytest.raises(Internal, match="could not select device driver"):
            check_requests([request])
    with pytest.raises(InvalidArgument, match="both Count and DeviceIDs"):
        check_requests([gpus(1, "0")])


def test_a_configuration_gets_what_its_devices_need(registry: Registry) -> None:
    changed = config()
    apply(changed, choose([gpus(0, "1")], registry))

    assert changed["process"]["env"] == ["PATH=/bin", "ACME=1", "CARD=1"]
    assert changed["process"]["user"]["additionalGids"] == [44]
    (device,) = changed["linux"]["devices"]
    assert (device["path"], device["type"], device["major"], device["minor"]) == ("/dev/acme1", "c", 1, 3)
    allowed = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    assert changed["linux"]["resources"]["devices"][-1] == allowed


def test_mounts_and_hooks_are_added(tmp_path: Path) -> None:
    edits = {
        "mounts": [{"hostPath": "/usr/lib/acme", "containerPath": "/lib/acme", "options": ["ro", "nosuid"]}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"], "timeout": 3}],
    }
    spec = {"kind": "acme.com/net", "devices": [{"name": "a", "containerEdits": edits}]}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    changed = config()
    apply(changed, choose([DeviceRequest(driver="cdi", device_ids=("acme.com/net=a",))], load([tmp_path])))

    (mount,) = changed["mounts"]
    assert mount["options"] == ["rbind", "ro", "nosuid"]
    assert changed["hooks"] == {
        "createContainer": [{"path": "/bin/true", "args": ["true", "x"], "env": [], "timeout": 3}]
    }
