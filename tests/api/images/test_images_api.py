"""The image routes over HTTP, driven by the stock docker CLI, docker-py and plain requests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest
from aiohttp import web
from fakes.images_made import MadeImage, digest, files
from fakes.images_node import Node
from fakes.images_push import PushRegistry
from fakes.images_registry import FakeRegistry

from swarmlet.demo_image import busybox_archive, demo_archive
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.server import Server
from swarmlet_agent.api.routes.distribution import DistributionRoutes
from swarmlet_agent.api.routes.images import ImageRoutes, pull_reference

pytestmark = pytest.mark.kernel

_IMAGE = MadeImage(
    [files({"a": b"one"}), files({"b": b"two" * 100_000})], {"Cmd": ["/a"], "Env": ["A=1"], "Labels": {"x": "y"}}
)


async def _ping(_call: Call) -> web.StreamResponse:
    return web.Response(text="OK")


async def _version(_call: Call) -> web.StreamResponse:
    return web.json_response({"ApiVersion": "1.50", "MinAPIVersion": "1.24", "Version": "1", "Os": "linux"})


class Client:
    """Requests to the node's socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._http = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)))

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self._http.request(method, f"http://node{path}", **options) as answer:
            raw = await answer.read()
            if not answer.headers.get("Content-Type", "").startswith("application/json"):
                return answer.status, raw
            lines = [json.loads(line) for line in raw.splitlines() if line.strip()]
            return answer.status, lines[0] if len(lines) == 1 and not path.startswith("/images/create") else lines

    async def cli(self, *words: str, stdin: bytes | None = None, config: Path | None = None) -> tuple[int, str]:
        """The docker command; exit code, and both its outputs together."""
        process = await asyncio.create_subprocess_exec(
            "docker",
            *([] if config is None else ["--config", str(config)]),
            "-H",
            f"unix://{self.socket}",
            *words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(stdin), 60)
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def close(self) -> None:
        await self._http.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path / "node")
    await made.start()
    yield made
    assert made.leftovers() == []
    await made.stop()


@pytest.fixture
async def client(node: Node, tmp_path: Path) -> AsyncIterator[Client]:
    routes = [
        Route("GET", "/_ping", _ping),
        Route("GET", "/version", _version),
        *ImageRoutes(node.store).routes(),
        *DistributionRoutes(node.store).routes(),
    ]
    server = Server(routes)
    await server.listen_unix(tmp_path / "s")
    made = Client(tmp_path / "s")
    yield made
    await made.close()
    await server.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


def _tags(archive: Path) -> list[str]:
    """The names that a saved archive has."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        return sorted(name for entry in json.loads(member.read()) for name in entry["RepoTags"])


async def test_the_docker_cli_pulls_lists_inspects_tags_saves_loads_and_removes(
    client: Client, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.push("team/app", "1", _IMAGE)
    ref = f"{registry.host}/team/app:1"

    code, out = await client.cli("pull", ref)
    assert code == 0 and "Pull complete" in out and f"Status: Downloaded newer image for {ref}" in out
    code, out = await client.cli("pull", "-q", ref)
    assert (code, out) == (0, f"{ref}\n")
    code, out = await client.cli("images", "--format", "{{.Repository}} {{.Tag}} {{.ID}} {{.Size}}")
    assert out == f"{registry.host}/team/app 1 {_IMAGE.id[7:19]} 300kB\n"
    assert (await client.cli("tag", ref, "app:2"))[0] == 0
    code, out = await client.cli("image", "inspect", "app:2", "--format", "{{json .RepoTags}} {{.Config.Cmd}}")
    assert out == f'["{ref}","app:2"] [/a]\n'
    code, out = await client.cli("history", "--no-trunc", "--format", "{{.ID}} {{.CreatedBy}} {{.Size}}", "app:2")
    assert out == f"{_IMAGE.id} step 1 300kB\n<missing> step 0 3B\n"
    archive = tmp_path / "saved.tar"
    assert (await client.cli("tag", ref, "app:3"))[0] == 0
    assert (await client.cli("save", "-o", str(archive), "app"))[0] == 0  # all tags of the repository
    assert _tags(archive) == ["app:2", "app:3"]
    assert (await client.cli("rmi", "app:3"))[0] == 0
    assert (await client.cli("save", "-o", str(archive), "app:2"))[0] == 0
    assert _tags(archive) == ["app:2"]
    code, out = await client.cli("rmi", "app:2", ref)
    assert code == 0 and f"Untagged: {registry.host}/team/app@{_IMAGE.digest}" in out and f"Deleted: {_IMAGE.id}" in out
    assert await client.cli("load", "-i", str(archive)) == (0, "Loaded image: app:2\n")
    code, out = await client.cli("image", "prune", "-af")
    assert code == 0 and f"deleted: {_IMAGE.id}" in out and "Total reclaimed space: 300kB" in out
    assert await client.cli("images", "-q") == (0, "")


async def test_the_docker_cli_shows_what_went_wrong(client: Client, registry: FakeRegistry) -> None:
    for words, expected in (
        (
            ("pull", "127.0.0.1:9/x"),
            'Error response from daemon: Get "http://127.0.0.1:9/v2/": '
            "dial tcp 127.0.0.1:9: connect: connection refused",
        ),
        (
            ("pull", f"{registry.host}/x"),
            f"manifest for {registry.host}/x:latest not found: manifest unknown: manifest unknown",
        ),
        (("rmi", "nosuch"), "No such image: nosuch:latest"),
        (("tag", "nosuch", "x"), "No such image: nosuch:latest"),
        (("save", "nosuch"), "No such image: nosuch"),
        (("history", "nosuch"), "No such image: nosuch:latest"),
    ):
        code, out = await client.cli(*words)
        assert code == 1 and expected in out, out
    code, out = await client.cli("load", stdin=b"rubbish" * 1000)
    assert code == 1 and "invalid archive" in out


@pytest.fixture
async def pushed() -> AsyncIterator[PushRegistry]:
    """A registry to push to that asks who is there."""
    registry = PushRegistry()
    registry.user, registry.scheme = "anna:open sesame", "bearer"
    async with registry.running():
        yield registry


async def test_the_docker_cli_logs_in_pushes_and_logs_out(
    client: Client, pushed: PushRegistry, tmp_path: Path
) -> None:
    ref = f"{pushed.host}/team/made"
    await client.call("POST", "/images/load", data=_IMAGE.docker_archive(f"{ref}:1", f"{ref}:2"))
    login = ("login", "-u", "anna", "--password-stdin", pushed.host)

    code, out = await client.cli(*login, stdin=b"wrong", config=tmp_path)
    assert code == 1 and "unauthorized: incorrect username or password" in out, out
    assert "wrong" not in out
    code, out = await client.cli("push", f"{ref}:1", config=tmp_path)
    assert code == 1 and "unauthorized: incorrect username or password" in out, out
    code, out = await client.cli(*login, stdin=b"open sesame", config=tmp_path)
    assert code == 0 and "Login Succeeded" in out, out
    code, out = await client.cli("push", f"{ref}:1", config=tmp_path)
    assert code == 0 and f"The push refers to repository [{ref}]" in out and ": Pushed" in out, out
    assert f"1: digest: {digest(pushed.manifests['team/made', '1'][0])} size: " in out
    code, out = await client.cli("push", "-a", ref, config=tmp_path)
    assert code == 0 and "2: digest: sha256:" in out and "Layer already exists" in out, out
    code, out = await client.cli("push", "-q", f"{ref}:2", config=tmp_path)
    assert (code, out) == (0, f"{ref}:2\n")
    code, out = await client.cli("push", f"{ref}:3", config=tmp_path)
    assert code == 1 and f"tag does not exist: {ref}:3" in out


async def test_docker_py_pushes_with_credentials_of_its_own(client: Client, pushed: PushRegistry) -> None:
    ref = f"{pushed.host}/made"
    await client.call("POST", "/images/load", data=_IMAGE.docker_archive(f"{ref}:1"))

    def work() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        api = docker.APIClient(base_url=f"unix://{client.socket}", version="1.44")
        try:
            who = {"username": "anna", "password": "open sesame"}
            return (
                list(api.push(ref, "1", stream=True, decode=True, auth_config=who)),
                list(api.push(ref, "1", stream=True, decode=True, auth_config=who | {"password": "no"})),
            )
        finally:
            api.close()

    good, bad = await asyncio.to_thread(work)

    assert good[-1]["aux"]["Tag"] == "1" and ("made", "1") in pushed.manifests
    assert "unauthorized: incorrect username or password" in bad[-1]["error"]


async def test_the_tree_of_images_shows_the_one_manifest_each_has(client: Client, registry: FakeRegistry) -> None:
    registry.push("team/app", "1", _IMAGE)
    ref = f"{registry.host}/team/app:1"
    assert (await client.cli("pull", "-q", ref))[0] == 0

    code, out = await client.cli("image", "ls", "--tree")
    assert code == 0 and ref in out and "linux/amd64" in out, out
    _, listed = await client.call("GET", "/v1.50/images/json?manifests=1")
    (manifest,) = listed["Manifests"] if isinstance(listed, dict) else listed[0]["Manifests"]
    assert manifest["ID"] == manifest["Descriptor"]["digest"] == _IMAGE.digest and manifest["Available"]
    _, shown = await client.call("GET", f"/v1.50/images/{ref}/json?manifests=1")
    assert shown["Manifests"] == [manifest]
    plain = (await client.call("GET", f"/v1.50/images/{ref}/json"))[1]
    assert "Manifests" not in plain and "Hostname" not in plain["Config"]
    assert {"Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "User", "Volumes", "WorkingDir"} <= plain["Config"].keys()


async def test_pulling_several_platforms_is_refused_clearly(client: Client) -> None:
    for query, words in (
        ("platform=linux/amd64,linux/arm64", "platform specifier component must match"),
        ("platform=linux/amd64&platform=linux/arm64", "multiple platform parameters not supported"),
    ):
        status, answer = await client.call("POST", f"/images/create?fromImage=x&tag=1&{query}")
        assert status == 400
        (told,) = answer if isinstance(answer, list) else [answer]
        assert words in told["message"]


async def test_a_platform_that_the_image_is_not_for_is_told_in_dockers_words_by_every_command(
    client: Client, registry: FakeRegistry
) -> None:
    """As the engine without the containerd store has it: an image is of one platform."""
    registry.push("team/app", "1", _IMAGE)
    ref = f"{registry.host}/team/app:1"
    assert (await client.cli("pull", "-q", "--platform", "linux/amd64", ref))[0] == 0
    words = f"image with reference {ref} was found but its platform (linux/amd64) does not match the specified platform"
    for command in ("inspect", "history", "save", "push", "rm"):
        code, out = await client.cli("image", command, "--platform", "linux/arm64", ref)
        assert code == 1 and f"{words} (linux/arm64)" in out, (command, out)
    for command in ("inspect", "history", "save"):
        code, out = await client.cli("image", command, "--platform", "linux/amd64", ref)
        assert code == 0, (command, out)
    code, out = await client.cli("image", "rm", "--platform", "linux/amd64,linux/arm64", ref)
    assert code == 1 and "multiple platforms are not supported" in out, out
    code, out = await client.cli("image", "rm", "--platform", "linux/amd64", ref)
    assert code == 0 and f"Untagged: {ref}" in out, out


async def test_an_image_alone_is_pulled_for_whatever_platform_with_a_warning(
    client: Client, registry: FakeRegistry
) -> None:
    registry.push("team/app", "1", _IMAGE)
    ref = f"{registry.host}/team/app:1"
    code, out = await client.cli("pull", "--platform", "linux/s390x", ref)
    differs = "its platform (linux/amd64) does not match the specified platform (linux/s390x)"
    assert code == 0 and f"WARNING: image with reference {ref} was found but {differs}" in out, out


async def test_a_search_without_a_word_is_refused(client: Client) -> None:
    status, answer = await client.call("GET", "/images/search?term=")
    assert status == 400 and "term" in answer["message"]


async def test_docker_py_imports_and_loads(client: Client) -> None:
    def work() -> tuple[Any, Any]:
        api = docker.DockerClient(base_url=f"unix://{client.socket}", version="1.44")
        try:
            loaded = api.images.load(_IMAGE.docker_archive("made:1"))
            api.api.import_image_from_data(files({"x": b"y"}), repository="imported", tag="1")
            return loaded[0].attrs, api.images.get("imported:1").attrs
        finally:
            api.close()

    loaded, imported = await asyncio.to_thread(work)

    assert loaded["Id"] == _IMAGE.id and loaded["RootFS"]["Layers"] == _IMAGE.diff_ids
    assert loaded["Config"]["Hostname"] == "" and loaded["Config"]["Entrypoint"] is None
    assert imported["RootFS"]["Layers"] == [digest(files({"x": b"y"}))]


async def test_what_is_wrong_with_an_archive_is_told_in_the_stream_as_clients_expect_it(client: Client) -> None:
    """docker-py raises its ImageLoadError for a line of the answer alone."""
    status, told = await client.call("POST", "/images/load", data=b"rubbish" * 1000)
    assert status == 200 and "invalid archive" in told["error"] and told["errorDetail"]["message"] == told["error"]

    def work() -> None:
        with closing(docker.DockerClient(base_url=f"unix://{client.socket}")) as engine:
            engine.images.load(b"abc")

    with pytest.raises(docker.errors.ImageLoadError, match="invalid archive"):
        await asyncio.to_thread(work)


async def test_images_made_from_busybox_are_the_same_each_time_and_load(client: Client) -> None:
    for build, name in ((busybox_archive, "busybox:latest"), (demo_archive, "swarmlet-demo:latest")):
        archive = await asyncio.to_thread(build, Path("/usr/bin/busybox"), name)
        assert archive == await asyncio.to_thread(build, Path("/usr/bin/busybox"), name)
        assert await client.call("POST", "/images/load?quiet=1", data=io.BytesIO(archive)) == (
            200,
            {"stream": f"Loaded image: {name}\n"},
        )
    assert (await client.call("GET", "/images/swarmlet-demo/json"))[1]["Config"]["ExposedPorts"] == {"80/tcp": {}}


async def test_what_a_registry_has_is_told_without_pulling(client: Client, registry: FakeRegistry) -> None:
    registry.push("x", "1", _IMAGE)
    status, shown = await client.call("GET", f"/v1.50/distribution/{registry.host}/x:1/json")
    assert status == 200 and shown == {
        "Descriptor": {"mediaType": _IMAGE.media_type, "digest": _IMAGE.digest, "size": len(_IMAGE.manifest)},
        "Platforms": [{"architecture": "amd64", "os": "linux"}],
    }
    assert (await client.call("GET", f"/distribution/{registry.host}/x:2/json"))[0] == 404
    registry.user = "me:pw"
    assert (await client.call("GET", f"/distribution/{registry.host}/x:1/json"))[0] == 401
    auth = base64.urlsafe_b64encode(b'{"username": "me", "password": "pw"}').decode()
    headers = {"X-Registry-Auth": auth}
    assert (await client.call("GET", f"/distribution/{registry.host}/x:1/json", headers=headers))[0] == 200
    status, lines = await client.call("POST", f"/images/create?fromImage={registry.host}/x&tag=1", headers=headers)
    assert status == 200 and lines[-1]["status"].startswith("Status: Downloaded newer image")


async def test_errors_after_the_first_line_come_in_the_stream(client: Client, registry: FakeRegistry) -> None:
    registry.push("x", "1", _IMAGE)
    registry.lies = {digest(_IMAGE.blobs[0]): bytes(len(_IMAGE.blobs[0]))}

    status, lines = await client.call("POST", f"/images/create?fromImage={registry.host}/x&tag=1")

    words = f"filesystem layer verification failed for digest {digest(_IMAGE.blobs[0])}"
    assert status == 200 and lines[-1] == {"errorDetail": {"message": words}, "error": words}


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/images/create", 400, "either fromImage or fromSrc is required"),
        ("POST", "/images/create?fromImage=Bad", 400, "must be lowercase"),
        ("POST", "/images/create?fromImage=x&tag=%20", 400, "invalid tag format"),
        (
            "POST",
            "/images/create?fromImage=x&platform=nintendo64",  # told before a registry is asked, for all tags too
            400,
            "unknown operating system or architecture",
        ),
        ("POST", "/images/create?fromSrc=ftp://x", 400, "invalid URL"),
        ("POST", "/images/create?fromSrc=-&platform=windows/amd64", 400, "operating system is not supported"),
        ("GET", "/images/json?filters=%7B", 400, "invalid filter"),
        ("GET", '/images/json?filters={"nosuch":["x"]}', 400, "invalid filter 'nosuch'"),
        ("GET", "/images/nosuch/json", 404, "No such image: nosuch:latest"),
        ("GET", "/images/a/b/c/json", 404, "No such image: a/b/c:latest"),
        ("GET", "/images/get", 400, "no image names given"),
        ("POST", "/images/nosuch/tag?repo=x", 404, "No such image"),
        ("POST", "/images/nosuch/tag?repo=", 400, "invalid reference format"),
        ("DELETE", "/images/nosuch:1", 404, "No such image: nosuch:1"),
        ("POST", '/images/prune?filters={"x":["1"]}', 400, "invalid filter 'x'"),
    ],
)
async def test_bad_requests_name_what_is_wrong(client: Client, method: str, path: str, status: int, words: str) -> None:
    answer = await client.call(method, path)

    assert answer[0] == status
    body = answer[1][0] if isinstance(answer[1], list) else answer[1]
    assert words in body["message"]


async def test_a_header_that_is_no_credentials_is_nobodys_and_never_repeated(
    client: Client, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.push("x", "1", _IMAGE)
    for placeholder in ("placeholder", base64.b64encode(b"geheim").decode()):
        headers = {"X-Registry-Auth": placeholder}
        where = f"fromImage={registry.host}/x&tag=1"
        status, lines = await client.call("POST", f"/images/create?{where}", headers=headers)
        assert status == 200 and "error" not in lines[-1]
        assert (await client.call("GET", f"/distribution/{registry.host}/x:1/json", headers=headers))[0] == 200
    assert "goes without credentials" in caplog.text
    assert "geheim" not in caplog.text and "placeholder" not in caplog.text


async def test_older_clients_get_the_fields_of_their_time(client: Client) -> None:
    await client.call("POST", "/images/load", data=_IMAGE.docker_archive())
    _, new = await client.call("GET", "/v1.50/images/json?shared-size=1")
    _, old = await client.call("GET", "/v1.40/images/json")
    assert new[0]["RepoTags"] == [] and "VirtualSize" not in new[0] and new[0]["SharedSize"] == 0
    assert old[0]["RepoTags"] == ["<none>:<none>"] and old[0]["VirtualSize"] == old[0]["Size"]
    _, new = await client.call("GET", f"/v1.45/images/{new[0]['Id']}/json")
    _, old = await client.call("GET", f"/v1.44/images/{old[0]['Id']}/json")
    assert "ContainerConfig" not in new and (old["ContainerConfig"]["Volumes"], old["Container"]) == (None, "")


def test_a_tag_parameter_wins_over_the_name() -> None:
    assert pull_reference("x:1", "2") == ("docker.io/library/x:2", False)
    assert pull_reference("x", "") == ("docker.io/library/x", True)
    assert pull_reference("x:1", "sha256:" + "a" * 64) == ("docker.io/library/x@sha256:" + "a" * 64, False)
