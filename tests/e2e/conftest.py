"""A three-node cluster of `swarmlet up`, shared by all end-to-end tests, and what they find it with."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import docker
import pytest
from e2e_cluster import NAME, Cluster, View, eventually, swarmlet
from e2e_image_folders import images_as_before
from e2e_netstate import settled
from registry_fill import Image, busybox_image

from swarmlet.local import cluster as clusters
from swarmlet.local import hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    if NAME in clusters.all_names():
        swarmlet("down", "--name", NAME)
    try:
        swarmlet("up", "--name", NAME, "--nodes", "3")
        yield Cluster(clusters.find(NAME))
    finally:
        swarmlet("down", "--name", NAME)


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; what a test leaves in it is removed."""
    yield whole_cluster
    services = whole_cluster.view("service", "ls", "-q").split()
    if services:
        whole_cluster.view("service", "rm", *services)
    for number in range(1, 4):
        view = whole_cluster.node(number)

        def gone(view: View = view) -> bool:
            left = view("ps", "-aq").split()
            if left:
                view.run("rm", "-f", "-v", *left)
            return not left

        eventually(gone)


@pytest.fixture(scope="module")
def node(whole_cluster: Cluster) -> Iterator[View]:
    """One engine for all tests of a module; each test names and removes its own."""
    view = whole_cluster.node(2)
    yield view
    left = view("ps", "-aq").split()
    if left:
        view("rm", "-f", "-v", *left)
    view("volume", "prune", "-a", "-f")


@pytest.fixture
def no_networks_left(whole_cluster: Cluster) -> Iterator[None]:
    """Set up before `cluster`, so torn down after the containers are gone."""
    yield
    for number in (1, 2, 3):
        node = whole_cluster.node(number)
        own = node("network", "ls", "-q", "--filter", "type=custom").split()
        if own:
            node("network", "rm", *own)
        # The kernel takes the interfaces of a namespace that has ended down in its own time.
        eventually(lambda number=number: "veth" not in whole_cluster.exec(number, "ip", "-o", "link"))
        bridges = whole_cluster.exec(number, "ip", "-o", "link", "show", "type", "bridge").splitlines()
        assert len(bridges) <= 1, bridges


@pytest.fixture(scope="session")
def base() -> Image:
    """busybox as an image, for others to be made on."""
    return busybox_image()


@pytest.fixture
def no_images_left(whole_cluster: Cluster) -> Iterator[None]:
    """Set up before `cluster`, so torn down after the containers are gone."""
    with images_as_before(whole_cluster):
        yield


@pytest.fixture
def overlay(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Makes networks of the cluster: overlay(name, *options) answers the name. They are removed, and with the services
    everything of them on every node."""
    made: list[str] = []

    def make(name: str, *options: str) -> str:
        cluster.view("network", "create", "-d", "overlay", *options, name)
        made.append(name)
        return name

    yield make
    services = cluster.view("service", "ls", "-q").split()
    if services:
        cluster.view("service", "rm", *services)
    for name in set(made) & set(cluster.view("network", "ls", "--format", "{{.Name}}").split()):
        eventually(lambda name=name: cluster.view.run("network", "rm", name).returncode == 0)
    settled(cluster)


@pytest.fixture(params=["node", "cluster"])
def view(request: pytest.FixtureRequest, cluster: Cluster) -> View:
    """Both views in turn: one node's own engine, and the whole cluster."""
    return cluster.node(2) if request.param == "node" else cluster.view


@contextmanager
def _low_level(url: str) -> Iterator[docker.APIClient]:
    """docker-py's low level; what it leaves to the garbage collector is collected at once."""
    client = docker.APIClient(base_url=url, timeout=60)
    try:
        yield client
    finally:
        client.close()
        del client
        gc.collect()


@pytest.fixture
def api(view: View) -> Iterator[docker.APIClient]:
    """docker-py's low level on each view in turn."""
    with _low_level(view.url) as client:
        yield client


@pytest.fixture
def node_api(cluster: Cluster) -> Iterator[docker.APIClient]:
    with _low_level(cluster.node(1).url) as client:
        yield client


@pytest.fixture(scope="module")
def registry(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on the first host; its "address:port", reachable from every host."""
    folder = tmp_path_factory.mktemp("registry")
    address = f"{whole_cluster.host(1).address}:5000"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    program = shutil.which("docker-registry")
    assert program, "docker-registry is missing: install the package docker-registry"
    argv = hosts.enter_argv(whole_cluster.host(1), [program, "serve", str(config)])
    log = (folder / "log").open("wb")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: urlopen(f"http://{address}/v2/", timeout=2).close() is None)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()
