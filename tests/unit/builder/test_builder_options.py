"""What POST /build is asked for; what instructions make of a configuration."""

from __future__ import annotations

import base64
import json

import pytest

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import ImageConfig
from swarmlet_agent.builder.dockerfile import parse_one
from swarmlet_agent.builder.instructions import Workdir, parse_instruction
from swarmlet_agent.builder.options import BuildOptions, read_options
from swarmlet_agent.builder.state import Scope, advance, begin_stage, change_of, empty_state, noted, working_dir
from swarmlet_agent.images.auth import decode_registry_config
from swarmlet_agent.images.platforms import Platform
from swarmlet_agent.images.reference import parse_reference


class Query:
    def __init__(self, **values: str | list[str]) -> None:
        self.values = {name: [value] if isinstance(value, str) else value for name, value in values.items()}

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[0]

    def texts(self, name: str) -> list[str]:
        return self.values.get(name, [])

    def flag(self, name: str, default: bool = False) -> bool:
        return self.values[name][0] in ("1", "true") if name in self.values else default

    def number(self, name: str, default: int | None = None) -> int | None:
        return int(self.values[name][0]) if name in self.values else default


def options(**values: str | list[str]) -> BuildOptions:
    return read_options(Query(**values))


def test_everything_of_a_request_is_read() -> None:
    asked = options(
        t=["app", "app:1", "app:latest"], dockerfile="D", buildargs='{"A":"1","B":null}', labels='{"l":"v"}',
        cachefrom='["x"]', nocache="1", pull="1", rm="0", memory="1000", memswap="-1", cpushares="5", cpusetcpus="0",
        shmsize="9", ulimits='[{"Name":"nofile","Soft":1,"Hard":2}]', extrahosts="a:1.2.3.4,b:5.6.7.8",
        networkmode="none", target="t", platform="linux/amd64", q="1",
    )
    assert [name.familiar for name in asked.tags] == ["app:latest", "app:1"]
    assert asked.build_args == {"A": "1", "B": None} and asked.labels == {"l": "v"} and asked.cache_from == ("x",)
    assert (asked.no_cache, asked.pull, asked.remove, asked.quiet) == (True, True, False, True)
    host = asked.host
    assert (host.memory, host.memory_swap, host.cpu_shares, host.cpuset_cpus, host.shm_size) == (1000, -1, 5, "0", 9)
    assert host.ulimits[0].soft == 1 and host.extra_hosts == ("a:1.2.3.4", "b:5.6.7.8") and host.network_mode == "none"


def test_containers_are_removed_unless_that_is_refused() -> None:
    assert [options(**given).remove for given in ({}, {"rm": "1"}, {"rm": "0"}, {"rm": "0", "forcerm": "1"})] == [
        True, True, False, True,
    ]


@pytest.mark.parametrize("given", [
    {"squash": "1"}, {"version": "2"}, {"outputs": "[]"}, {"isolation": "hyperv"}, {"session": "x"},
])
def test_what_is_not_supported_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(NotSupported):
        options(**given)


@pytest.mark.parametrize("given", [
    {"buildargs": "{"}, {"labels": "[]"}, {"ulimits": "{}"}, {"t": "UPPER"}, {"t": "a@sha256:" + "0" * 64},
])
def test_what_cannot_be_meant_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        options(**given)


def test_credentials_are_found_by_registry_and_never_quoted() -> None:
    raw = json.dumps({
        "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
        "reg:5000": {"auth": base64.b64encode(b"me:secret").decode()},
    }).encode()
    auth = BuildOptions(auth=decode_registry_config(base64.urlsafe_b64encode(raw).decode()))
    hub, own, other = (auth.auth_for(parse_reference(name)) for name in ("busybox", "reg:5000/x", "reg:6000/x"))
    assert hub is not None and hub.username == "hub" and own is not None and own.password == "secret"
    assert other is None and "secret" not in repr(auth)
    with pytest.raises(InvalidArgument) as caught:
        decode_registry_config(base64.urlsafe_b64encode(b'{"x": "secret"}').decode())
    assert "secret" not in str(caught.value)


def after(text: str, config: ImageConfig = ImageConfig(), **args: str) -> ImageConfig:  # noqa: B008 - frozen
    change = change_of(parse_instruction(parse_one(text)), Scope(config, args, "\\"), own_cmd=False)
    assert change is not None
    return change.config


def test_variables_of_one_instruction_are_those_from_before_it() -> None:
    config = after("ENV A=1 B=$A C='$A'", ImageConfig(env=("A=0", "Z=9")), A="argument")
    assert config.env == ("A=1", "Z=9", "B=0", "C=$A")
    assert after("ENV X=${ARG:-none}", ARG="given").env == ("X=given",)


def test_an_entrypoint_drops_the_arguments_that_the_base_had() -> None:
    base = ImageConfig(cmd=("old",), entrypoint=("e",))
    assert after('ENTRYPOINT ["new"]', base).cmd is None and after("ENTRYPOINT []", base).entrypoint == ()
    own = change_of(parse_instruction(parse_one("ENTRYPOINT x")), Scope(base, {}, "\\"), own_cmd=True)
    assert own is not None and own.config.cmd == ("old",) and own.config.entrypoint == ("/bin/sh", "-c", "x")


def test_ports_volumes_users_and_shells() -> None:
    assert after("EXPOSE 80 $P/udp 1-2", P="53").exposed_ports == {
        "80/tcp": {}, "53/udp": {}, "1/tcp": {}, "2/tcp": {},
    }
    assert after('VOLUME ["/a b", "/c"]').volumes == {"/a b": {}, "/c": {}}
    assert after("USER $U:g", U="me").user == "me:g"
    assert after("CMD x", ImageConfig(shell=("/bin/ash", "-ec"))).cmd == ("/bin/ash", "-ec", "x")
    for bad in ("EXPOSE 0", "EXPOSE 70000", "EXPOSE 2-1", "STOPSIGNAL SIGNONE", "VOLUME $NONE"):
        with pytest.raises(InvalidArgument):
            after(bad)


def test_working_folders_add_up() -> None:
    def leads(text: str, before: str = "") -> str:
        step = parse_instruction(parse_one(text))
        assert isinstance(step, Workdir)
        return working_dir(step, Scope(ImageConfig(working_dir=before), {"X": "sub"}, "\\"))

    assert [leads("WORKDIR /a"), leads("WORKDIR b/../$X", "/a"), leads("WORKDIR //c/")] == ["/a", "/a/sub", "/c"]


def test_a_state_is_named_by_its_content_and_times() -> None:
    begin = empty_state(Platform("amd64", "linux"))
    assert begin.short_id == "" and begin_stage(begin.config).env[0].startswith("PATH=")
    one, same, later = (advance(begin, ImageConfig(user="u"), "step", now=now) for now in (10**9, 10**9, 2 * 10**9))
    assert one.id == same.id != later.id and one.configuration.history[0].empty_layer
    assert one.configuration.config.user == "u" and one.platform == begin.platform


def test_an_image_tells_what_its_last_container_was_created_with() -> None:
    config = ImageConfig(user="u", volumes={"/data": {}}, cmd=("serve",))

    def told(created_by: str, ran: tuple[str, ...] = ()) -> list[str]:
        made = advance(empty_state(Platform("amd64", "linux")), config, created_by, now=1, ran=ran)
        document = json.loads(made.configuration.raw)
        assert document["config"] == {"User": "u", "Volumes": {"/data": {}}, "Cmd": ["serve"]}
        assert document["container_config"] == document["config"] | {"Cmd": document["container_config"]["Cmd"]}
        return document["container_config"]["Cmd"]

    assert told(noted(config, " ENV a=b c")) == ["/bin/sh", "-c", "#(nop) ", "ENV a=b c"]
    assert told(noted(config, "COPY file:1 in / ")) == ["/bin/sh", "-c", "#(nop) COPY file:1 in / "]
    assert told("|1 a=b /bin/sh -c make it", ("|1", "a=b", "/bin/sh", "-c", "make it")) == [
        "|1", "a=b", "/bin/sh", "-c", "make it",
    ]  # fmt: skip
