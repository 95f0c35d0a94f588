"""docker-py's APIClient, call by call: images and builds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import pytest
from docker.utils.proxy import ProxyConfig
from e2e_cluster import Cluster
from registry_fill import busybox_image, push, tar_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:Unclosed response:ResourceWarning"
)
HERE = Path(__file__).parent


@pytest.fixture
def images(node_api: docker.APIClient) -> Iterator[list[str]]:
    """Names to remove afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        node_api.remove_image(name, force=True)
    node_api.prune_builds(all=True)


def said(api: docker.APIClient, image: str, command: Any) -> str:
    """What a container of the image writes, which is removed."""
    ident = api.create_container(image, command)["Id"]
    api.start(ident)
    api.wait(ident)
    text = api.logs(ident).decode()
    api.remove_container(ident, v=True)
    return str(text)


def test_images_are_pulled_listed_tagged_pushed_and_removed(api: docker.APIClient, registry: str) -> None:
    packed = push(registry, "low/image", "1", busybox_image().on({"made": b"by hand"}, Labels={"low": "level"}))
    name = f"{registry}/low/image"
    lines = list(api.pull(name, tag="1", stream=True, decode=True))
    assert lines[-1]["status"].startswith("Status: ") and isinstance(api.pull(name, tag="1"), str)
    shown = api.inspect_image(f"{name}:1")
    assert {"Size", "Architecture", "Os", "RootFS", "Config", "GraphDriver", "Metadata"} <= set(shown)
    (row,) = api.images(name)
    assert row["Id"] == shown["Id"] and row["RepoTags"] == [f"{name}:1"] and row["Labels"] == {"low": "level"}
    assert api.images(f"{name}:1", quiet=True) == [shown["Id"]] and api.images("nothing") == []
    assert api.images(all=True, filters={"label": "low"})[0]["Id"] == shown["Id"]
    assert api.history(f"{name}:1")[0]["Tags"] == [f"{name}:1"]
    distribution = api.inspect_distribution(f"{name}:1")
    assert distribution["Descriptor"]["digest"] == packed.digest
    assert distribution["Platforms"][0]["os"] == "linux"
    assert api.tag(f"{name}:1", name, "2", force=True) and api.tag(shown["Id"], "low-tag")
    pushed = [json.loads(line) for line in api.push(name, tag="2").splitlines()]
    assert any(line.get("aux", {}).get("Tag") == "2" for line in pushed)
    assert all("error" not in line for line in api.push(name, tag="2", stream=True, decode=True))
    archive = b"".join(api.get_image("low-tag"))
    assert any("Loaded image: low-tag:latest" in line.get("stream", "") for line in api.load_image(archive))
    api.remove_image("low-tag")
    with pytest.raises(docker.errors.APIError, match="image is referenced in multiple repositories"):
        api.tag(shown["Id"], "low-other")
        api.remove_image(shown["Id"])
    gone = api.remove_image(shown["Id"], force=True)
    assert {"Deleted": shown["Id"]} in gone and {"Untagged": "low-other:latest"} in gone
    for call in (api.inspect_image, api.history, api.remove_image):
        with pytest.raises(docker.errors.ImageNotFound):
            call(f"{name}:1")
    with pytest.raises(docker.errors.APIError):
        api.inspect_image("registry.example//doubled")
    with pytest.raises(docker.errors.APIError, match="foobar"):
        api.pull(name, tag="1", platform="foobar")
    assert api.login("someone", "password", registry=f"http://{registry}", reauth=True)["Status"] == "Login Succeeded"


def test_images_are_imported_in_every_way(
    node_api: docker.APIClient, images: list[str], tmp_path: Path, cluster: Cluster
) -> None:
    api = node_api
    data = tar_of({"testdata": b"A" * 500})
    file = tmp_path / "root.tar"
    file.write_bytes(data)
    answers = {
        "bytes": api.import_image_from_data(data, repository="imported/bytes", changes=["USER foobar", 'CMD ["echo"]']),
        "file": api.import_image_from_file(str(file), repository="imported/file", tag="7"),
        "name": api.import_image(src=str(file), repository="imported/name"),
        "stream": api.import_image(src=io.BytesIO(data), repository="imported/stream"),
    }
    for how, answer in answers.items():
        last = json.loads(answer.splitlines()[-1])
        assert "error" not in last and last["status"].startswith("sha256:"), (how, answer)
        images.append(f"imported/{how}" + (":7" if how == "file" else ""))
    config = api.inspect_image("imported/bytes")["Config"]
    assert config["Cmd"] == ["echo"] and config["User"] == "foobar"
    with pytest.raises(docker.errors.APIError, match="connection refused"):
        api.import_image_from_url("http://127.0.0.1:1/none.tar", repository="imported/none")
    with pytest.raises(docker.errors.APIError, match="connection refused"):
        api.import_image_from_image("127.0.0.1:1/none", repository="imported/none")


def test_images_are_committed(cluster: Cluster, node_api: docker.APIClient, images: list[str]) -> None:
    api = node_api
    ident = api.create_container("busybox", ["touch", "/test"])["Id"]
    api.start(ident)
    api.wait(ident)
    made = api.commit(
        ident, repository="committed", tag="1", message="m", author="me", changes=["EXPOSE 8000", 'CMD ["bash"]'],
        conf={"Labels": {"a": "b"}},
    )["Id"]  # fmt: skip
    images.append("committed:1")
    shown = api.inspect_image(made)
    assert shown["Parent"] == api.inspect_image("busybox")["Id"]
    with closing(docker.APIClient(base_url=cluster.node(1).url, version="1.44")) as old:
        assert old.inspect_image(made)["Container"] == ident
    assert (shown["Comment"], shown["Author"]) == ("m", "me") and "8000/tcp" in shown["Config"]["ExposedPorts"]
    assert shown["Config"]["Cmd"] == ["bash"] and shown["Config"]["Labels"] == {"a": "b"}


def test_pruning_images_takes_what_nobody_uses(node_api: docker.APIClient, registry: str) -> None:
    api = node_api
    image = busybox_image().on({"prune": b"me"}, Labels={"prune": "me"})
    push(registry, "prune/image", "1", image)
    api.pull(f"{registry}/prune/image", tag="1")
    mine = {"label": ["prune=me"]}
    assert image.id not in [each.get("Deleted") for each in api.prune_images(mine).get("ImagesDeleted") or []]
    result = api.prune_images({"dangling": False, **mine})
    assert f"{registry}/prune/image:1" in [each.get("Untagged") for each in result["ImagesDeleted"]]
    assert image.id in [each.get("Deleted") for each in result["ImagesDeleted"]] and result["SpaceReclaimed"] > 0


# --- builds


def _build(api: docker.APIClient, *lines: str, **options: Any) -> list[dict[str, Any]]:
    return list(api.build(fileobj=io.BytesIO("\n".join(lines).encode()), decode=True, rm=True, **options))


def test_builds_by_every_option(node_api: docker.APIClient, images: list[str]) -> None:
    api = node_api
    network = api.create_network("build-net")["Id"]
    target = api.create_container("busybox", "sleep 600")["Id"]
    api.start(target)
    api.connect_container_to_network(target, network, aliases=["pingtarget.docker"])
    images.append("built")
    try:
        said_ = _build(
            api, "FROM busybox AS first", "ARG WHO", "ARG HTTP_PROXY", "RUN test $WHO = you && test $HTTP_PROXY = b",
            "RUN ping -c1 pingtarget.docker", "RUN grep -q '127.0.0.1.*extra.test' /etc/hosts",
            "RUN sh -c \">&2 echo 'to the other'\"", "FROM first AS second", "RUN false",
            tag="built", buildargs={"WHO": "you", "HTTP_PROXY": "b"}, labels={"test": "OK"}, shmsize=128 << 20,
            isolation="default", target="first", network_mode="build-net", extra_hosts={"extra.test": "127.0.0.1"},
            container_limits={"memory": 64 << 20, "cpushares": 100}, nocache=True, forcerm=True, pull=False,
        )  # fmt: skip
        assert said_[-1]["stream"] == "Successfully tagged built:latest\n", said_[-1]
        assert {"stream": "\x1b[91mto the other\n\x1b[0m"} in said_
        assert api.inspect_image("built")["Config"]["Labels"] == {"test": "OK"}
        assert not api.inspect_image("built")["Config"].get("OnBuild")
    finally:
        api.remove_container(target, force=True)
        api.remove_network(network)
    failed = _build(api, "FROM busybox", "RUN ping -c1 pingtarget.docker", network_mode="none")
    assert failed[-1]["errorDetail"]["code"] == 1
    for options in ({"platform": "foobar"}, {"dockerfile": "missing"}):
        with pytest.raises(docker.errors.APIError):
            _build(api, "FROM busybox", **options)
            raise AssertionError(options)
    with pytest.raises(docker.errors.APIError, match="unknown instruction"):
        _build(api, "FROM busybox", "NOTACOMMAND")


def test_builds_have_proxies_and_caches(node_api: docker.APIClient, images: list[str]) -> None:
    api = node_api
    images += ["cached1", "cached2"]
    lines = ("FROM busybox", "ENV FOO=bar", "RUN touch baz", "RUN touch bax")

    def used(**options: Any) -> int:
        return sum("Using cache" in line.get("stream", "") for line in _build(api, *lines, **options))

    assert used(tag="cached1") == 0 and used(tag="cached2", cache_from=["cached1"]) == 3
    assert used(tag="cached2", cache_from=["nosuchtag"]) == 0
    api._proxy_configs = ProxyConfig(ftp="a", http="b", https="c", no_proxy="d")
    assert "errorDetail" not in _build(
        api, "FROM busybox", 'RUN env | grep "FTP_PROXY=X"', 'RUN env | grep "no_proxy=d"', buildargs={"FTP_PROXY": "X"}
    )[-1]


def test_builds_of_folders_know_dockerignore_and_gzip(
    node_api: docker.APIClient, images: list[str], tmp_path: Path
) -> None:
    for name, text in (
        ("Dockerfile", "FROM busybox\nADD . /test\n"), ("ignored/sub/kept", "x"), ("ignored/sub/file", "x"),
        (".dockerignore", "ignored\nDockerfile\n.dockerignore\n  \n!ignored/sub/kept\n#*\n"), ("#file.txt", "x"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    outside = tmp_path.parent / "Outside.dockerfile"
    outside.write_text("FROM busybox\nCOPY . /src\n")
    lines = list(node_api.build(path=str(tmp_path), tag="folder", decode=True, gzip=True))
    images.append("folder")
    assert "Successfully tagged" in lines[-1]["stream"]
    found = said(node_api, "folder", "find /test -type f").split()
    assert sorted(found) == ["/test/#file.txt", "/test/ignored/sub/kept"]
    lines = list(node_api.build(path=str(tmp_path), dockerfile=str(outside), tag="folder", decode=True))
    assert "Successfully tagged" in lines[-1]["stream"]
    assert said(node_api, "folder", "ls /src").split() == ["#file.txt", "ignored"]
    context = io.BytesIO(tar_of({"Own.file": b"FROM busybox\nCMD echo own\n"}))
    lines = list(node_api.build(fileobj=context, custom_context=True, dockerfile="Own.file", tag="folder", decode=True))
    assert said(node_api, "folder", None) == "own\n"
