"""What a volume may be called, and what its options mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument, NotFound, NotSupported
from swarmlet_agent.volumes import rules


@given(st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,200}", fullmatch=True))
def test_names_of_docker_s_alphabet_are_accepted(name: str) -> None:
    rules.check_name(name)


@given(st.text(max_size=20), st.sampled_from("/ \\:\n\0é"), st.text(min_size=1, max_size=20))
def test_names_that_could_be_paths_are_refused(before: str, foreign: str, after: str) -> None:
    name = before + foreign + after

    with pytest.raises(InvalidArgument, match="includes invalid characters for a local volume name"):
        rules.check_name(name)


def test_a_name_of_one_character_is_too_short() -> None:
    with pytest.raises(InvalidArgument, match="at least two alphanumeric characters"):
        rules.check_name("a")


def test_an_unknown_driver_is_a_missing_plugin() -> None:
    with pytest.raises(NotFound, match='plugin "rexray" not found'):
        rules.check_driver("data", "rexray")
    rules.check_driver("data", "")
    rules.check_driver("data", "local")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"colour": "red"}, InvalidArgument, 'invalid option: "colour"'),
        ({"type": "tmpfs"}, InvalidArgument, 'missing required option: "device"'),
        ({"device": "/x"}, InvalidArgument, 'missing required option: "type"'),
        ({"type": "none", "device": "/x"}, InvalidArgument, "o=bind"),
        ({"type": "none", "o": "bind", "device": "x"}, InvalidArgument, "absolute path"),
        ({"type": "nfs", "device": ":/x"}, InvalidArgument, "o=addr="),
        ({"type": "ext4", "device": "/dev/sda"}, NotSupported, "ext4"),
        ({"size": "1g"}, NotSupported, "quota"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        rules.check_options("data", options)


def test_mount_words_become_flags_and_the_rest_data() -> None:
    plan = rules.mount_of({"type": "tmpfs", "device": "tmpfs", "o": "size=10m,nosuid,ro,rw,uid=1000"})

    assert plan == rules.VolumeMount("tmpfs", "tmpfs", 2, "size=10m,uid=1000")


def test_a_bind_has_no_file_system_type() -> None:
    plan = rules.mount_of({"type": "none", "device": "/srv", "o": "bind,ro"})

    assert (plan.kind, plan.source, plan.flags) == ("", "/srv", 4096 | 1)


def test_the_server_of_nfs_is_apart_from_its_options() -> None:
    plan = rules.mount_of({"type": "nfs", "device": ":/export", "o": "addr=nas.local,vers=4.2,rw"})

    assert (plan.kind, plan.host, plan.data) == ("nfs", "nas.local", "vers=4.2")
