"""Containers' roots: overlayfs over an image's layers, on the real kernel."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes.images_made import MadeImage, files, folder, member, tar_of
from fakes.images_node import Node

from swarmlet.errors import Conflict, InvalidArgument, NotFound
from swarmlet_agent.decide.remap import MappedIds, Remap
from swarmlet_agent.images import rootfs
from swarmlet_agent.runtime import linux, userns

pytestmark = pytest.mark.kernel


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100_000):
        yield data[at : at + 100_000]

#: In every container's /etc.
GROUND = ["hostname", "hosts", "mtab", "resolv.conf"]


async def load(node: Node, image: MadeImage, *names: str) -> str:
    return (await node.store.load(chunks(image.docker_archive(*names))))[0].id


async def test_layers_lie_over_each_other_and_changes_stay_with_the_container(node: Node) -> None:
    below = tar_of([folder("etc"), member("etc/a", b"1"), member("etc/b", b"1"), folder("old"), member("old/x", b"")])
    above = tar_of(
        [folder("etc"), member("etc/b", b"2"), member("etc/.wh.a"), folder("old"), member("old/.wh..wh..opq")]
    )
    image = await load(node, MadeImage([below, above]), "made:1")

    root = await node.store.ensure_rootfs("c1", image)
    try:
        assert sorted(path.name for path in (root / "etc").iterdir()) == ["b", *GROUND]
        assert (root / "etc/b").read_bytes() == b"2" and list((root / "old").iterdir()) == []
        (root / "etc/mine").write_bytes(b"x" * 1000)
        assert await node.store.ensure_rootfs("c1", image) == root
        assert await node.store.rootfs_size("c1") == 1000
        other = await node.store.ensure_rootfs("c2", image)
        assert not (other / "etc/mine").exists()
        await node.store.unmount_rootfs("c1")
        await node.store.unmount_rootfs("c1")
        assert not os.path.ismount(root)
        await node.restart()  # as after a reboot: nothing is mounted, the folders are there
        assert (await node.store.ensure_rootfs("c1", image) / "etc/mine").read_bytes() == b"x" * 1000
    finally:
        for container in ("c1", "c2"):
            await node.store.remove_rootfs(container)
            await node.store.remove_rootfs(container)
    assert sorted(path.name for path in (node.data / "containers-rootfs").iterdir()) == [".empty", ".ground"]
    with pytest.raises(NotFound):
        await node.store.rootfs_size("c1")


async def test_every_container_has_what_dockerd_puts_there_unless_its_image_has_it(node: Node) -> None:
    image = await load(node, MadeImage([tar_of([folder("etc", 0o711), member("etc/hosts", b"mine")])]), "made:1")

    root = await node.store.ensure_rootfs("c1", image)
    try:
        assert (root / ".dockerenv").read_bytes() == b"" and os.readlink(root / "etc/mtab") == "/proc/mounts"
        assert (root / "etc/hosts").read_bytes() == b"mine" and stat.S_IMODE((root / "etc").stat().st_mode) == 0o711
        assert list((node.data / "containers-rootfs/c1/upper").iterdir()) == []
        assert await node.store.rootfs_size("c1") == 0
    finally:
        await node.store.remove_rootfs("c1")


async def test_an_image_may_have_no_layers_or_127(node: Node) -> None:
    none = await load(node, MadeImage([]), "none:1")
    many = await load(node, MadeImage([files({str(n): b"%d" % n, "top": b"%d" % n}) for n in range(127)]), "many:1")
    try:
        empty = await node.store.ensure_rootfs("c1", none)
        (empty / "x").write_text("x")
        full = await node.store.ensure_rootfs("c2", many)
        assert (full / "top").read_bytes() == b"126" and len(list(full.iterdir())) == 128 + len({".dockerenv", "etc"})
    finally:
        for container in ("c1", "c2"):
            await node.store.remove_rootfs(container)


async def test_a_folder_a_layer_only_passes_through_keeps_its_attributes(node: Node) -> None:
    below = tar_of([folder("tmp", 0o1777, uid=9)])
    above = tar_of([member("tmp/x", b"x")])  # no entry for tmp itself
    image = await load(node, MadeImage([below, above]), "made:1")
    try:
        found = (await node.store.ensure_rootfs("c1", image) / "tmp").stat()
        assert stat.S_IMODE(found.st_mode) == 0o1777 and found.st_uid == 9
    finally:
        await node.store.remove_rootfs("c1")


async def test_a_container_keeps_its_layers_when_its_image_is_removed_by_force(node: Node) -> None:
    image = await load(node, MadeImage([files({"a": b"1"})]), "made:1")
    try:
        await node.store.ensure_rootfs("c1", image)
        node.users[image] = [("c1", False)]
        with pytest.raises(Conflict, match="must be forced"):
            await node.store.remove(image)
        await node.store.remove(image, force=True)
        await node.store.unmount_rootfs("c1")
        await node.restart()
        assert node.store.all() == [] and len(node.layer_folders()) == 1
        assert (await node.store.ensure_rootfs("c1", image) / "a").read_bytes() == b"1"
    finally:
        await node.store.remove_rootfs("c1")
    assert node.layer_folders() == set()


async def test_a_container_that_never_ran_keeps_its_layers_too(node: Node) -> None:
    image = await load(node, MadeImage([files({"a": b"1"})]), "made:1")
    node.users[image] = [("c1" * 32, False)]
    whole = node.store.get("made:1").size_bytes
    assert node.store.size_below("c1" * 32, image) == whole > 0
    await node.store.remove("made:1", force=True)
    assert node.store.all() == [] and len(node.layer_folders()) == 1
    assert node.store.size_below("c1" * 32, image) == whole

    await node.restart()
    try:
        assert (await node.store.ensure_rootfs("c1" * 32, image) / "a").read_bytes() == b"1"
    finally:
        await node.store.remove_rootfs("c1" * 32)
    assert node.layer_folders() == set()


async def test_a_missing_layer_folder_costs_the_image_and_not_the_node(node: Node) -> None:
    image = MadeImage([files({"a": b"1"})])
    await load(node, image, "made:1")
    for name in node.layer_folders():
        os.rename(node.data / "images/layers" / name, node.data / "elsewhere")

    await node.restart()

    assert node.store.all() == []
    await load(node, image, "made:1")
    assert node.store.get("made:1").id == image.id


async def test_ids_that_could_be_paths_are_refused(node: Node) -> None:
    for bad in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(InvalidArgument):
            await node.store.unmount_rootfs(bad)


@pytest.fixture
def ids(tmp_path: Path) -> Iterator[MappedIds]:
    remap = Remap(uids=((300000, 1000), (400000, 64536)), gids=((500000, 65536),))
    namespace = userns.ensure_namespace(tmp_path / "userns", remap)
    assert userns.ensure_namespace(tmp_path / "userns", remap) == namespace
    yield MappedIds(str(namespace), remap)
    userns.release(tmp_path / "userns")
    assert not (tmp_path / "userns").exists()


@pytest.mark.parametrize("floating", [True, False])
async def test_a_mapped_root_shows_the_hosts_ids_and_keeps_the_containers_on_disk(
    node: Node, ids: MappedIds, monkeypatch: pytest.MonkeyPatch, floating: bool
) -> None:
    """floating: as kernels since 6.15 can; older ones want the layers attached for a moment."""
    if floating and not rootfs.floating_layers():
        pytest.skip("this kernel mounts overlayfs over attached layers only")
    monkeypatch.setattr(rootfs, "floating_layers", lambda: floating)
    image = await load(node, MadeImage([tar_of([member("a", b"1")]), tar_of([member("b", b"2")])]), "made:1")
    root = await node.store.ensure_rootfs("c1", image, ids)
    try:
        assert {(root / name).stat().st_uid for name in ("a", "b", ".")} == {300000}
        with pytest.raises(OSError, match="too large"):  # the host's root has no id there
            (root / "mine").touch()
        with linux.acting_as(ids.remap.root):
            (root / "mine").write_bytes(b"x")
            os.chown(root / "a", *ids.remap.on_host(1005, 7))
        assert ((root / "a").stat().st_uid, (root / "a").stat().st_gid) == (400005, 500007)
        upper = root.parent / "upper"
        assert [((upper / name).stat().st_uid, (upper / name).stat().st_gid) for name in ("mine", "a")] == [
            (0, 0), (1005, 7),
        ]  # fmt: skip
        await node.store.unmount_rootfs("c1")
        assert (await node.store.ensure_rootfs("c1", image) / "a").stat().st_uid == 1005  # unmapped, as on disk
        assert str(root.parent) not in "".join(
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - overlay" not in line
        )
    finally:
        await node.store.remove_rootfs("c1")
    assert str(root.parent) not in Path("/proc/self/mountinfo").read_text()
