"""Docker's words and numbers, made by pure functions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ContainerConfig, ContainerCreate, HostConfig
from swarmlet.model.times import NS
from swarmlet_agent.api.detach import DetachKeys, parse_keys
from swarmlet_agent.api.shapes import inspect
from swarmlet_agent.api.shapes.decode import normalise_create, with_runtime
from swarmlet_agent.api.shapes.durations import human_duration, status_text
from swarmlet_agent.api.shapes.stats import host_cpu_ns
from swarmlet_agent.api.shapes.summary import command_line
from swarmlet_agent.engine.container import Container, ContainerState, Health

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "Less than a second"), (1, "1 second"), (45, "45 seconds"), (60, "About a minute"),
        (119, "About a minute"), (150, "2 minutes"), (50 * 60, "50 minutes"), (HOUR, "About an hour"),
        (1.4 * HOUR, "About an hour"),
        (1.6 * HOUR, "2 hours"), (47 * HOUR, "47 hours"), (3 * DAY, "3 days"), (20 * DAY, "2 weeks"),
        (70 * DAY, "2 months"), (800 * DAY, "2 years"),
    ],
)
def test_durations_are_told_as_docker_tells_them(seconds: float, text: str) -> None:
    assert human_duration(int(seconds * NS)) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (ContainerState(), "Created"),
        (ContainerState(status="running", started_at=10 * NS), "Up 3 minutes"),
        (ContainerState(status="paused", started_at=10 * NS), "Up 3 minutes (Paused)"),
        (ContainerState(status="running", started_at=10 * NS, health=Health()), "Up 3 minutes (health: starting)"),
        (
            ContainerState(status="running", started_at=10 * NS, health=Health(status="healthy")),
            "Up 3 minutes (healthy)",
        ),
        (
            ContainerState(status="exited", started_at=1, finished_at=188 * NS, exit_code=137),
            "Exited (137) 2 seconds ago",
        ),
        (ContainerState(status="restarting", finished_at=189 * NS, exit_code=1), "Restarting (1) 1 second ago"),
        (ContainerState(status="removing"), "Removal In Progress"),
        (ContainerState(status="dead"), "Dead"),
    ],
)
def test_statuses_are_told_as_docker_tells_them(state: ContainerState, text: str) -> None:
    assert status_text(state, 190 * NS) == text


def test_every_field_of_the_model_has_its_default_in_what_inspect_shows() -> None:
    # Left out when empty, as Go's `omitempty` does.
    optional = {
        "ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "StopTimeout",
        "Shell", "Mounts", "Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Init",
        "KernelMemory", "KernelMemoryTCP",  # gone with API 1.42; what asks for them is told that they do nothing
    }  # fmt: skip
    config, host = inspect.config(ContainerConfig()), inspect.host_config(HostConfig())
    for kind, shown in ((ContainerConfig, config), (HostConfig, host)):
        missing = {field.encode_name for field in msgspec.structs.fields(kind)} - shown.keys()
        assert missing <= optional


def test_nothing_is_masked_in_a_privileged_container() -> None:
    assert "/proc/kcore" in inspect.host_config(HostConfig())["MaskedPaths"]
    assert inspect.host_config(HostConfig(privileged=True))["MaskedPaths"] is None
    assert inspect.host_config(HostConfig(masked_paths=("/x",)))["MaskedPaths"] == ["/x"]


def test_nulls_are_dropped_but_where_they_mean_something() -> None:
    body = {
        "Image": "x", "Cmd": None, "Entrypoint": "run", "Labels": None,
        "HostConfig": {"Binds": None, "PortBindings": {"80/tcp": None}, "LogConfig": {"Type": "", "Config": None}},
        "NetworkingConfig": {"EndpointsConfig": {"front": None, "back": {"Aliases": None}}},
    }

    clean = normalise_create(body)

    assert clean == {
        "Image": "x", "Entrypoint": ["run"],
        "HostConfig": {"PortBindings": {"80/tcp": None}, "LogConfig": {"Type": ""}},
        "NetworkingConfig": {"EndpointsConfig": {"front": None, "back": {}}},
    }
    assert msgspec.convert(clean, ContainerCreate).networking_config.endpoints_config["front"] is None


def test_a_runtime_beside_the_host_configuration_is_meant_unless_that_has_one() -> None:
    said = {"Image": "x", "Runtime": "crun"}
    assert with_runtime(said)["HostConfig"] == {"Runtime": "crun"}
    assert with_runtime({**said, "HostConfig": {"Init": True}})["HostConfig"] == {"Init": True, "Runtime": "crun"}
    assert with_runtime({**said, "HostConfig": {"Runtime": "runc"}})["HostConfig"] == {"Runtime": "runc"}
    assert with_runtime({"Image": "x"}) == {"Image": "x"} and with_runtime([]) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(json_values)
def test_any_json_can_be_normalised(body: object) -> None:
    json.dumps(normalise_create(body))


@pytest.mark.parametrize(("text", "keys"), [("", b"\x10\x11"), ("ctrl-a,x", b"\x01x"), ("ctrl-@,ctrl-[", b"\x00\x1b")])
def test_detach_keys_are_read(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-A", "abc", "ctrl-p,", "é", "ctrl-1"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="Invalid detach keys"):
        parse_keys(text)


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6), tail=st.binary(max_size=5))
def test_input_passes_whole_until_the_detach_keys(data: bytes, cuts: list[int], tail: bytes) -> None:
    data = data.replace(b"\x10", b"a")
    keys, passed = DetachKeys(b"\x10\x11"), b""
    stream = data + b"\x10\x11" + tail
    borders = [0, *sorted({min(cut, len(stream)) for cut in cuts}), len(stream)]
    for start, end in pairwise(borders):
        out, detached = keys.feed(stream[start:end])
        passed += out
        if detached:
            break

    assert detached
    assert passed == data


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_input_without_the_detach_keys_is_not_changed(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\x10\x11", b"xx")
    keys, passed = DetachKeys(b"\x10\x11"), b""
    borders = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    for start, end in pairwise(borders):
        passed += keys.feed(data[start:end])[0]

    # Only a first key that may still be followed by the second is held back.
    assert passed == data or passed + b"\x10" == data


def test_the_hosts_processor_time_counts_idle_but_not_guests() -> None:
    assert host_cpu_ns("cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1\n", 100) == 28 * 10_000_000


def test_command_lines_quote_words_with_blanks() -> None:
    assert command_line(("sh", "-c", "echo hi")) == "sh -c 'echo hi'"


@pytest.mark.parametrize(
    ("value", "candidates", "found"),
    [
        ("^we", ("web",), True), ("eb", ("web",), True), ("^eb", ("web",), False), ("[", ("web",), False),
        ("[", ("[",), True),
    ],
)
def test_name_filters_may_be_patterns_and_broken_ones_match_only_themselves(
    value: str, candidates: tuple[str, ...], found: bool
) -> None:
    assert Filters({"name": (value,)}).matches_pattern("name", *candidates) is found


def test_a_container_tells_where_its_file_system_lies() -> None:
    folders = Path("/data/roots/c1/upper"), [Path("/data/layers/two"), Path("/data/layers/one")]
    record = Container(
        id="c1", name="c", created_at=1, request=ContainerCreate(), image_id="i", image_ref="i", args=("true",)
    )

    shown = inspect.graph_driver(record, folders)

    assert inspect.graph_driver(record, None) == {"Data": None, "Name": "overlay2"}
    assert shown["Data"] == {
        "ID": "c1", "LowerDir": "/data/layers/two:/data/layers/one", "UpperDir": "/data/roots/c1/upper",
        "WorkDir": "/data/roots/c1/work", "MergedDir": "/data/roots/c1/merged",
    }  # fmt: skip
