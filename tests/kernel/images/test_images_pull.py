"""Pulling: from Debian's registry, and from one that lies, breaks off and asks who is there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.images_made import OCI, OCI_INDEX, SCHEMA2_LIST, MadeImage, digest, files, index_of, member, symlink, tar_of
from fakes.images_node import Node
from fakes.images_registry import FakeRegistry, RealRegistry
from fakes.pki_made import make_pki

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument, NotFound, SwarmletError
from swarmlet_agent.images import layers
from swarmlet_agent.images import registry as registry_module
from swarmlet_agent.images.endpoints import Endpoint
from swarmlet_agent.images.registry import RegistryDenied, RegistryUnreachable
from swarmlet_agent.images.types import RegistryAuth

pytestmark = pytest.mark.kernel

_LAYERS = [files({"a": b"one", "b": b"below"}), files({"b": b"above", "big": os.urandom(3 << 20)})]


async def pull(node: Node, ref: str, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []

    async def listen(message: dict[str, Any]) -> None:
        seen.append(message)

    return await node.store.pull(ref, progress=listen, **options), seen


@pytest.mark.registry
@pytest.mark.parametrize(
    ("compression", "media_type"), [("gzip", "schema2"), ("zstd", OCI), ("none", OCI), ("gzip", OCI)]
)
async def test_an_image_of_a_real_registry_arrives_whole(
    node: Node, docker_registry: RealRegistry, compression: str, media_type: str
) -> None:
    kind = {} if media_type == "schema2" else {"media_type": media_type}
    image = MadeImage(_LAYERS, {"Cmd": ["/a"], "Env": None, "Labels": {"x": "y"}}, compression=compression, **kind)
    repository = f"made/{compression}-{len(media_type)}"
    docker_registry.push(repository, "1", image)
    ref = f"{docker_registry.host}/{repository}:1"

    pulled, seen = await pull(node, ref)

    assert pulled.id == image.id and pulled.config.cmd == ("/a",) and pulled.repo_tags == (ref,)
    assert pulled.repo_digests == (f"{docker_registry.host}/{repository}@{image.digest}",)
    statuses = [message["status"] for message in seen]
    assert statuses[0] == f"Pulling from {repository}" and seen[0]["id"] == "1"
    assert {"Pulling fs layer", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"} <= set(
        statuses
    )
    assert statuses[-2:] == [f"Digest: {image.digest}", f"Status: Downloaded newer image for {ref}"]
    assert node.events == [("pull", ref)]
    again, seen = await pull(node, ref)
    assert again == pulled
    assert [message["status"] for message in seen][-1] == f"Status: Image is up to date for {ref}"


@pytest.mark.registry
async def test_a_list_gives_the_image_of_this_machine_and_tells_all_its_platforms(
    node: Node, docker_registry: RealRegistry
) -> None:
    ours = MadeImage(_LAYERS[:1], media_type=OCI)
    other = MadeImage([files({"other": b""})], media_type=OCI, architecture="arm64")
    for image in (ours, other):
        docker_registry.push("made/list", image.digest, image)
    docker_registry.put_manifest("made/list", "all", index_of(other, ours), OCI_INDEX)
    ref = f"{docker_registry.host}/made/list:all"

    assert (await node.store.pull(ref)).id == ours.id
    assert (await node.store.pull(ref, platform="linux/arm64")).id == other.id
    shown = await node.store.distribution(ref)
    assert shown["Descriptor"]["digest"] == digest(index_of(other, ours))
    assert [platform["architecture"] for platform in shown["Platforms"]] == ["arm64", "amd64"]
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list entries"):
        await node.store.pull(ref, platform="linux/s390x")


@pytest.mark.registry
async def test_what_a_real_registry_does_not_have_is_told_in_dockers_words(
    node: Node, docker_registry: RealRegistry
) -> None:
    ref = f"{docker_registry.host}/no/such:1"
    with pytest.raises(NotFound, match=f"manifest for {ref} not found: manifest unknown: manifest unknown"):
        await node.store.pull(ref)


async def test_an_unreachable_registry_is_an_error_with_its_address(node: Node) -> None:
    with pytest.raises(
        RegistryUnreachable, match=r'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused'
    ):
        await node.store.pull("127.0.0.1:9/x:1")


async def test_a_broken_connection_is_resumed_where_it_broke(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    big = digest(image.blobs[1])
    registry.break_after[big] = 1 << 20

    pulled, seen = await pull(node, f"{registry.host}/x:1")

    assert pulled.id == image.id
    assert registry.ranges == [f"bytes={1 << 20}-"]
    assert any(message["status"].startswith("Retrying in") for message in seen)


async def test_a_wrong_digest_never_becomes_an_image(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    cases: list[tuple[str, bytes, str]] = [
        (digest(image.blobs[0]), bytes(len(image.blobs[0])), "filesystem layer verification failed for digest"),
        (digest(image.blobs[0]), image.blobs[0] + b"more", "is larger than"),
        (image.id, image.raw_config[:-1] + b" ", "image config verification failed for digest"),
    ]
    for blob, lie, words in cases:
        registry.lies = {blob: lie}
        with pytest.raises(InvalidArgument, match=words):
            await node.store.pull(f"{registry.host}/x:1")
        assert node.store.all() == [] and node.layer_folders() == set() and node.leftovers() == []

    registry.lies = {}
    registry.manifests["x", image.digest] = (image.manifest + b" ", image.media_type)
    with pytest.raises(InvalidArgument, match="manifest verification failed for digest"):
        await node.store.pull(f"{registry.host}/x@{image.digest}")


async def test_a_layer_that_is_not_what_the_configuration_says_is_refused(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS)
    image.config = {}
    honest = MadeImage([_LAYERS[0], files({"evil": b"x"})])
    mixed = honest.manifest.replace(honest.id.encode(), image.id.encode()).replace(
        str(len(honest.raw_config)).encode(), str(len(image.raw_config)).encode()
    )
    registry.push("x", "1", honest)
    registry.push("x", "2", image)
    registry.put_manifest("x", "mixed", mixed, image.media_type)

    with pytest.raises(InvalidArgument, match="failed verification"):
        await node.store.pull(f"{registry.host}/x:mixed")

    assert node.store.all() == [] and node.layer_folders() == set()


async def test_an_escaping_layer_is_refused_and_nothing_is_left(node: Node, registry: FakeRegistry) -> None:
    evil = MadeImage([_LAYERS[0], tar_of([symlink("out", "../tmp"), member("out/swarmlet-images-escape", b"x")])])
    registry.push("x", "1", evil)

    with pytest.raises(InvalidArgument, match=r"escapes its root through the symbolic link 'out' -> '\.\./tmp'"):
        await node.store.pull(f"{registry.host}/x:1")

    assert not Path("/tmp/swarmlet-images-escape").exists()
    assert node.store.all() == [] and node.layer_folders() == set() and node.leftovers() == []


async def test_many_callers_share_one_pull_and_each_hears_all_of_it(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    registry.gate = asyncio.Event()
    callers = [asyncio.create_task(pull(node, f"{registry.host}/x:1")) for _ in range(10)]
    await asyncio.sleep(0.1)
    callers[0].cancel()
    callers.append(asyncio.create_task(pull(node, f"{registry.host}/x:1")))
    await asyncio.sleep(0.05)
    registry.gate.set()

    results = await asyncio.gather(*callers[1:])

    assert {image.id for image, _ in results} == {image.id}
    assert all(seen[0]["status"].startswith("Pulling from") and "newer" in seen[-1]["status"] for _, seen in results)
    assert all(count == 1 for name, count in registry.requests.items() if name.startswith("blob"))
    with pytest.raises(asyncio.CancelledError):
        await callers[0]


async def test_a_pull_nobody_waits_for_any_more_is_stopped_and_leaves_nothing(
    node: Node, registry: FakeRegistry
) -> None:
    registry.push("x", "1", MadeImage(_LAYERS))
    registry.gate = asyncio.Event()
    caller = asyncio.create_task(pull(node, f"{registry.host}/x:1"))
    while not any(name.startswith("blob") for name in registry.requests):
        await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert node.leftovers() == [] and node.layer_folders() == set()
    registry.gate.set()


async def test_images_share_layers_and_a_moved_tag_leaves_the_old_image_without_it(
    node: Node, registry: FakeRegistry
) -> None:
    old, new = MadeImage(_LAYERS[:1]), MadeImage(_LAYERS)
    ref = f"{registry.host}/x:1"
    registry.push("x", "1", old)
    await node.store.pull(ref)
    registry.push("x", "1", new)

    pulled, seen = await pull(node, ref)

    assert pulled.id == new.id and node.store.get(old.id).repo_tags == ()
    assert "Already exists" in {message["status"] for message in seen}
    assert registry.requests[f"blob {digest(old.blobs[0])}"] == 1
    assert len(node.layer_folders()) == 2


async def test_a_digest_that_is_here_needs_no_registry(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    ref = f"{registry.host}/x@{image.digest}"
    await node.store.pull(ref)
    before = registry.requests.total()

    assert (await node.store.pull(ref)).id == image.id
    assert registry.requests.total() == before


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_credentials_open_a_registry_that_asks_for_them(node: Node, registry: FakeRegistry, scheme: str) -> None:
    image = MadeImage(_LAYERS[:1])
    registry.push("x", "1", image)
    registry.user, registry.scheme = "me:Geheim7", scheme
    ref = f"{registry.host}/x:1"

    assert (await node.store.pull(ref, auth=RegistryAuth("me", "Geheim7"))).id == image.id
    for auth in (None, RegistryAuth("me", "Falsch7")):
        with pytest.raises(RegistryDenied) as refused:
            await node.store.pull(f"{registry.host}/y:1", auth=auth)
        assert "Geheim7" not in str(refused.value) and "Falsch7" not in str(refused.value)


async def test_a_denied_repository_is_told_as_docker_tells_it(node: Node, registry: FakeRegistry) -> None:
    registry.denied = True
    with pytest.raises(NotFound) as refused:
        await node.store.pull(f"{registry.host}/x:1")
    assert str(refused.value) == (
        f"pull access denied for {registry.host}/x, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )


async def test_docker_hub_is_asked_through_its_mirrors_first(tmp_path: Path, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS[:1])
    registry.push("library/made", "latest", image)
    made = Node(tmp_path / "mirrored", registry_mirrors=["http://127.0.0.1:9", f"http://{registry.host}"])
    await made.start()
    try:
        pulled, seen = await pull(made, "made")
    finally:
        await made.stop()

    assert pulled.repo_tags == ("made:latest",)
    assert seen[0] == {"status": "Pulling from library/made", "id": "latest"}


async def test_all_tags_of_docker_hub_come_from_a_mirror_where_the_hub_cannot_be_reached(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("library/made", "1", MadeImage(_LAYERS[:1]))
    registry.push("library/made", "2", MadeImage(_LAYERS))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody is there, so that nothing leaves this machine
    made = Node(tmp_path / "mirrored", registry_mirrors=["http://127.0.0.1:9", f"http://{registry.host}"])
    await made.start()
    try:
        pulled = await made.store.pull_all_tags("made")
    finally:
        await made.stop()

    assert [image.repo_tags for image in pulled] == [("made:1",), ("made:2",)]


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"schemaVersion": 1}', b'{"schemaVersion": 2, "config": {"digest": "../../x"}}']
)
async def test_a_manifest_that_is_none_is_refused(node: Node, registry: FakeRegistry, raw: bytes) -> None:
    registry.put_manifest("x", "1", raw, "application/vnd.docker.distribution.manifest.v2+json")
    with pytest.raises(SwarmletError):
        await node.store.pull(f"{registry.host}/x:1")


async def test_all_tags_come_one_after_another(node: Node, registry: FakeRegistry) -> None:
    one, two = MadeImage(_LAYERS[:1]), MadeImage(_LAYERS)
    registry.push("x", "1", one)
    registry.push("x", "2", two)
    registry.put_manifest("x", "list", index_of(one, media_type=SCHEMA2_LIST), SCHEMA2_LIST)

    images = await node.store.pull_all_tags(f"{registry.host}/x")

    assert [image.id for image in images] == [one.id, two.id, one.id]


async def test_a_pull_whose_agent_is_killed_leaves_no_image_and_goes_on_where_it_was(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.push("x", "1", MadeImage(_LAYERS))
    more = [files({"done": b"x" * 1000}), files({"half": os.urandom(4 << 20)}), files({"no": b"x"})]
    slow = MadeImage([*_LAYERS, *more])
    done, half, waiting = (digest(blob) for blob in slow.blobs[2:])
    registry.push("x", "2", slow)
    registry.gate, registry.gated, registry.stall_after = asyncio.Event(), {half, waiting}, {half: 2 << 20}
    data = tmp_path / "killed"
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PULL_TWICE, str(data), registry.host, stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert await agent.stdout.readline() == b"first\n"
    partial = data / "images" / "partial"
    while not (registry.requests[f"blob {waiting}"] and _size(partial / half[7:]) and _unpacked(data) == 3):
        await asyncio.sleep(0.01)
    (data / "images/layers" / ("e" * 64) / "diff").mkdir(parents=True)
    agent.send_signal(signal.SIGKILL)
    await agent.wait()
    registry.gate.set()
    have = _size(partial / half[7:])

    node = Node(data)
    await node.start()
    try:
        assert len(node.store.all()) == 1 and len(node.layer_folders()) == 2
        assert {file.name for file in node.leftovers()} == {one[7:] for one in (done, half, waiting)}
        assert (await node.store.pull(f"{registry.host}/x:2")).id == slow.id
        assert registry.requests[f"blob {done}"] == 1 and registry.ranges == [f"bytes={have}-"]
        assert node.leftovers() == []
    finally:
        await node.stop()


_PULL_TWICE = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from swarmlet_agent.images.store import ImageStore
    from swarmlet_agent.journal import Journal
    async def main():
        store = ImageStore(Path(sys.argv[1]), Journal(Path(sys.argv[1]) / "journal.db"))
        await store.start()
        await store.pull(sys.argv[2] + "/x:1")
        print("first", flush=True)
        await store.pull(sys.argv[2] + "/x:2")
    asyncio.run(main())
""")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _unpacked(data: Path) -> int:
    return len(list((data / "images" / "layers").iterdir()))


async def test_what_is_left_of_a_pull_is_not_believed_and_not_kept_for_ever(
    node: Node, registry: FakeRegistry
) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    partial = node.data / "images" / "partial"
    wrong, long = (partial / digest(blob)[7:] for blob in image.blobs)
    wrong.write_bytes(bytes(len(image.blobs[0])))
    long.write_bytes(image.blobs[1] + b"more")
    assert (await node.store.pull(f"{registry.host}/x:1")).id == image.id

    old, fresh = partial / ("a" * 64), partial / ("b" * 64)
    for file in (old, fresh):
        file.write_bytes(b"x" * 100)
    os.utime(old, (0, 0))
    await node.restart()
    assert node.leftovers() == [fresh]
    assert await node.store.prune(Filters({})) == ([], 100) and node.leftovers() == []


async def test_a_registry_that_says_when_to_ask_again_is_asked_then(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS[:1])
    registry.push("x", "1", image)
    registry.busy, registry.retry_after = {image.id: 1, digest(image.blobs[0]): 1}, "1"
    began = asyncio.get_running_loop().time()
    _, seen = await pull(node, f"{registry.host}/x:1")
    assert asyncio.get_running_loop().time() - began >= 2
    assert "Retrying in 1 second" in [message["status"] for message in seen]


async def test_blobs_may_lie_on_another_host_which_is_not_told_who_asks(node: Node, registry: FakeRegistry) -> None:
    image = MadeImage(_LAYERS[:1])
    async with FakeRegistry().running() as store:
        store.blobs.update(image.contents())
        registry.push("x", "1", image)
        registry.user, registry.elsewhere = "me:secret", store.host.replace("127.0.0.1", "localhost")
        await node.store.pull(f"{registry.host}/x:1", auth=RegistryAuth("me", "secret"))
        assert len(store.authorizations) == 2 and not any(store.authorizations)
    assert all(registry.authorizations)


async def test_a_layer_that_is_moved_into_place_while_its_pull_fails_goes_with_the_others(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = MadeImage(_LAYERS)
    registry.push("x", "1", image)
    settle, moved, go_on = layers._settle, threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        settle(*args)
        moved.set()
        go_on.wait(10)

    monkeypatch.setattr(layers, "_settle", slow)
    pulling = asyncio.create_task(node.store.pull(f"{registry.host}/x:1"))
    await asyncio.to_thread(moved.wait)
    closing = asyncio.create_task(node.store.close())
    for _ in range(100):  # the cancellation gets as far as it can
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([pulling, closing])

    assert node.layer_folders() == set()


async def test_a_mirror_that_has_only_some_of_an_image_is_passed_over(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = MadeImage(_LAYERS)
    registry.push("library/made", "latest", image)
    async with FakeRegistry().running() as mirror:
        mirror.push("library/made", "latest", image)
        del mirror.blobs[digest(image.blobs[1])]

        async def both(*_: object) -> list[Endpoint]:
            return [Endpoint(mirror.host, scheme="http", is_mirror=True), Endpoint(registry.host, insecure=True)]

        monkeypatch.setattr(registry_module, "endpoints_of", both)
        pulled, seen = await pull(node, "made")
    assert pulled.id == image.id and seen[-1]["status"] == "Status: Downloaded newer image for made:latest"
    assert registry.requests[f"blob {digest(image.blobs[1])}"] == 1


async def test_a_registry_is_reached_through_the_proxy_of_the_environment(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is played by the registry itself: it answers for whatever host it is asked for."""
    image = MadeImage(_LAYERS[:1])
    registry.push("x", "1", image)
    node = Node(tmp_path / "proxied", insecure_registries=["far.invalid:80"])
    await node.start()
    try:
        monkeypatch.setenv("HTTP_PROXY", registry.host)
        assert (await node.store.pull("far.invalid:80/x:1")).id == image.id
        monkeypatch.setenv("NO_PROXY", "other.invalid, .far.invalid:80, far.invalid:80")
        with pytest.raises(RegistryUnreachable, match=r"lookup far\.invalid"):
            await node.store.pull("far.invalid:80/x:2")
    finally:
        await node.stop()


async def test_a_registry_is_held_to_the_certificates_in_its_folder(tmp_path: Path) -> None:
    pki, certificates = tmp_path / "pki", tmp_path / "certs.d"
    pki.mkdir()
    make_pki(pki)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem"))
    tls.load_cert_chain(pki / "server.pem", pki / "server.key")
    tls.verify_mode = ssl.CERT_REQUIRED
    node = Node(tmp_path / "node", insecure_registries=(), registry_certificates=certificates)
    await node.start()
    try:
        async with FakeRegistry().running(tls) as registry:
            image = MadeImage(_LAYERS[:1])
            registry.push("x", "1", image)
            own = certificates / registry.host
            own.mkdir(parents=True)

            async def refused() -> str:
                with pytest.raises(SwarmletError) as caught:
                    await node.store.pull(f"{registry.host}/x:1")
                return str(caught.value)

            assert "x509" in await refused()
            shutil.copy(pki / "ca.pem", own / "ca.crt")
            assert await refused()  # it wants to know who asks, and says so by hanging up
            shutil.copy(pki / "client.pem", own / "client.cert")
            assert "missing key client.key for client certificate client.cert" in await refused()
            shutil.copy(pki / "client.key", own / "client.key")
            assert (await node.store.pull(f"{registry.host}/x:1")).id == image.id
            (own / "ca.crt").write_text("no certificate")
            assert f"the registry's certificate {own / 'ca.crt'} cannot be used" in await refused()
    finally:
        await node.stop()
