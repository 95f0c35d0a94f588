"""Names and places of a cluster on one machine, and the agent's settings made from them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.cli import main as cli
from swarmlet.config import AgentSettings, EtcdSettings, load
from swarmlet.errors import InvalidArgument
from swarmlet.local import cluster as clusters
from swarmlet.local import layout
from swarmlet.local.layout import agent_config, plan_cluster, preferred_subnet

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,30}", fullmatch=True)
OWN = EtcdSettings(endpoints=("https://192.0.2.1:2379",), ca="/ca.pem", cert='/with "quotes".pem', key="/key\\.pem")


@given(name=NAMES, nodes=st.integers(1, 200), subnet=st.integers(0, 249))
def test_what_the_kernel_names_fits_and_nothing_is_shared(name: str, nodes: int, subnet: int) -> None:
    cluster = plan_cluster(name, nodes, subnet)
    links = [cluster.bridge, *(node.link for node in cluster.nodes)]
    assert all(len(link) <= 15 for link in links) and len(set(links)) == nodes + 1
    assert all(link.startswith(cluster.bridge) for link in links)
    for places in (
        [node.address for node in cluster.nodes] + [cluster.gateway],
        [node.data_dir for node in cluster.nodes],
        [node.netns for node in cluster.nodes],
        [node.cgroup for node in cluster.nodes],
    ):
        assert len(set(places)) == len(places)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cluster.nft_table)
    assert len(str(cluster.nodes[-1].agent_socket)) < 108  # sun_path (unix(7))


@given(first=NAMES, second=NAMES)
def test_clusters_of_different_names_share_no_folder_cgroup_or_namespace(first: str, second: str) -> None:
    one, other = plan_cluster(first, 3, 1), plan_cluster(second, 3, 2)
    if first == second:
        return
    for mine, theirs in ((one.data_dir, other.data_dir), (one.run_dir, other.run_dir)):
        assert mine not in (theirs, *theirs.parents) and theirs not in mine.parents
    assert not {node.cgroup for node in one.nodes} & {node.cgroup for node in other.nodes}


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a_b", "a.b", "../x", "a/b", "a" * 32, "a b", "a\n", "é", "node;rm"]
)
def test_names_that_are_no_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid cluster name"):
        plan_cluster(name, 1, 0)


@pytest.mark.parametrize("nodes", [-1, 0, 201])
def test_numbers_of_nodes_that_cannot_be_are_refused(nodes: int) -> None:
    with pytest.raises(InvalidArgument, match="from 1 to 200"):
        plan_cluster("a", nodes, 0)


@pytest.mark.parametrize(
    ("etcd", "says"),
    [
        (EtcdSettings(endpoints=("ftp://x:1",)), "invalid etcd endpoint"),
        (EtcdSettings(endpoints=("https://",)), "invalid etcd endpoint"),
        (EtcdSettings(endpoints=("http://a:1/path",)), "invalid etcd endpoint"),
        (EtcdSettings(endpoints=("https://a:1",), ca="/ca"), "need --etcd-ca, --etcd-cert and --etcd-key"),
        (EtcdSettings(ca="/ca"), "go with --etcd"),
    ],
)
def test_an_etcd_that_cannot_be_reached_like_that_is_refused(etcd: EtcdSettings, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        plan_cluster("a", 1, 0, etcd)


def test_nodes_are_found_by_name_and_number() -> None:
    cluster = plan_cluster("a", 2, 0)
    assert cluster.node("node-2") is cluster.node("2") is cluster.nodes[1]
    for unknown in ("node-3", "3", "0", "", "NODE-1"):
        with pytest.raises(InvalidArgument, match="there are node-1, node-2"):
            cluster.node(unknown)


@given(NAMES)
def test_the_same_name_prefers_the_same_subnet(name: str) -> None:
    assert preferred_subnet(name) == preferred_subnet(name)
    assert 0 <= preferred_subnet(name) < 250


@pytest.mark.parametrize("etcd", [EtcdSettings(), OWN])
def test_the_agents_settings_can_be_read_back(tmp_path: Path, etcd: EtcdSettings) -> None:
    cluster = plan_cluster("a", 2, 7, etcd)
    host = cluster.nodes[1]
    file = tmp_path / "agent.toml"
    file.write_text(agent_config(cluster, host))
    settings = load(AgentSettings, file, {})
    assert (settings.hostname, settings.advertise_addr) == ("node-2", "10.213.7.2")
    assert settings.data_dir == f"{host.data_dir}/data" and settings.cgroup_parent == host.cgroup
    assert settings.insecure_registries == ("127.0.0.0/8", "10.213.7.0/24")
    assert settings.etcd == etcd
    assert ("etcd" in tomllib.loads(file.read_text())) == bool(etcd.endpoints)


# The record of a cluster, and the command


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the machine's own clusters."""
    for module in (layout, clusters):
        monkeypatch.setattr(module, "DATA_ROOT", tmp_path / "data")
        monkeypatch.setattr(module, "RUN_ROOT", tmp_path / "run")
    return tmp_path / "data"


def test_a_record_without_the_newer_fields_is_read(roots: Path) -> None:
    roots.mkdir()
    (roots / "old.json").write_text('{"name": "old", "nodes": 2, "subnet": 9}')
    assert clusters.all_names() == ["old"]
    assert clusters.find("old") == plan_cluster("old", 2, 9)


def test_the_command_needs_root_and_says_so(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for args in (["up"], ["down"], ["host", "kill", "node-1"], ["host", "exec", "node-1", "true"]):
        done = CliRunner().invoke(cli.main, args)
        assert done.exit_code == 1 and "run it as root" in done.output
    assert not roots.exists()


def test_looking_needs_no_root(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    roots.mkdir()
    (roots / "mine.json").write_text('{"name": "mine", "nodes": 1, "subnet": 9}')
    done = CliRunner().invoke(cli.main, ["env", "1", "--name", "mine"])
    assert done.exit_code == 0 and done.output.startswith("export DOCKER_HOST=unix://")


def test_of_two_changes_at_once_the_second_is_refused_and_the_lock_goes_with_its_holder() -> None:
    with clusters.changing("unit-lock"):
        with pytest.raises(clusters.Conflict, match="being changed by another command"), clusters.changing("unit-lock"):
            pass
        with clusters.changing("unit-lock-2"):
            pass
    with clusters.changing("unit-lock"):
        pass
