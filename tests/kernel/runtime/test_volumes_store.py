"""The volume store on a real file system: life cycle, crashes, copying, mounted volumes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound
from swarmlet.model.common import Driver
from swarmlet_agent.journal import Journal
from swarmlet_agent.runtime import linux
from swarmlet_agent.volumes import mounting
from swarmlet_agent.volumes.store import VolumeStore

pytestmark = pytest.mark.kernel

NO_FILTER = Filters()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


@pytest.fixture
async def store(tmp_path: Path, journal: Journal) -> AsyncIterator[VolumeStore]:
    made = VolumeStore(tmp_path, journal)
    await made.start()
    yield made
    await made.teardown()


async def again(tmp_path: Path, journal: Journal) -> VolumeStore:
    """Another agent on the same journal and folder."""
    made = VolumeStore(tmp_path, journal)
    await made.start()
    return made


async def test_a_volume_is_made_once_and_keeps_its_first_options(store: VolumeStore) -> None:
    first = await store.create("data", labels={"a": "1"})
    second = await store.create("data", labels={"a": "2"})

    assert first == second
    assert store.path("data").is_dir()
    assert [volume.name for volume in store.select(NO_FILTER)] == ["data"]


async def test_volumes_and_their_users_survive_the_agent(store: VolumeStore, tmp_path: Path, journal: Journal) -> None:
    await store.create("data")
    await store.use("data", "c1")

    later = await again(tmp_path, journal)

    with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
        await later.remove("data")
    await later.release("c1", remove_anonymous=True)
    await later.remove("data")
    with pytest.raises(NotFound, match="get data: no such volume"):
        later.get("data")
    assert not (tmp_path / "volumes" / "data").exists()


async def test_only_anonymous_volumes_go_with_their_container(store: VolumeStore) -> None:
    await store.create("named")
    anonymous, path = await store.create_anonymous({})
    shared, _ = await store.create_anonymous({})
    for name in ("named", anonymous, shared):
        await store.use(name, "c1")
    await store.use(shared, "c2")

    await store.release("c1", remove_anonymous=True)

    assert {volume.name for volume in store.select(NO_FILTER)} == {"named", shared}
    assert not path.exists()


async def test_prune_removes_unused_anonymous_volumes_only(store: VolumeStore) -> None:
    await store.create("named")
    anonymous, path = await store.create_anonymous({})
    (path / "file").write_bytes(b"x" * 100_000)
    used, _ = await store.create_anonymous({})
    await store.use(used, "c1")

    removed, freed = await store.prune(NO_FILTER)

    assert removed == [anonymous]
    assert freed >= 100_000
    await store.create("elsewhere", "", {"type": "tmpfs", "device": "tmpfs"})
    assert (await store.prune(Filters({"all": ("true",)})))[0] == ["named"]
    assert {volume.name for volume in store.select(NO_FILTER)} == {"elsewhere", used}


async def test_filters_choose_by_label_name_and_use(store: VolumeStore) -> None:
    await store.create("web-data", labels={"tier": "web"})
    await store.create("db-data", labels={"tier": "db"})
    await store.use("db-data", "c1")

    def names(**values: str) -> list[str]:
        return [v.name for v in store.select(Filters({key: (value,) for key, value in values.items()}))]

    assert names(label="tier=web") == ["web-data"]
    assert names(name="data") == ["db-data", "web-data"]
    assert names(dangling="true") == ["web-data"]
    assert names(dangling="false") == ["db-data"]
    assert names(driver="other") == []
    with pytest.raises(InvalidArgument, match="invalid filter 'size'"):
        names(size="1")


async def test_a_folder_without_a_record_is_taken_in_not_deleted(
    store: VolumeStore, tmp_path: Path, journal: Journal
) -> None:
    lost = tmp_path / "volumes" / "lost" / "_data"
    lost.mkdir(parents=True)
    (lost / "precious").write_text("data")
    half_removed = tmp_path / "volumes" / ".removed-1"
    half_removed.mkdir()

    later = await again(tmp_path, journal)

    assert later.get("lost").name == "lost"
    assert (later.path("lost") / "precious").read_text() == "data"
    assert not half_removed.exists()


async def test_a_record_whose_folder_was_not_made_yet_gets_it_when_needed(
    store: VolumeStore, tmp_path: Path, journal: Journal
) -> None:
    await store.create("data")
    store.path("data").rmdir()

    assert (await (await again(tmp_path, journal)).ensure("data", None, {})).is_dir()


def _image_folder(root: Path) -> Path:
    folder = root / "image"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    os.chown(folder / "file", 1000, 1001)
    os.chmod(folder / "file", 0o4755)
    os.setxattr(folder / "file", "trusted.example", b"v")
    os.link(folder / "file", folder / "sub" / "same")
    os.symlink("/etc/passwd", folder / "link")
    os.lchown(folder / "link", 5, 6)
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(folder, 7, 8)
    os.chmod(folder, 0o1777)
    os.utime(folder / "file", ns=(1_000_000_000, 2_000_000_000))
    return folder


async def test_an_empty_volume_is_filled_with_all_that_the_image_has(store: VolumeStore, tmp_path: Path) -> None:
    folder = _image_folder(tmp_path)
    path = await store.ensure("data", None, {})

    await store.copy_up("data", folder)

    info = os.lstat(path / "file")
    assert (path / "file").read_bytes() == b"content"
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1000, 1001, 0o4755)
    assert (info.st_nlink, info.st_mtime_ns) == (2, 2_000_000_000)
    assert os.getxattr(path / "file", "trusted.example") == b"v"
    assert os.path.samefile(path / "file", path / "sub" / "same")
    assert os.readlink(path / "link") == "/etc/passwd"
    assert os.lstat(path / "link").st_uid == 5
    assert stat.S_ISFIFO(os.lstat(path / "pipe").st_mode)
    assert os.lstat(path / "null").st_rdev == os.makedev(1, 3)
    root = os.lstat(path)
    assert (root.st_uid, root.st_gid, stat.S_IMODE(root.st_mode)) == (7, 8, 0o1777)


async def test_a_volume_with_content_is_left_alone(store: VolumeStore, tmp_path: Path) -> None:
    path = await store.ensure("data", None, {})
    (path / "mine").write_text("x")

    await store.copy_up("data", _image_folder(tmp_path))

    assert os.listdir(path) == ["mine"]


async def test_a_folder_in_a_volume_is_filled_if_it_is_empty(store: VolumeStore, tmp_path: Path) -> None:
    path = await store.ensure("data", None, {})
    for name in ("empty", "used"):
        (path / name).mkdir()
    (path / "used" / "mine").write_text("x")
    os.symlink("/", path / "out")

    await store.copy_up("data", _image_folder(tmp_path), "empty")
    await store.copy_up("data", tmp_path / "image", "used")

    assert (path / "empty" / "file").read_bytes() == b"content"
    root = os.lstat(path / "empty")
    assert (root.st_uid, root.st_gid, stat.S_IMODE(root.st_mode)) == (7, 8, 0o1777)
    assert os.listdir(path / "used") == ["mine"]
    assert sorted(os.listdir(path)) == ["empty", "out", "used"]
    with pytest.raises(InvalidArgument, match=r"cannot access path .*/missing: no such file or directory"):
        await store.copy_up("data", tmp_path / "image", "missing")
    with pytest.raises(InvalidArgument, match="escapes the base directory"):
        await store.copy_up("data", tmp_path / "image", "out")


async def test_a_copy_into_a_folder_that_was_cut_off_is_begun_again_there(store: VolumeStore, tmp_path: Path) -> None:
    path = await store.ensure("data", None, {})
    (path / "part").mkdir()
    (path / "part" / "half").write_text("x")
    (path / "mine").write_text("x")
    (path.parent / ".filling").write_text("part")

    await store.copy_up("data", _image_folder(tmp_path))

    assert os.listdir(path / "part") == []
    assert sorted(os.listdir(path)) == ["mine", "part"]
    assert not (path.parent / ".filling").exists()


async def test_a_copy_that_was_cut_off_is_begun_again(store: VolumeStore, tmp_path: Path) -> None:
    path = await store.ensure("data", None, {})
    (path / "half").write_text("x")
    (path.parent / ".filling").touch()

    await store.copy_up("data", _image_folder(tmp_path))

    assert "half" not in os.listdir(path)
    assert (path / "file").exists()
    assert not (path.parent / ".filling").exists()


async def test_a_folder_the_image_does_not_have_or_that_is_a_link_copies_nothing(
    store: VolumeStore, tmp_path: Path
) -> None:
    path = await store.ensure("data", None, {})
    os.symlink("/etc", tmp_path / "etc")

    await store.copy_up("data", tmp_path / "missing")
    await store.copy_up("data", tmp_path / "etc")

    assert os.listdir(path) == []


async def test_a_tmpfs_volume_is_mounted_while_it_is_in_use(store: VolumeStore) -> None:
    driver = Driver(name="local", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nodev"})
    path = await store.ensure("scratch", driver, {})
    await store.use("scratch", "c1")
    await store.ensure("scratch", driver, {})

    assert mounting.is_mounted(path)
    (path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="No space left"):
        (path / "big").write_bytes(b"x" * (2 << 20))

    await store.release("c1", remove_anonymous=False)

    assert not mounting.is_mounted(path)
    assert os.listdir(path) == []


async def test_a_bind_volume_shows_the_other_folder_read_only(store: VolumeStore, tmp_path: Path) -> None:
    source = tmp_path / "srv"
    source.mkdir()
    (source / "file").write_text("there")
    driver = Driver(options={"type": "none", "device": str(source), "o": "bind,ro"})

    path = await store.ensure("bound", driver, {})

    assert (path / "file").read_text() == "there"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()
    await store.remove("bound")
    assert (source / "file").read_text() == "there"


async def test_a_bind_of_a_missing_folder_names_it_and_mounts_nothing(store: VolumeStore, tmp_path: Path) -> None:
    driver = Driver(options={"type": "none", "device": str(tmp_path / "missing"), "o": "bind"})

    with pytest.raises(InvalidArgument, match=r"missing.*no such file or directory"):
        await store.ensure("bound", driver, {})

    assert not mounting.is_mounted(store.path("bound"))
    await store.remove("bound")


async def test_sockets_are_not_copied(store: VolumeStore, tmp_path: Path) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        path = await store.ensure("data", None, {})
        await store.copy_up("data", folder)

    assert os.listdir(path) == []


async def test_servers_that_are_silent_hold_up_nobody_else(
    store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mount(2) of such a server's folder blocks for minutes; the loop has few threads to lend."""
    answers = threading.Event()
    entered = threading.Semaphore(0)

    def mount(*_: object) -> None:
        entered.release()
        answers.wait(30)
        raise OSError(errno.ETIMEDOUT, "mounting")

    monkeypatch.setattr(linux, "mount", mount)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))  # as on a small host
    options = {"type": "nfs", "o": "addr=192.0.2.1,nfsvers=4", "device": ":/export"}
    waiting = [
        asyncio.ensure_future(store.ensure(f"far{number}", Driver(name="local", options=options), {}))
        for number in range(5)
    ]
    try:
        async with asyncio.timeout(10):
            for _ in waiting:
                while not entered.acquire(blocking=False):
                    await asyncio.sleep(0.01)
            assert await store.ensure("near", None, {}) == store.path("near")
    finally:
        answers.set()
        refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(err, Internal) and "timed out" in str(err) for err in refused)


def test_whether_something_is_mounted_is_asked_of_the_kernel_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what is mounted: a server that has gone would let nobody take its volume away."""
    looked: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **more: looked.append(os.fspath(path)) or lstat(path, **more))
    assert not mounting.is_mounted(tmp_path / "far" / "_data")
    assert looked and str(tmp_path / "far" / "_data") not in looked
