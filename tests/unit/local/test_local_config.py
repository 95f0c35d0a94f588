"""Settings: file and environment become one frozen object, and nothing that is misspelt becomes a default."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.config import AgentSettings, EtcdSettings, load
from swarmlet.errors import InvalidArgument


def agent(environ: dict[str, str] | None = None, file: Path | None = None) -> AgentSettings:
    return load(AgentSettings, file, environ or {})


def test_without_file_and_environment_all_is_default() -> None:
    assert agent() == AgentSettings()
    assert agent({"PATH": "/bin", "SWARMLET_CLUSTER": "of the command line"}) == AgentSettings()


def test_the_environment_wins_over_the_file_and_that_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('node_port = 1\nlog_level = "error"\nrun_dir = "/run/x"\n')
    settings = agent({"SWARMLET_NODE_PORT": "2", "SWARMLET_LOG_LEVEL": "debug"}, file)
    assert (settings.node_port, settings.log_level, settings.run_dir) == (2, "debug", "/run/x")
    assert settings.manager_port == AgentSettings().manager_port


def test_lists_and_tables_can_come_from_the_environment() -> None:
    settings = agent({"SWARMLET_REGISTRY_MIRRORS": "https://a,https://b", "SWARMLET_LABELS": "disk=ssd,zone="})
    assert settings.registry_mirrors == ("https://a", "https://b")
    assert settings.labels == {"disk": "ssd", "zone": ""}
    assert agent({"SWARMLET_INSECURE_REGISTRIES": ""}).insecure_registries == ()


def test_nested_keys_are_joined_by_two_underscores_and_add_to_the_files(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[etcd]\nendpoints = ["https://old:2379"]\nca = "/ca.pem"\n')
    settings = agent({"SWARMLET_ETCD__ENDPOINTS": "https://a:2379,https://b:2379", "SWARMLET_ETCD__KEY": "/key"}, file)
    assert settings.etcd == EtcdSettings(
        endpoints=("https://a:2379", "https://b:2379"), ca="/ca.pem", cert="", key="/key"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node_prot = 1\n", "node_prot"),
        ('node_port = "2378"\n', "node_port"),
        ("insecure_registries = [1]\n", "insecure_registries"),
        ("[etcd]\nendpoint = []\n", "endpoint"),
        ("[labels]\na = 1\n", "labels"),
        ("node_port = \n", "line 1"),
        ("\xff", "agent.toml"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_naming_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument) as refused:
        agent(file=file)
    assert says in str(refused.value) and str(file) in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot read .*missing\.toml: No such file"):
        agent(file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [("SWARMLET_NODE_PORT", "many", "node_port"), ("SWARMLET_LABELS", "ssd", "SWARMLET_LABELS: expected key=value")],
)
def test_a_variable_that_cannot_be_meant_is_refused(variable: str, text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        agent({variable: text})
