"""Logs are kept within max-size and max-file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from swarmlet.model.container import HostConfig, LogConfig
from swarmlet_agent.decide.rotation import LogLimits, log_limits, next_look_s
from swarmlet_agent.logs import rotate
from swarmlet_agent.logs.files import LogFiles


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


def lines(first: int, last: int) -> list[bytes]:
    return [b"2023-11-14T22:13:20.%09d+00:00 stdout F line %d\n" % (number, number) for number in range(first, last)]


def read_through(files: LogFiles) -> bytes:
    data = b""
    while block := files.read():
        data += block
    return data


def all_lines(path: Path) -> list[bytes]:
    files = LogFiles(path)
    files.open()
    try:
        return read_through(files).splitlines(keepends=True)
    finally:
        files.close()


async def test_what_grew_beyond_the_limit_unseen_is_cut_to_files_of_the_right_size(node):
    path = await logging_container(node, **{"max-size": "1k", "max-file": "4"})
    path.with_name(path.name + ".1").write_bytes(b"".join(lines(0, 10)))
    path.write_bytes(b"".join(lines(10, 300)))
    await node.engine._rotation.check()
    path.write_bytes(b"".join(lines(300, 310)))  # conmon goes on
    await node.engine._rotation.check()

    sizes = {suffix: len(text) for suffix, text in contents(path).items()}
    assert set(sizes) == {"", ".1", ".2", ".3"} and all(500 < size <= 1024 for size in sizes.values())
    found = all_lines(path)
    assert found == lines(310 - len(found), 310) and len(found) > 50


async def test_a_reader_in_the_middle_of_a_file_that_is_cut_misses_and_repeats_nothing(node):
    path = await logging_container(node, **{"max-size": "1k", "max-file": "3"})
    path.write_bytes(b"".join(lines(0, 200)))
    files = LogFiles(path)
    files.open()
    read = read_through(files)
    with path.open("ab") as file:
        file.write(b"".join(lines(200, 300)))
    await node.engine._rotation.check()
    path.write_bytes(b"".join(lines(300, 305)))
    await node.engine._rotation.check()

    while files.advance():
        read += read_through(files)
    files.close()
    assert read.splitlines(keepends=True) == lines(0, 305)


async def test_the_log_of_a_run_that_was_quicker_than_any_look_is_cut_at_its_end(node):
    config = LogConfig(type="json-file", config={"max-size": "1k", "max-file": "2"})
    ident = await node.run("sleep", "1000", host=HostConfig(log_config=config))
    path = Path(node.engine.get(ident).log_path)
    path.write_bytes(b"".join(lines(0, 500)))
    follower = LogFiles(path)
    follower.open()
    node.world.end(ident, 0)
    await node.engine.wait(ident)

    assert {suffix: 500 < len(text) <= 1024 for suffix, text in contents(path).items()} == {"": True, ".1": True}
    found = all_lines(path)
    assert found == lines(500 - len(found), 500)
    assert follower.advance() and read_through(follower).count(b"\n") == 500 and not follower.advance()
    follower.close()


async def test_a_cut_that_was_cut_itself_leaves_no_line_twice(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"".join(lines(100, 200)))
    path.with_name("x.log.1").write_bytes(b"".join(lines(0, 100)))
    path.with_name("x.log.2").write_bytes(b"".join(lines(50, 70)))
    path.with_name("x.log.1.cut0").write_bytes(b"".join(lines(70, 100)))
    rotate.cut(path, 1024, 4, ended=False)

    found = all_lines(path)
    assert found == lines(200 - len(found), 200)
    assert not list(tmp_path.glob("*.cut*"))


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([], 0.5), ([(100, 0, 1000)], 0.5), ([(100, 10, 1000)], 0.25), ([(500, 500, 1000)], 0.1),
        ([(990, 900, 1000), (0, 0, 5)], 0.02), ([(5000, 5000, 1000)], 0.02),
    ],
)
def test_the_faster_a_log_grows_the_sooner_it_is_looked_at_again(logs, expected):
    assert next_look_s(logs, 0.1) == pytest.approx(expected)
