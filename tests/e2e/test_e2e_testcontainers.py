"""testcontainers for Python against a node's engine. Its reaper (ryuk) is an image of its own, which is not to be had
without a registry outside: it is turned off, and the test removes what it starts by the library's own means."""

from __future__ import annotations

import io
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from e2e_cluster import Cluster, View
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    ExecWaitStrategy,
    HealthcheckWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::DeprecationWarning:testcontainers"
)
SERVE = "echo about to serve; echo served > /index.html; exec httpd -f -p 80 -h /"


@pytest.fixture
def engine(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[View]:
    """The node whose ports the library asks at the node's own address."""
    node = cluster.node(2)
    monkeypatch.setenv("DOCKER_HOST", node.url)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(testcontainers_config, "tc_host_override", cluster.host(2).address)
    yield node
    assert node("ps", "-aq", "--filter", "label=org.testcontainers") == ""


def test_every_wait_strategy_finds_a_container_that_serves(engine: View) -> None:
    for strategy in (
        LogMessageWaitStrategy("about to serve"), HttpWaitStrategy(80).for_status_code(200), PortWaitStrategy(80),
        ExecWaitStrategy(["test", "-e", "/index.html"]), HealthcheckWaitStrategy(),
    ):  # fmt: skip
        check = {"test": ["CMD", "test", "-e", "/index.html"], "interval": 200_000_000}
        made = DockerContainer("busybox").with_command(["sh", "-c", SERVE]).with_exposed_ports(80)
        with made.with_kwargs(healthcheck=check).waiting_for(strategy.with_startup_timeout(20)) as container:
            assert "about to serve" in container.get_logs()[0].decode()


def test_a_container_is_asked_for_ports_logs_files_and_commands(engine: View) -> None:
    container = (
        DockerContainer("busybox").with_command(["sh", "-c", SERVE]).with_exposed_ports(80).with_bind_ports(81, 18996)
        .with_env("WORD", "said").with_name("tc").with_tmpfs_mount("/scratch")
        .with_copy_into_container(b"brought", "/brought").waiting_for(HttpWaitStrategy(80).for_status_code(200))
    )  # fmt: skip
    with container:
        url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(80)}/index.html"
        with urlopen(url, timeout=10) as answer:
            assert answer.read() == b"served\n"
        assert int(container.get_exposed_port(81)) == 18996
        result = container.exec(["sh", "-c", "echo $WORD; cat /brought; exit 3"])
        assert (result.exit_code, result.output) == (3, b"said\nbrought")
        assert container.get_logs() == (b"about to serve\n", b"")
        assert container.get_wrapped_container().status in ("created", "running")


def test_containers_of_a_network_know_each_other(engine: View) -> None:
    with Network() as network:
        server = DockerContainer("busybox").with_command(["sh", "-c", SERVE]).with_network(network)
        with server.with_network_aliases("web", "www"):
            asks = "until wget -qO- http://www/index.html; do sleep 0.1; done; sleep 600"
            asker = DockerContainer("busybox").with_command(["sh", "-c", asks]).with_network(network)
            with asker.waiting_for(LogMessageWaitStrategy("served").with_startup_timeout(20)):
                pass
    assert network.name not in engine("network", "ls", "--format", "{{.Name}}").split()


def test_an_image_is_built_for_the_test(engine: View) -> None:
    dockerfile = io.BytesIO(b'FROM busybox\nCMD ["sh", "-c", "echo built; sleep 600"]\n')
    with DockerImage(path=".", tag="tc-built:1", fileobj=dockerfile) as image:
        made = DockerContainer(str(image)).waiting_for(LogMessageWaitStrategy("built").with_startup_timeout(20))
        with made:
            pass
    assert engine("images", "-q", "tc-built") == ""
