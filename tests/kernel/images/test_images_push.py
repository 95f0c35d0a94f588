"""Pushing: to Debian's registry, and to one that breaks off, is busy and asks who is there."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.images_made import OCI, SCHEMA2, MadeImage, digest, files
from fakes.images_node import Node
from fakes.images_push import PushRegistry
from fakes.images_registry import RealRegistry, real_registry

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument, NotFound, SwarmletError
from swarmlet_agent.images import patience
from swarmlet_agent.images import push as push_module
from swarmlet_agent.images import search as search_module
from swarmlet_agent.images.refusals import RegistryDenied, RegistryUnreachable
from swarmlet_agent.images.types import RegistryAuth

pytestmark = pytest.mark.kernel

#: The second is larger than several compression blocks, and does not compress.
_LAYERS = [files({"a": b"one", "b": b"below"}), files({"b": b"above", "big": os.urandom(3 << 20)})]
_IDS = [digest(layer)[7:19] for layer in _LAYERS]
_USER = RegistryAuth("anna", "open sesame")


@pytest.fixture
async def registry() -> AsyncIterator[PushRegistry]:
    async with PushRegistry().running() as running:
        assert isinstance(running, PushRegistry)
        yield running


@pytest.fixture(scope="session")
def guarded_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """Asks for anna and her words."""
    folder = tmp_path_factory.mktemp("guarded")
    words = folder / "htpasswd"
    words.write_text("anna:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n")
    with real_registry(folder, words) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_BACKOFF_S", 0.02)


async def push(node: Node, ref: str, **options: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    async def listen(message: dict[str, Any]) -> None:
        seen.append(message)

    await node.store.push(ref, progress=listen, **options)
    return seen


async def load(node: Node, *names: str, image: MadeImage | None = None) -> MadeImage:
    made = image or MadeImage(_LAYERS, {"Cmd": ["/a"]})

    async def archive() -> AsyncIterator[bytes]:
        yield made.docker_archive(*names)

    await node.store.load(archive())
    return made


def said(seen: list[dict[str, Any]], ident: str) -> list[str]:
    """What was told about a layer, repeats left out."""
    return list(dict.fromkeys(message["status"] for message in seen if message.get("id") == ident))


def fetched(host: str, repository: str, tag: str) -> tuple[bytes, str]:
    request = urllib.request.Request(f"http://{host}/v2/{repository}/manifests/{tag}", headers={"Accept": SCHEMA2})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read(), answer.headers["Content-Type"]


@pytest.mark.registry
async def test_an_image_pushed_to_a_real_registry_is_what_another_node_pulls(
    node: Node, docker_registry: RealRegistry, tmp_path: Path
) -> None:
    ref = f"{docker_registry.host}/pushed/app:1"
    image = await load(node, ref)

    seen = await push(node, ref)

    assert seen[0] == {"status": f"The push refers to repository [{docker_registry.host}/pushed/app]"}
    assert [message["id"] for message in seen if message.get("status") == "Preparing"] == _IDS[::-1]
    assert said(seen, _IDS[0])[-1] == said(seen, _IDS[1])[-1] == "Pushed"
    raw, media_type = fetched(docker_registry.host, "pushed/app", "1")
    assert media_type == SCHEMA2
    assert seen[-2] == {"status": f"1: digest: {digest(raw)} size: {len(raw)}"}
    assert seen[-1] == {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest(raw), "Size": len(raw)}}
    assert node.store.get(ref).repo_digests == (f"{docker_registry.host}/pushed/app@{digest(raw)}",)
    assert ("push", ref) in node.events
    other = Node(tmp_path / "other")
    await other.start()
    pulled = await other.store.pull(ref)
    assert pulled.id == image.id and pulled.config.cmd == ("/a",)
    await other.stop()


@pytest.mark.registry
async def test_what_is_there_is_not_sent_again_and_other_repositories_are_mounted_from(
    node: Node, docker_registry: RealRegistry
) -> None:
    first, second = f"{docker_registry.host}/once/a:1", f"{docker_registry.host}/once/b:1"
    await load(node, first, second)
    await push(node, first)
    await node.restart()  # what was learnt is durable

    again = await push(node, first)
    elsewhere = await push(node, second)

    assert {said(again, ident)[-1] for ident in _IDS} == {"Layer already exists"}
    assert {said(elsewhere, ident)[-1] for ident in _IDS} == {"Mounted from once/a"}
    assert fetched(docker_registry.host, "once/a", "1") == fetched(docker_registry.host, "once/b", "1")


@pytest.mark.registry
async def test_the_registry_that_asks_who_is_there_is_pushed_to_with_the_right_words_only(
    node: Node, guarded_registry: RealRegistry
) -> None:
    ref = f"{guarded_registry.host}/mine:1"
    await load(node, ref)

    with pytest.raises(RegistryDenied, match=r"^no basic auth credentials$"):
        await push(node, ref)
    with pytest.raises(RegistryDenied, match=r"^unauthorized: authentication required$"):
        await push(node, ref, auth=RegistryAuth("anna", "wrong"))
    seen = await push(node, ref, auth=_USER)
    assert said(seen, _IDS[1])[-1] == "Pushed"
    address = f"http://{guarded_registry.host}/v1/"
    assert await node.store.login(RegistryAuth("anna", "open sesame", server_address=address)) == ""
    with pytest.raises(RegistryDenied, match=r"login attempt to http://\S+/v2/ failed with status: 401 Unauthorized"):
        await node.store.login(RegistryAuth("anna", "wrong", server_address=guarded_registry.host))
    with pytest.raises(RegistryDenied):
        await node.store.search(f"{guarded_registry.host}/mi", filters=Filters())
    found = await node.store.search(f"{guarded_registry.host}/mi", filters=Filters(), auth=_USER)
    assert [one["name"] for one in found] == [f"{guarded_registry.host}/mine"]


@pytest.mark.registry
@pytest.mark.parametrize(("compression", "kind"), [("gzip", SCHEMA2), ("zstd", OCI), ("none", OCI), ("gzip", OCI)])
async def test_a_pulled_image_keeps_its_manifest_where_its_blobs_are_known(
    node: Node, docker_registry: RealRegistry, compression: str, kind: str
) -> None:
    image = MadeImage(_LAYERS, {"Cmd": ["/a"]}, compression=compression, media_type=kind)
    repository = f"kept/{compression}-{len(kind)}"
    docker_registry.push(repository, "1", image)
    await node.store.pull(f"{docker_registry.host}/{repository}:1")
    await node.store.tag(f"{docker_registry.host}/{repository}:1", f"{docker_registry.host}/copy/{repository}", "2")

    seen = await push(node, f"{docker_registry.host}/copy/{repository}:2")

    assert said(seen, _IDS[1])[-1] == f"Mounted from {repository}"
    assert seen[-1]["aux"] == {"Tag": "2", "Digest": image.digest, "Size": len(image.manifest)}


async def test_an_oci_image_whose_blobs_are_not_kept_stays_one_in_a_registry_that_has_nothing_of_it(
    tmp_path: Path, docker_registry: RealRegistry, registry: PushRegistry
) -> None:
    node = Node(tmp_path / "forgetful", keep_compressed_layers=False)
    await node.start()
    docker_registry.push("moved", "1", MadeImage(_LAYERS, compression="zstd", media_type=OCI))
    await node.store.pull(f"{docker_registry.host}/moved:1")
    await node.store.tag(f"{docker_registry.host}/moved:1", f"{registry.host}/moved", "1")

    await push(node, f"{registry.host}/moved:1")

    raw, media_type = registry.manifests["moved", "1"]
    assert media_type == OCI
    sent = json.loads(raw)["layers"]
    assert [layer["mediaType"] for layer in sent] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 2
    assert [gzip.decompress(registry.blobs[layer["digest"]]) for layer in sent] == _LAYERS
    assert node.leftovers() == [] and not [*(node.data / "images" / "blobs").iterdir()]
    await node.stop()


@pytest.mark.parametrize("resumable", [True, False])
async def test_an_upload_that_breaks_off_goes_on(node: Node, registry: PushRegistry, resumable: bool) -> None:
    ref = f"{registry.host}/team/app:1"
    await load(node, ref)
    registry.break_upload_after, registry.resumable = 1 << 20, resumable

    seen = await push(node, ref)

    assert any(status.startswith("Retrying in ") for status in said(seen, _IDS[1]))
    sent = json.loads(registry.manifests["team/app", "1"][0])["layers"]
    assert [gzip.decompress(registry.blobs[layer["digest"]]) for layer in sent] == _LAYERS
    assert registry.requests["push POST"] == (3 if resumable else 4)  # two layers and the configuration
    assert registry.uploads == {}


async def test_a_busy_registry_is_asked_again(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/x:1")
    registry.busy = 3
    seen = await push(node, f"{registry.host}/x:1")
    assert "aux" in seen[-1] and ("x", "1") in registry.manifests


async def test_a_registry_that_stays_busy_is_given_up(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/x:1")
    registry.busy = 10_000
    with pytest.raises(RegistryUnreachable, match="503"):
        await push(node, f"{registry.host}/x:1")
    assert node.store.get(f"{registry.host}/x:1").repo_digests == ()


async def test_a_refusal_comes_in_the_registrys_words_and_is_final(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/x:1")
    registry.denied = True
    with pytest.raises(RegistryDenied, match=r"^denied: requested access to the resource is denied$"):
        await push(node, f"{registry.host}/x:1")
    assert registry.requests["push POST"] <= 2  # one per layer, none again


async def test_tokens_are_asked_for_pushing_and_for_reading_where_layers_are_mounted_from(
    node: Node, registry: PushRegistry
) -> None:
    await load(node, f"{registry.host}/a:1", f"{registry.host}/b:1")
    registry.user, registry.scheme = "anna:open sesame", "bearer"
    await push(node, f"{registry.host}/a:1", auth=_USER)
    registry.scopes.clear()

    await push(node, f"{registry.host}/b:1", auth=_USER)

    assert registry.requests["mount"] == 2
    assert {"repository:b:pull,push", "repository:a:pull"} <= set(registry.scopes)
    with pytest.raises(RegistryDenied, match="unauthorized: incorrect username or password"):
        await push(node, f"{registry.host}/a:1", auth=RegistryAuth("anna", "wrong"))
    with pytest.raises(RegistryDenied, match="unauthorized: incorrect username or password"):
        await node.store.login(RegistryAuth("anna", "wrong", server_address=registry.host))


async def test_a_registry_that_will_not_mount_gets_the_layer(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/a:1", f"{registry.host}/b:1")
    await push(node, f"{registry.host}/a:1")
    registry.mounts = False
    seen = await push(node, f"{registry.host}/b:1")
    assert {said(seen, ident)[-1] for ident in _IDS} == {"Pushed"}
    assert registry.uploads == {} and registry.of["b"] >= registry.of["a"]


async def test_all_tags_of_a_repository_are_pushed_when_none_is_named(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/many:1", f"{registry.host}/many:2", f"{registry.host}/other:3")
    seen = await push(node, f"{registry.host}/many")
    assert [message["aux"]["Tag"] for message in seen if "aux" in message] == ["1", "2"]
    assert {key for key in registry.manifests if ":" not in key[1]} == {("many", "1"), ("many", "2")}


async def test_a_damaged_layer_never_becomes_a_blob(node: Node, registry: PushRegistry) -> None:
    await load(node, f"{registry.host}/x:1")
    (big,) = (node.data / "images" / "layers").glob("*/diff/big")
    big.write_bytes(os.urandom(3 << 20))
    with pytest.raises(SwarmletError, match="damaged on disk"):
        await push(node, f"{registry.host}/x:1")
    assert ("x", "1") not in registry.manifests and registry.uploads == {}
    assert not any(len(blob) > 1 << 20 for blob in registry.blobs.values())


async def test_a_registry_that_stops_reading_is_tried_anew(
    node: Node, registry: PushRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "STALL_S", 1.0)
    image = await load(node, f"{registry.host}/x:1", image=MadeImage([files({"big": os.urandom(24 << 20)})]))
    registry.stall = 1

    seen = await push(node, f"{registry.host}/x:1")

    assert any(status.startswith("Retrying in ") for status in said(seen, image.diff_ids[0][7:19]))
    assert registry.requests["stalled"] == 1 and ("x", "1") in registry.manifests


async def test_a_push_whose_client_goes_away_leaves_nothing_at_the_registry(
    node: Node, registry: PushRegistry
) -> None:
    await load(node, f"{registry.host}/x:1", image=MadeImage([files({"big": os.urandom(24 << 20)})]))
    registry.stall = 1
    work = asyncio.create_task(push(node, f"{registry.host}/x:1"))
    async with asyncio.timeout(20):
        while not registry.requests["stalled"]:
            await asyncio.sleep(0.02)

    work.cancel()
    await asyncio.wait([work], timeout=20)

    assert work.cancelled() and registry.uploads == {} and registry.requests["cancel"] == 1
    assert ("x", "1") not in registry.manifests


async def test_docker_hub_is_searched_with_the_filters_of_docker(
    node: Node, registry: PushRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_HUB_SEARCH", f"http://{registry.host}/v1/search")
    registry.hub = [
        {"name": "redis", "description": "keeps keys", "star_count": 900, "is_official": True, "is_automated": False},
        {"name": "me/redis", "description": "", "star_count": 3, "is_official": False},
    ]
    assert (await node.store.search("redis", filters=Filters()))[0] == registry.hub[0]
    for filters, names in (
        ({"is-official": ("true",)}, ["redis"]), ({"is-official": ("false",)}, ["me/redis"]),
        ({"stars": ("4",)}, ["redis"]), ({}, ["redis", "me/redis"]),
    ):  # fmt: skip
        found = await node.store.search("library/redis", filters=Filters(filters), limit=7)
        assert [one["name"] for one in found] == names
    assert registry.requests["search redis 7"] == 4 and registry.requests["search redis 25"] == 1


async def test_what_cannot_be_pushed_is_said_in_dockerds_words(node: Node) -> None:
    await load(node, "127.0.0.1:9/x:1")
    for ref, error, words in (
        ("nosuch:1", NotFound, "An image does not exist locally with the tag: nosuch"),
        ("127.0.0.1:9/x:2", NotFound, "tag does not exist: 127.0.0.1:9/x:2"),
        (f"127.0.0.1:9/x@sha256:{'a' * 64}", InvalidArgument, "cannot push a digest reference"),
        ("127.0.0.1:9/x:1", RegistryUnreachable, "dial tcp 127.0.0.1:9: connect: connection refused"),
    ):
        with pytest.raises(error, match=words):
            await push(node, ref)
    with pytest.raises(NotFound, match=r"\(linux/amd64\) does not match the specified platform \(linux/arm64\)"):
        await push(node, "127.0.0.1:9/x:1", platform="linux/arm64")


async def test_the_catalogue_of_any_registry_can_be_searched(node: Node, docker_registry: RealRegistry) -> None:
    for name in ("search/alpha", "search/alphabet", "search/beta"):
        docker_registry.push(name, "1", MadeImage([files({"x": b""})]))
    found = await node.store.search(f"{docker_registry.host}/alpha", filters=Filters())
    assert [one["name"] for one in found] == [
        f"{docker_registry.host}/search/alpha", f"{docker_registry.host}/search/alphabet",
    ]  # fmt: skip
    assert await node.store.search(f"{docker_registry.host}/a", filters=Filters({"is-official": ("true",)})) == []
    assert len(await node.store.search(f"{docker_registry.host}/search/", limit=2, filters=Filters())) == 2
    for options, words in (
        ({"limit": 101}, "limit 101 is outside the range of"),
        ({"filters": Filters({"x": ("y",)})}, "invalid filter 'x'"),
        ({"filters": Filters({"stars": ("many",)})}, "invalid filter 'stars="),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await node.store.search(f"{docker_registry.host}/a", **({"filters": Filters()} | options))
