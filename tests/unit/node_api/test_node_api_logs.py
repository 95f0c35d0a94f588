"""Reading conmon's logs: rendering, tails, following, rotation."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.model.times import NS, rfc3339
from swarmlet_agent.logs import files as log_files_module
from swarmlet_agent.logs.files import LogFiles, pack
from swarmlet_agent.logs.k8s_file import LogQuery, Renderer, in_zone, utc
from swarmlet_agent.logs.reader import LogReader
from swarmlet_agent.logs.rotate import put_aside
from swarmlet_agent.logs.watch import FolderWatch

START = 1_700_000_000 * NS


def piece(text: str, stream: str = "stdout", flag: str = "F", at: int = START) -> bytes:
    return f"{rfc3339(at)[:-1]}+00:00 {stream} {flag} {text}\n".encode()


def unframe(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        stream, size = struct.unpack(">BxxxL", data[:8])
        found.append((stream, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def text_of(data: bytes, stream: int) -> bytes:
    return b"".join(part for kind, part in unframe(data) if kind == stream)


# (stream, flag, text) with texts that look like parts of log lines
pieces = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]), st.sampled_from(["F", "F", "P"]),
        st.one_of(
            st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12), st.just("x stdout P y")
        ),
    ),
    max_size=40,
)


@given(entries=pieces, cuts=st.lists(st.integers(0, 40), max_size=5))
def test_each_streams_bytes_come_out_whole_and_in_order(entries: list[tuple[str, str, str]], cuts: list[int]) -> None:
    lines = [piece(text, stream, flag) for stream, flag, text in entries]
    renderer = Renderer(LogQuery())
    borders = sorted({0, len(lines), *(min(cut, len(lines)) for cut in cuts)})
    data = b"".join(
        renderer.render(b"".join(lines[a:b])) for a, b in pairwise(borders) if b > a
    ) + renderer.finish()

    for number, name in ((1, "stdout"), (2, "stderr")):
        expected = "".join(text + ("\n" if flag == "F" else "") for stream, flag, text in entries if stream == name)
        assert text_of(data, number) == expected.encode()


def test_every_line_is_a_frame_of_its_own() -> None:
    block = piece("one") + piece("") + piece("two", "stderr") + piece("a", flag="P") + piece("b")

    assert unframe(Renderer(LogQuery()).render(block)) == [
        (1, b"one\n"), (1, b"\n"), (2, b"two\n"), (1, b"ab\n"),
    ]


def test_pieces_become_a_line_again_across_blocks_and_between_lines_of_the_other_stream() -> None:
    renderer = Renderer(LogQuery())
    first = piece("a", flag="P") + piece("x", "stderr", flag="P") + piece("b", flag="P")
    second = piece("c") + piece("y", "stderr") + piece("d", flag="P")

    assert renderer.render(first) == b""
    assert unframe(renderer.render(second)) == [(1, b"abc\n"), (2, b"xy\n")]
    assert unframe(renderer.finish()) == [(1, b"d")]
    assert renderer.finish() == b""


def test_a_very_long_line_comes_in_frames_of_16_kib_and_has_one_timestamp() -> None:
    block = b"".join(piece("x" * 8192, flag="P") for _ in range(5)) + piece("end")

    frames = unframe(Renderer(LogQuery()).render(block))
    assert [len(data) for _, data in frames] == [16384, 16384, 8192 + 4]
    stamped = b"".join(data for _, data in unframe(Renderer(LogQuery(timestamps=True)).render(block)))
    assert stamped == b"2023-11-14T22:13:20.000000000Z " + b"x" * 40960 + b"end\n"


def test_a_line_in_pieces_gets_one_timestamp_and_its_first_pieces_time_decides() -> None:
    block = (
        piece("old ", flag="P", at=START) + piece("end", at=START + 2 * NS)
        + piece("new ", flag="P", at=START + 3 * NS) + piece("err", "stderr", at=START + 3 * NS)
        + piece("end", at=START + 4 * NS)
    )
    rendered = Renderer(LogQuery(since=START + NS, timestamps=True, framed=False, stderr=False)).render(block)

    assert rendered == b"2023-11-14T22:13:23.000000000Z new end\n"


def test_until_ends_the_reading_and_both_bounds_are_inclusive() -> None:
    block = b"".join(piece(str(n), at=START + n * NS) for n in range(5))
    renderer = Renderer(LogQuery(since=START + NS, until=START + 3 * NS, framed=False))

    assert renderer.render(block) == b"1\n2\n3\n"
    assert renderer.done


def test_details_put_the_attributes_before_the_text() -> None:
    rendered = Renderer(LogQuery(prefix="a=b,c=d", timestamps=True, framed=False)).render(piece("hello"))

    assert rendered == b"2023-11-14T22:13:20.000000000Z a=b,c=d hello\n"


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [
        (b"2023-11-14T22:13:20.000000001+00:00", b"2023-11-14T22:13:20.000000001Z"),
        (b"2023-11-15T00:13:20.123456789+02:00", b"2023-11-14T22:13:20.123456789Z"),
        (b"2023-11-14T17:43:20.123456789-04:30", b"2023-11-14T22:13:20.123456789Z"),
    ],
)
def test_times_of_every_zone_are_shown_in_utc(stamp: bytes, shown: bytes) -> None:
    assert utc(stamp) == shown
    assert in_zone(START, stamp[29:35]) == stamp[:20] + b"000000000"


def test_what_a_crash_left_in_the_file_is_passed_over() -> None:
    assert Renderer(LogQuery(framed=False)).render(piece("a") + b"\0\0\0garbage\n" + piece("b")) == b"a\nb\n"


@given(entries=pieces, tail=st.integers(0, 12), split=st.integers(0, 40), block=st.sampled_from([50, 64, 200, 4096]))
def test_a_tail_is_the_last_lines_however_the_log_is_rotated_and_read(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, str, str]], tail: int, split: int, block: int,
) -> None:
    lines = [piece(text, "stdout", flag) for _, flag, text in entries]
    path = tmp_path_factory.mktemp("tail") / "x.log"
    split = min(split, len(lines))
    path.with_name("x.log.1").write_bytes(b"".join(lines[:split]))
    path.write_bytes(b"".join(lines[split:]))
    groups: list[bytes] = [b""]
    for line in lines:
        groups[-1] += line
        if line[43:44] == b"F":
            groups.append(b"")
    whole = [group for group in groups if group]

    files = LogFiles(path)
    before, log_files_module.BLOCK_BYTES = log_files_module.BLOCK_BYTES, block
    try:
        files.open(tail)
        read = b""
        while data := files.read():
            read += data
    finally:
        log_files_module.BLOCK_BYTES = before
        files.close()

    # With none wanted, a line in the making is still shown as it goes on.
    expected = b"".join(whole[-tail:]) if tail else (groups[-1])
    assert read == expected


async def collect(reader: LogReader, path: Path, query: LogQuery, ended: asyncio.Event | None = None) -> bytes:
    data = b""
    async for block in reader.read(path, query, None if ended is None else ended.wait()):
        data += block
    return data


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_following_shows_what_is_written_and_ends_with_the_container(tmp_path: Path) -> None:
    path, reader, ended = tmp_path / "x.log", LogReader(), asyncio.Event()
    path.write_bytes(piece("before"))
    following = asyncio.create_task(collect(reader, path, LogQuery(framed=False), ended))
    with path.open("ab", buffering=0) as log:
        for n in range(20):
            log.write(piece(f"line {n}"))
            await asyncio.sleep(0.003)
        log.write(piece("last"))
        ended.set()

    async with asyncio.timeout(30):
        text = (await following).decode().split()
    assert text[0] == "before"
    assert text[-1] == "last"
    assert len(text) == 42
    reader.close()


async def test_a_written_line_reaches_a_follower_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By notice: this one would look by itself too late.
    monkeypatch.setattr("swarmlet_agent.logs.reader.LOOK_AGAIN_S", 1000.0)
    path, reader, ended = tmp_path / "x.log", LogReader(), asyncio.Event()
    path.write_bytes(b"")
    stream = reader.read(path, LogQuery(framed=False), ended.wait())
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: reader._watch._waiting)
    await asyncio.sleep(0.1)  # it has looked, and waits
    with path.open("ab", buffering=0) as log:
        log.write(piece("now"))

    async with asyncio.timeout(30):
        assert await first == b"now\n"
    await stream.aclose()
    reader.close()


async def test_no_line_is_lost_or_repeated_over_rotations(tmp_path: Path) -> None:
    path, reader, ended = tmp_path / "x.log", LogReader(), asyncio.Event()
    path.write_bytes(b"")
    following = asyncio.create_task(collect(reader, path, LogQuery(framed=False), ended))
    await asyncio.sleep(0.05)
    log = path.open("ab", buffering=0)
    for n in range(300):
        log.write(piece(str(n)))
        if n % 50 == 49:
            put_aside(path, 8)
            log.write(piece(f"{n}+"))  # conmon writes on to the old file until it reopens
            log.close()
            log = path.open("ab", buffering=0)
            await asyncio.sleep(0.02)
    log.close()
    ended.set()

    async with asyncio.timeout(30):
        lines = (await following).decode().split()
    expected = [word for n in range(300) for word in ([str(n), f"{n}+"] if n % 50 == 49 else [str(n)])]
    assert lines == expected
    reader.close()


async def test_a_log_that_does_not_exist_yet_is_empty_and_can_be_followed(tmp_path: Path) -> None:
    path, reader, ended = tmp_path / "x.log", LogReader(), asyncio.Event()

    assert await collect(reader, path, LogQuery(tail=5)) == b""
    following = asyncio.create_task(collect(reader, path, LogQuery(framed=False), ended))
    await asyncio.sleep(0.05)
    path.write_bytes(piece("born"))
    await asyncio.sleep(0.1)
    ended.set()
    async with asyncio.timeout(30):
        assert await following == b"born\n"
    reader.close()


async def test_following_ends_when_until_has_passed(tmp_path: Path) -> None:
    path, reader = tmp_path / "x.log", LogReader()
    path.write_bytes(piece("x"))

    async with asyncio.timeout(30):
        query = LogQuery(framed=False, until=time.time_ns() + NS // 5)
        assert await collect(reader, path, query, asyncio.Event()) == b"x\n"
    reader.close()


async def test_an_abandoned_reader_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path, reader = tmp_path / "x.log", LogReader()
    path.write_bytes(piece("x" * 100) * 20_000)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        task = asyncio.create_task(collect(reader, path, LogQuery(), asyncio.Event()))
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.wait([task])
    reader.close()

    await until(lambda: set(os.listdir("/proc/self/fd")) <= before)  # a thread may still look into the folder


async def test_watches_of_one_folder_are_shared_and_given_back(tmp_path: Path) -> None:
    watch = FolderWatch()
    async with watch.changes(tmp_path) as first, watch.changes(tmp_path) as second:
        (tmp_path / "a").write_text("x")
        async with asyncio.timeout(30):
            await first.wait()
            await second.wait()
    before = len(os.listdir("/proc/self/fd"))
    async with watch.changes(tmp_path):
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_watched_folder_may_go_away(tmp_path: Path) -> None:
    watch = FolderWatch()
    folder = tmp_path / "c"
    folder.mkdir()
    async with watch.changes(folder):
        folder.rmdir()
        await asyncio.sleep(0.05)
        async with watch.changes(tmp_path) as other:
            (tmp_path / "b").write_text("x")
            async with asyncio.timeout(30):
                await other.wait()
    watch.close()


def read_all(files: LogFiles) -> bytes:
    data = b""
    while block := files.read():
        data += block
    return data


def test_packed_files_read_like_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    old, new = piece("old", at=START), piece("new", at=START + 1)
    path.with_name("x.log.1").write_bytes(old)
    path.write_bytes(new)
    pack(path.with_name("x.log.1"))
    files = LogFiles(path)
    files.open()

    assert read_all(files) == old + new
    files.close()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x.log", "x.log.1.gz"]


def test_a_reader_follows_its_file_into_a_packed_one_and_gives_no_line_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    lines = [piece(f"line {number}", at=START + number) for number in range(3)]
    path.write_bytes(lines[0])
    files = LogFiles(path)
    files.open()
    assert read_all(files) == lines[0]
    for number in (1, 2):
        if number > 1:
            os.replace(path.with_name("x.log.1.gz"), path.with_name("x.log.2.gz"))
        os.replace(path, path.with_name("x.log.1"))
        path.write_bytes(lines[number])
        pack(path.with_name("x.log.1"))

    assert files.advance()
    assert read_all(files) == lines[1] + lines[2]
    files.close()


def test_a_mark_finds_its_place_again_after_rotation_and_packing(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    lines = [piece(f"line {number}", at=START + number) for number in range(3)]
    path.write_bytes(lines[0])
    files = LogFiles(path)
    files.open()
    read_all(files)
    mark = files.mark()
    files.close()
    with path.open("ab") as file:
        file.write(lines[1])
    os.replace(path, path.with_name("x.log.1"))
    path.write_bytes(lines[2])
    pack(path.with_name("x.log.1"))

    again = LogFiles(path)
    again.open(after=mark)
    assert read_all(again) == lines[1] + lines[2]
    again.close()


def test_the_beginning_of_a_line_whose_end_was_rotated_away_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(piece("a", at=START) + piece("begin", flag="P", at=START + 1))
    files, renderer = LogFiles(path), Renderer(LogQuery())
    files.open()
    shown = renderer.render(files.read())
    path.unlink()
    path.write_bytes(piece("much later", at=START + 5))

    assert files.advance()
    while block := files.read():
        shown += renderer.render(block)
    files.close()
    assert unframe(shown) == [(1, b"a\n"), (1, b"begin\n"), (1, b"much later\n")]


def test_a_follower_opens_new_files_while_it_still_reads_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(piece("x" * 1000, at=START) * 1000)
    files = LogFiles(path)
    files.open()
    files.advance()
    read = files.read()
    for number in (1, 2, 3):  # each is gone before the old one has been read to its end
        path.unlink()
        path.write_bytes(piece(f"line {number}", at=START + number))
        read += files.read()

    while block := files.read():
        read += block
    files.close()
    assert read.replace(b"\n\n", b"\n").splitlines()[1000:] == [
        piece(f"line {number}", at=START + number).strip() for number in (1, 2, 3)
    ]
