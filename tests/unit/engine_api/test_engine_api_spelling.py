"""Names of members in any case, as Docker's own decoder takes them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.router import convert
from swarmlet.engine_api.spelling import spelled
from swarmlet.model.base import to_api
from swarmlet.model.container import ContainerCreate, PortBinding
from swarmlet.model.service import ServiceSpec


def test_a_mode_in_small_letters_is_the_mode() -> None:
    replicated = convert({"Name": "web", "Mode": {"replicated": {"Replicas": 3}}}, ServiceSpec)
    everywhere = convert({"Name": "web", "Mode": {"global": {}}}, ServiceSpec)

    assert replicated.mode.replicated is not None and replicated.mode.replicated.replicas == 3
    assert everywhere.mode.global_ is not None and everywhere.mode.replicated is None


def test_names_of_the_clients_own_keep_their_case() -> None:
    body = {"labels": {"Image": "x", "image": "y"}, "hostconfig": {"portbindings": {"80/tcp": [{"hostport": "8080"}]}}}

    create = convert(body, ContainerCreate)

    assert create.labels == {"Image": "x", "image": "y"}
    assert create.host_config.port_bindings == {"80/tcp": (PortBinding(host_port="8080"),)}


def test_the_exactly_spelled_member_holds_wherever_it_stands() -> None:
    for body in ({"image": "wrong", "Image": "right"}, {"Image": "right", "image": "wrong"}):
        assert convert(body, ContainerCreate).image == "right"


def test_unknown_members_and_nulls_stay() -> None:
    body = {"nonsense": {"A": None}, "hostConfig": {"portBindings": {"80/tcp": None}}}

    assert spelled(body, ContainerCreate) == {
        "nonsense": {"A": None}, "HostConfig": {"PortBindings": {"80/tcp": None}},
    }


@pytest.mark.parametrize("body", [None, 7, "text", [], [{"image": 1}], {"HostConfig": 3}, {"Env": {"a": 1}}])
def test_a_body_of_another_shape_is_left_to_the_decoder(body: Any) -> None:
    assert spelled(body, ContainerCreate) == body


_DEEP = {"HostConfig": {"Mounts": [{"Type": "tmpfs", "TmpfsOptions": {"SizeBytes": 5}}], "Memory": 9},
         "Healthcheck": {"Test": ["CMD", "true"], "StartPeriod": 3}, "StopSignal": "SIGINT"}


@given(st.randoms(use_true_random=False))
def test_any_case_decodes_to_the_same_record(random: Any) -> None:
    def shaken(value: Any) -> Any:
        if isinstance(value, dict):
            return {"".join(random.choice((c.lower(), c.upper())) for c in key): shaken(v) for key, v in value.items()}
        return [shaken(item) for item in value] if isinstance(value, list) else value

    assert convert(shaken(_DEEP), ContainerCreate) == msgspec.convert(_DEEP, ContainerCreate)
    assert spelled(to_api(convert(_DEEP, ContainerCreate)), ContainerCreate) == to_api(convert(_DEEP, ContainerCreate))
