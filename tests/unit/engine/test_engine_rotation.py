"""Logs are kept within max-size and max-file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from swarmlet.model.container import HostConfig, LogConfig
from swarmlet_agent.decide.rotation import LogLimits, log_limits


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("json-file", {}, None),
        ("json-file", {"max-size": "1k"}, LogLimits(1024, 1)),
        ("json-file", {"max-size": "1m", "max-file": "3"}, LogLimits(1 << 20, 3)),
        ("json-file", {"max-size": "-1"}, None),
        ("local", {}, LogLimits(20 << 20, 5, True)),
        ("local", {"max-file": "2"}, LogLimits(20 << 20, 2, True)),
        ("none", {"max-size": "1k"}, None),
        ("json-file", {"max-size": "1k", "max-file": "2", "compress": "true"}, LogLimits(1024, 2, True)),
        ("local", {"compress": "false"}, LogLimits(20 << 20, 5)),
        ("syslog", {}, LogLimits(20 << 20, 5, True)),
        ("journald", {"cache-max-size": "1m", "cache-max-file": "1"}, LogLimits(1 << 20, 1)),
    ],
)
def test_limits(kind, options, expected):
    assert log_limits(LogConfig(type=kind, config=options)) == expected


def contents(path: Path) -> dict[str, str]:
    return {item.name.removeprefix(path.name): item.read_text() for item in path.parent.glob(f"{path.name}*")}


async def logging_container(node, **options: str) -> Path:
    config = LogConfig(type="json-file", config=options)
    ident = await node.run("sleep", "1000", host=HostConfig(log_config=config))
    return Path(node.engine.get(ident).log_path)


async def test_full_files_move_on_and_the_oldest_goes(node):
    path = await logging_container(node, **{"max-size": "10", "max-file": "3"})
    for text in ("first file", "second one", "third file"):
        path.write_text(text)
        await node.engine._rotation.check()

    assert contents(path) == {"": "", ".1": "third file", ".2": "second one"}


async def test_a_small_log_is_left_alone(node):
    path = await logging_container(node, **{"max-size": "10"})
    path.write_text("short")
    await node.engine._rotation.check()

    assert contents(path) == {"": "short"}


async def test_a_rotation_that_was_cut_is_finished(node):
    path = await logging_container(node, **{"max-size": "10", "max-file": "2"})
    path.with_name(path.name + ".1").write_text("conmon still writes here")
    await node.engine._rotation.check()

    assert contents(path) == {"": "", ".1": "conmon still writes here"}


async def test_one_file_is_started_anew(node):
    path = await logging_container(node, **{"max-size": "10"})
    path.write_text("more than ten")
    await node.engine._rotation.check()

    assert contents(path) == {"": ""}


async def test_files_put_aside_are_packed_once_nobody_writes_to_them(node):
    path = await logging_container(node, **{"max-size": "10", "max-file": "3", "compress": "true"})
    for text in ("first file", "second one", "third file"):
        path.write_text(text)
        await node.engine._rotation.check()
    newest = path.with_name(path.name + ".1")
    assert newest.read_text() == "third file"  # the new log is not there yet: conmon may still write here

    path.write_text("")
    await node.engine._rotation.check()

    names = {item.name.removeprefix(path.name) for item in path.parent.glob(f"{path.name}*")}
    assert names == {"", ".1.gz", ".2.gz"}
    assert gzip.decompress(path.with_name(f"{path.name}.2.gz").read_bytes()) == b"second one"


async def test_packing_that_was_cut_leaves_no_file_twice(node):
    path = await logging_container(node, **{"max-size": "10", "max-file": "3", "compress": "true"})
    path.write_text("")
    path.with_name(path.name + ".1").write_text("put aside")
    path.with_name(path.name + ".1.gz").write_bytes(gzip.compress(b"put aside"))
    await node.engine._rotation.check()

    assert {item.name.removeprefix(path.name) for item in path.parent.glob(f"{path.name}*")} == {"", ".1.gz"}
