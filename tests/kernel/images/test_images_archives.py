"""Archives in and out: load, save, import."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from fakes.images_made import OCI, OCI_INDEX, MadeImage, digest, files, folder, index_of, member, tar_of
from fakes.images_node import Node
from fakes.images_registry import FakeRegistry

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import Internal, InvalidArgument, NotFound
from swarmlet_agent.images.platforms import host_platform
from swarmlet_agent.images.unpack import Limits

pytestmark = pytest.mark.kernel

_IMAGE = MadeImage([files({"a": b"one"}), files({"b": os.urandom(2 << 20)})], {"Cmd": ["/a"]}, compression="none")


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 300_000):
        yield data[at : at + 300_000]


async def load(node: Node, data: bytes, **options: Any) -> list[str]:
    said: list[str] = []

    async def listen(message: dict[str, Any]) -> None:
        said.append(message.get("stream", ""))

    await node.store.load(chunks(data), progress=listen, **options)
    return [line for line in said if line]


async def saved(node: Node, *refs: str) -> bytes:
    return b"".join([chunk async for chunk in node.store.save(refs)])


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
async def test_a_saved_archive_is_loaded_however_it_is_packed(node: Node, pack: Any) -> None:
    said = await load(node, pack(_IMAGE.docker_archive("made:1", "reg.example/made:2")))

    assert said == ["Loaded image: made:1\n", "Loaded image: reg.example/made:2\n"]
    assert node.store.get("made:1").id == node.store.get("reg.example/made:2").id == _IMAGE.id


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_an_oci_layout_is_loaded(node: Node, compression: str) -> None:
    image = MadeImage(_IMAGE.layers, compression=compression, media_type=OCI)

    assert await load(node, image.oci_layout("docker.io/library/made:1")) == ["Loaded image: made:1\n"]
    assert await load(node, image.oci_layout()) == [f"Loaded image ID: {image.id}\n"]


async def test_what_is_saved_is_loaded_as_the_same_images(node: Node) -> None:
    other = MadeImage([_IMAGE.layers[0], files({"c": b"see"})])
    await load(node, _IMAGE.docker_archive("made:1", "made:2"))
    await load(node, other.docker_archive("other:1"))
    archive = await saved(node, "made", other.id, "made:2")
    await node.store.prune(Filters({"dangling": ("false",)}))
    assert node.store.all() == [] and node.layer_folders() == set()

    said = await load(node, archive)

    assert said == ["Loaded image: made:1\n", "Loaded image: made:2\n", f"Loaded image ID: {other.id}\n"]
    assert {image.id for image in node.store.all()} == {_IMAGE.id, other.id}
    content = members(archive)
    assert content[f"blobs/{_IMAGE.diff_ids[1].replace(':', '/')}"] == _IMAGE.layers[1]
    assert json.loads(content["manifest.json"])[0]["RepoTags"] == ["made:1", "made:2"]
    assert json.loads(content["repositories"]) == {"made": dict.fromkeys(["1", "2"], _IMAGE.diff_ids[1][7:])}
    assert sum(name.startswith("blobs/") for name in content) == 3 + 2 + 2  # layers, configurations, manifests


async def test_a_layer_whose_files_were_changed_is_not_saved_as_if_nothing_had_happened(node: Node) -> None:
    await load(node, _IMAGE.docker_archive("made:1"))
    for name in node.layer_folders():
        for path in (node.data / "images/layers" / name / "diff").iterdir():
            path.write_bytes(b"eno" if path.name == "a" else path.read_bytes())

    with pytest.raises(Internal, match="damaged"):
        await saved(node, "made:1")


async def test_a_tag_that_moves_by_loading_is_told(node: Node) -> None:
    other = MadeImage([files({"c": b"see"})])
    await load(node, _IMAGE.docker_archive("made:1"))

    said = await load(node, other.docker_archive("made:1"))

    assert said[0] == f"The image made:1 already exists, renaming the old one with ID {_IMAGE.id} to empty string\n"
    assert node.store.get("made:1").id == other.id and node.store.get(_IMAGE.id).repo_tags == ()


_GOOD = _IMAGE.docker_archive("made:1")
_WRONG_LAYER = MadeImage(_IMAGE.layers)
_WRONG_LAYER.blobs = [_IMAGE.blobs[0], files({"b": b"another"})]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "invalid archive: empty file"),
        (b"this is no archive" * 100, "invalid archive"),
        (_GOOD[: len(_GOOD) // 2], "invalid archive"),
        (gzip.compress(_GOOD)[:5000], "invalid gzip stream: unexpected end"),
        (files({"x": b""}), "neither manifest.json nor index.json"),
        (files({"manifest.json": b"{"}), "manifest.json"),
        (files({"manifest.json": b"[]"}), "holds no image"),
        (files({"manifest.json": b'[{"Config": "../../../etc/passwd", "Layers": []}]'}), "is missing"),
        (_IMAGE.docker_archive("Bad Name"), "invalid reference format"),
        (_WRONG_LAYER.docker_archive("made:1"), "failed verification"),
        (MadeImage([tar_of([member("../x", b"")])]).docker_archive("made:1"), "escapes its root"),
        (MadeImage([b"noise" * 1000], compression="none").docker_archive("made:1"), "invalid tar header"),
    ],
)
async def test_a_bad_archive_is_refused_and_leaves_nothing(node: Node, data: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        await load(node, data)

    assert node.store.all() == [] and node.layer_folders() == set() and node.leftovers() == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(node: Node) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield _GOOD[:4096]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await node.store.load(broken())

    assert node.leftovers() == []


async def test_an_import_is_for_this_machine_unless_told_otherwise(node: Node) -> None:
    """moby TestImportWithCustomPlatform."""
    root = tar_of([member("a", b"1")])
    own = host_platform(os.uname().machine).architecture
    for platform, expected in (("", own), ("linux", own), ("LINUX", own), ("linux/sparc64", "sparc64")):
        image = await node.store.import_tar(chunks(root), platform=platform)
        assert (image.os, image.architecture) == ("linux", expected)
    with pytest.raises(InvalidArgument, match="operating system is not supported"):
        await node.store.import_tar(chunks(root), platform="macos/arm64")


async def test_a_root_file_system_is_imported_with_changes(node: Node) -> None:
    root = gzip.compress(tar_of([folder("bin"), member("bin/sh", b"#!", mode=0o755)]))

    image = await node.store.import_tar(
        chunks(root),
        repo="made",
        tag="1",
        message="by hand",
        changes=[
            'CMD ["/bin/sh"]',
            "ENV A=1 B='two words'",
            "EXPOSE 80 53/udp",
            "LABEL x=y",
            "WORKDIR /a",
            "WORKDIR b",
        ],
    )

    assert node.store.get("made:1") == image
    assert image.config.cmd == ("/bin/sh",) and image.config.env == ("A=1", "B=two words")
    assert set(image.config.exposed_ports) == {"80/tcp", "53/udp"} and image.config.working_dir == "/a/b"
    assert node.store.history("made:1")[0]["Comment"] == "by hand"
    assert await load(node, await saved(node, "made:1")) == ["Loaded image: made:1\n"]
    with pytest.raises(InvalidArgument, match="FROM is not a valid change command"):
        await node.store.import_tar(chunks(root), changes=["FROM x"])
    with pytest.raises(InvalidArgument):
        await node.store.import_tar(chunks(b"noise" * 1000), repo="bad")
    assert len(node.store.all()) == 1 and node.leftovers() == []


async def test_names_and_removal_follow_dockers_rules_and_survive_a_restart(node: Node) -> None:
    await load(node, _IMAGE.docker_archive("made:1"))
    await node.store.tag("made:1", "reg.example/app", "x")
    await node.restart()

    assert node.store.get(_IMAGE.id[7:19]).repo_tags == ("made:1", "reg.example/app:x")
    assert await node.store.remove("made:1") == [{"Untagged": "made:1"}]
    done = await node.store.remove(_IMAGE.id[7:20])
    assert [next(iter(line)) for line in done] == ["Untagged", "Deleted", "Deleted", "Deleted"]
    assert node.layer_folders() == set()
    await node.restart()
    for ref, shown in (("made:1", "made:1"), ("made", "made:latest"), (_IMAGE.id, _IMAGE.id)):
        with pytest.raises(NotFound, match=f"^No such image: {shown}$"):
            node.store.get(ref)
    assert [action for action, _ in node.events] == ["load", "tag", "untag", "untag", "delete"]


async def test_prune_removes_what_nobody_uses(node: Node) -> None:
    first, second = MadeImage([files({"a": b"12345"})]), MadeImage([files({"c": b"see"})])
    for image in (first, second):
        await load(node, image.docker_archive("made:1"))
    node.users[second.id] = [("c" * 64, True)]

    deleted, freed = await node.store.prune(Filters())
    assert deleted[0] == {"Deleted": first.id} and freed == 5
    assert await node.store.prune(Filters({"dangling": ("false",)})) == ([], 0)
    node.users.clear()
    assert await node.store.prune(Filters({"dangling": ("false",), "label": ("x",)})) == ([], 0)
    assert (await node.store.prune(Filters({"dangling": ("false",)})))[1] == 3
    assert node.layer_folders() == set()


async def test_an_image_removed_while_it_is_saved_is_saved_whole_and_then_gone(node: Node) -> None:
    await load(node, _IMAGE.docker_archive("made:1"))
    pieces = node.store.save(["made:1"])
    archive = await anext(pieces)
    await node.store.remove("made:1")
    assert len(node.layer_folders()) == 2
    archive += b"".join([piece async for piece in pieces])

    assert node.layer_folders() == set()
    assert await load(node, archive) == ["Loaded image: made:1\n"]
    assert [action for action, _ in node.events] == ["load", "untag", "delete", "load"]


async def test_saving_and_importing_are_told(node: Node) -> None:
    image = await node.store.import_tar(chunks(files({"a": b"1"})), repo="made", tag="1")
    await saved(node, "made:1")
    assert node.events == [("tag", image.id), ("import", image.id), ("save", image.id)]


@pytest.mark.parametrize("name", ["", "latest", "docker.io/library/from-podman:2"])
async def test_a_layout_of_other_tools_is_loaded_under_the_name_it_gives(node: Node, name: str) -> None:
    """skopeo writes the bare tag or nothing, podman the whole name, both under the key of the OCI specification."""
    image = MadeImage([files({"a": b"one"})], compression="zstd", media_type=OCI)
    entry: dict[str, Any] = {"mediaType": OCI, "digest": image.digest, "size": len(image.manifest)}
    if name:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [entry]}
    blobs = {f"blobs/{key.replace(':', '/')}": data for key, data in image.contents().items()}
    layout = files({
        **blobs, f"blobs/{image.digest.replace(':', '/')}": image.manifest,
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(),
    })  # fmt: skip

    expected = "Loaded image: from-podman:2\n" if ":" in name else f"Loaded image ID: {image.id}\n"
    assert await load(node, lzma.compress(layout)) == [expected]
    assert node.store.get(image.id).id == image.id


@pytest.mark.parametrize("nested", [True, False])
async def test_a_layout_with_several_platforms_gives_the_hosts_own_or_the_one_asked_for(
    node: Node, nested: bool
) -> None:
    """As a list below the layout's index (buildx), or side by side in it under one name."""
    ours, other = (MadeImage([files({name: b""})], media_type=OCI, architecture=name) for name in ("amd64", "arm64"))
    several = index_of(other, ours)
    blobs = {**ours.contents(), **other.contents(), ours.digest: ours.manifest, other.digest: other.manifest}
    name = {"io.containerd.image.name": "docker.io/library/both:1"}
    if nested:
        entries = [{"mediaType": OCI_INDEX, "digest": digest(several), "size": len(several), "annotations": name}]
        blobs[digest(several)] = several
    else:
        entries = [{**entry, "annotations": name} for entry in json.loads(several)["manifests"]]
    layout = files({
        **{f"blobs/{key.replace(':', '/')}": data for key, data in blobs.items()},
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
    })  # fmt: skip

    assert await load(node, layout) == ["Loaded image: both:1\n"]
    assert node.store.get("both:1").id == ours.id and len(node.store.all()) == 1
    assert (await node.store.load(chunks(layout), platform="linux/arm64"))[0].id == other.id
    assert node.store.get("both:1").id == other.id
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x"):
        await node.store.load(chunks(layout), platform="linux/s390x")


async def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, registry: FakeRegistry) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    node = Node(disk, limits=Limits(reserve_bytes=0))
    try:
        await node.start()
        small, unpacks = MadeImage([files({"a": b"one"})]), MadeImage([files({"b": bytes(9 << 20)})])
        large = MadeImage([files({"c": os.urandom(9 << 20)})])
        for tag, image in (("small", small), ("unpacks", unpacks), ("large", large)):
            registry.push("x", tag, image)
        await load(node, small.docker_archive("made:1"))
        free = os.statvfs(disk).f_bavail

        for tag in ("unpacks", "large"):
            with pytest.raises(Internal, match="No space left on device"):
                await node.store.pull(f"{registry.host}/x:{tag}")
        for image in (unpacks, large):
            with pytest.raises(Internal, match="No space left on device"):
                await load(node, image.docker_archive("made:2"))
        with pytest.raises(Internal, match="No space left on device"):
            await node.store.import_tar(chunks(unpacks.layers[0]))
        with pytest.raises(Internal, match="No space left on device"):
            await load(node, gzip.compress(unpacks.docker_archive("made:3")))

        assert [image.id for image in node.store.all()] == [small.id]
        assert node.leftovers() == [] and len(node.layer_folders()) == 1
        assert free - os.statvfs(disk).f_bavail < 64  # pages; the journal's own
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert (await node.store.pull(f"{registry.host}/x:large")).id == large.id
        await node.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
