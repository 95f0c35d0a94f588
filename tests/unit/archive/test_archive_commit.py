"""What configuration an image committed from a container gets."""

from __future__ import annotations

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import ContainerConfig
from swarmlet_agent.archive.commit import committed_config

OWN = ContainerConfig(
    hostname="box", env=("A=1", "PATH=/bin"), cmd=("sleep", "9"), entrypoint=("/init",), user="web",
    working_dir="/srv", labels={"a": "b"}, exposed_ports={"80/tcp": {}}, volumes={"/data": {}}, stop_signal="SIGINT",
    healthcheck=HealthConfig(test=("CMD", "true"), retries=3),
)


def test_without_changes_the_image_has_the_containers_settings() -> None:
    config = committed_config(OWN, None, [])

    assert (config.env, config.cmd, config.entrypoint, config.user) == (OWN.env, OWN.cmd, OWN.entrypoint, "web")
    assert (config.working_dir, config.labels, config.healthcheck) == ("/srv", {"a": "b"}, OWN.healthcheck)


def test_every_instruction_changes_its_setting() -> None:
    changes = [
        'CMD ["x"]', "ENV A=2 B=3", "LABEL c=d", "EXPOSE 53/udp", "ONBUILD RUN true", "USER root", "VOLUME /more",
        "WORKDIR sub", "STOPSIGNAL SIGQUIT", "HEALTHCHECK NONE",
    ]

    config = committed_config(OWN, None, changes)

    assert config.cmd == ("x",) and config.entrypoint == ("/init",)
    assert set(config.env) == {"A=2", "B=3", "PATH=/bin"}
    assert config.labels == {"a": "b", "c": "d"} and set(config.exposed_ports) == {"80/tcp", "53/udp"}
    assert config.on_build == ("RUN true",) and config.user == "root" and set(config.volumes) == {"/data", "/more"}
    assert config.working_dir == "/srv/sub" and config.stop_signal == "SIGQUIT"
    assert config.healthcheck is not None and config.healthcheck.test == ("NONE",)


def test_a_new_entrypoint_alone_drops_the_old_arguments() -> None:
    assert committed_config(OWN, None, ['ENTRYPOINT ["new"]']).cmd is None
    assert committed_config(OWN, None, ['CMD ["y"]', 'ENTRYPOINT ["new"]']).cmd == ("y",)


def test_a_clients_configuration_wins_and_is_completed_by_the_containers() -> None:
    config = committed_config(OWN, ContainerConfig(env=("A=9",), cmd=("other",), labels={"z": "1"}), [])

    assert config.cmd == ("other",) and config.entrypoint == ("/init",)
    assert config.env == ("A=9", "PATH=/bin") and config.labels == {"a": "b", "z": "1"} and config.user == "web"


def test_what_is_no_change_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="RUN is not a valid change command"):
        committed_config(OWN, None, ["RUN rm -rf /"])
