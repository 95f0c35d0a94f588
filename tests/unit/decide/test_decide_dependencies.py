"""Secrets and configs: names, sizes, references, and what may change."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Conflict, InvalidArgument, NotSupported
from swarmlet.model.common import Driver, Mount
from swarmlet.model.dependency import Config, ConfigSpec, Secret, SecretSpec
from swarmlet.model.service import (
    ConfigReference,
    ContainerSpec,
    FileTarget,
    SecretReference,
    Service,
    ServiceSpec,
    TaskSpec,
)
from swarmlet.model.template import check_payload, expand_payload
from swarmlet_manager.decide import dependencies
from swarmlet_manager.state import Put, State


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def state_with(*records: Secret | Config | Service) -> State:
    state = State()
    for record in records:
        state.apply(Put(record))
    return state


def secret_ref(name: str = "s", ident: str = "i", target: str = "t", **file: object) -> SecretReference:
    return SecretReference(secret_id=ident, secret_name=name, file=FileTarget(name=target, **file))  # type: ignore[arg-type]


def config_ref(name: str = "c", ident: str = "j", target: str = "/t", **file: object) -> ConfigReference:
    return ConfigReference(config_id=ident, config_name=name, file=FileTarget(name=target, **file))  # type: ignore[arg-type]


def service(name: str, *secrets: SecretReference, pending: bool = False) -> Service:
    container = ContainerSpec(image="busybox", secrets=secrets)
    spec = ServiceSpec(name=name, task_template=TaskSpec(container_spec=container))
    return Service(id=f"id-{name}", spec=spec, pending_delete=pending)


@pytest.mark.parametrize("name", ["a", "A1", "a.b-c_d", "9" * 64])
def test_good_names_are_taken(name: str) -> None:
    assert dependencies.check_new(State(), Secret, SecretSpec(name=name, data=encoded(b"x"))) == b"x"


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a b", "a/b", "9" * 65, "a\n", "é"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        dependencies.check_new(State(), Config, ConfigSpec(name=name, data=encoded(b"x")))


@pytest.mark.parametrize(("kind", "spec", "limit"), [(Secret, SecretSpec, 512_000), (Config, ConfigSpec, 1_024_000)])
def test_data_has_at_least_one_byte_and_less_than_the_limit(
    kind: type[Secret] | type[Config], spec: type[SecretSpec] | type[ConfigSpec], limit: int
) -> None:
    most = b"x" * (limit - 1)
    assert dependencies.check_new(State(), kind, spec(name="a", data=encoded(most))) == most
    for data in (b"", most + b"x"):
        with pytest.raises(InvalidArgument, match=f"larger than 0 and less than {limit} bytes"):
            dependencies.check_new(State(), kind, spec(name="a", data=encoded(data)))


def test_what_is_no_base64_is_refused_without_a_piece_of_it() -> None:
    with pytest.raises(InvalidArgument) as err:
        dependencies.check_new(State(), Secret, SecretSpec(name="a", data="hunter2!"))
    assert "hunter2" not in str(err.value) and err.value.__cause__ is None


def test_a_taken_name_is_a_conflict_among_its_kind_alone() -> None:
    state = state_with(Secret(id="i", name="a"))
    with pytest.raises(Conflict, match="secret a already exists"):
        dependencies.check_new(state, Secret, SecretSpec(name="a", data=encoded(b"x")))
    assert dependencies.check_new(state, Config, ConfigSpec(name="a", data=encoded(b"x"))) == b"x"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (SecretSpec(name="a", driver=Driver(name="vault")), "vault"),
        (SecretSpec(name="a", data=encoded(b"x"), templating=Driver(name="mustache")), "mustache"),
        (SecretSpec(name="a", data=encoded(b"x"), templating=Driver(name="golang", options={"a": "b"})), "options"),
    ],
)
def test_drivers_that_are_not_there_are_refused_by_name(spec: SecretSpec, says: str) -> None:
    with pytest.raises(NotSupported, match=says):
        dependencies.check_new(State(), Secret, spec)


def test_only_labels_change() -> None:
    record = Config(id="i", name="a", templating="golang")
    for spec in (
        ConfigSpec(name="a"), ConfigSpec(name="a", data=encoded(b"x")),
        ConfigSpec(name="a", templating=Driver(name="golang")),
    ):
        dependencies.check_labels_alone(record, spec, b"x")
    for spec in (
        ConfigSpec(name="b"), ConfigSpec(name="a", data=encoded(b"y")), ConfigSpec(name="a", templating=Driver()),
    ):
        with pytest.raises(InvalidArgument, match="only updates to Labels are allowed"):
            dependencies.check_labels_alone(record, spec, b"x")


def test_one_in_use_cannot_be_removed_and_the_refusal_names_the_services() -> None:
    record = Secret(id="i", name="s")
    dependencies.check_unused(state_with(record, service("web", pending=True)), record)
    with pytest.raises(InvalidArgument, match=r"secret 's' is in use by the following service: web$"):
        dependencies.check_unused(state_with(record, service("web", secret_ref())), record)
    both = state_with(record, service("web", secret_ref()), service("api", secret_ref()))
    with pytest.raises(InvalidArgument, match=r"in use by the following services: api, web$"):
        dependencies.check_unused(both, record)
    dependencies.check_unused(state_with(record, service("web", secret_ref(), pending=True)), record)


def test_a_reference_must_name_what_is_there_by_id_and_name() -> None:
    state = state_with(Secret(id="i", name="s"))
    dependencies.check_existence(state, service("web", secret_ref()).spec)
    for wrong in (secret_ref(name="other"), secret_ref(ident="other")):
        with pytest.raises(InvalidArgument, match=f"secret not found: {wrong.secret_name}$"):
            dependencies.check_existence(state, service("web", wrong).spec)
    with pytest.raises(InvalidArgument, match=r"secrets not found: a, b$"):
        dependencies.check_existence(
            state, service("web", secret_ref("a", "x", "1"), secret_ref("b", "y", "2")).spec
        )


@pytest.mark.parametrize(
    ("container", "says"),
    [
        (ContainerSpec(secrets=(SecretReference(secret_id="i"),)), "malformed secret reference"),
        (ContainerSpec(secrets=(SecretReference(secret_id="i", secret_name="s"),)), "no target provided"),
        (ContainerSpec(secrets=(secret_ref(target=""),)), "invalid target file name"),
        (ContainerSpec(secrets=(secret_ref(target="../x"),)), "invalid target '../x'"),
        (ContainerSpec(secrets=(secret_ref(uid="root"),)), "invalid UID 'root'"),
        (ContainerSpec(configs=(config_ref(gid="-1"),)), "invalid GID '-1'"),
        (
            ContainerSpec(secrets=(secret_ref("a"), secret_ref("b"))),
            "secret references 'a' and 'b' have a conflicting target: 't'",
        ),
        (ContainerSpec(configs=(config_ref("a"), config_ref("b"))), "config references 'a' and 'b' have a conflicting"),
        (
            ContainerSpec(secrets=(secret_ref(target="x"),), configs=(config_ref(target="/run/secrets/x"),)),
            "duplicate mount point: /run/secrets/x",
        ),
        (
            ContainerSpec(mounts=(Mount(target="/t/", type="tmpfs"),), configs=(config_ref(),)),
            "duplicate mount point: /t",
        ),
        (
            ContainerSpec(configs=(replace(config_ref(), runtime={}),)),
            "File and Runtime exclude each other",
        ),
    ],
)
def test_references_that_cannot_be_meant_are_refused(container: ContainerSpec, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        dependencies.check_references(container)


def test_targets_may_be_names_and_paths_and_a_config_may_be_for_the_runtime() -> None:
    dependencies.check_references(ContainerSpec(
        secrets=(secret_ref(target="x"), secret_ref("b", target="/etc/x", uid="1000", mode=0o400)),
        configs=(config_ref(target="y"), ConfigReference(config_id="k", config_name="d", runtime={})),
    ))


FIELDS = {".Service.Name": "web"}
FUNCTIONS = {
    "env": lambda name: f"<{name}>".encode(), "secret": lambda _: b"{{ .Service.Name }}", "config": lambda _: b"c",
}


@pytest.mark.parametrize(
    ("template", "result"),
    [
        (b"a {{ .Service.Name }} b", b"a web b"),
        (b"a  {{- .Service.Name -}}  b", b"awebb"),
        (b'{{env "X"}}{{ config `y` }}', b"<X>c"),
        (b'{{ secret "t" }}', b"{{ .Service.Name }}"),
        (b'{{ "{{" }}{{ "}}" }}{{/* "unclosed }} */}}', b"{{}}"),
        (b"\xff\x00 } {", b"\xff\x00 } {"),
    ],
)
def test_content_that_is_a_template_is_resolved_once(template: bytes, result: bytes) -> None:
    assert expand_payload(template, FIELDS, FUNCTIONS, "config c") == result


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (b"{{ if .X }}", "config c failed: if is not supported"), (b"{{ secret }}", "secret is not supported"),
        (b"{{ .Service.Name", "not closed"), (b'{{ "x }}', "not closed"), (b"{{}}", "an action of its template"),
        (b"{{ .Service.Labels }}", ".Service.Labels is not supported"),
    ],
)
def test_what_templates_cannot_do_here_is_refused_by_name(template: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check_payload(template, "config c")


def test_a_template_does_not_grow_without_bounds() -> None:
    with pytest.raises(InvalidArgument, match="more than 4194304 bytes"):
        expand_payload(b'{{ secret "x" }}' * 10_000, {}, FUNCTIONS | {"secret": lambda _: b"x" * 100_000}, "secret s")


@given(st.binary(max_size=200).filter(lambda data: b"{{" not in data))
def test_content_without_actions_stays_as_it_is(data: bytes) -> None:
    assert expand_payload(data, FIELDS, FUNCTIONS, "secret s") == data


@given(st.binary(max_size=60))
def test_any_content_is_expanded_or_refused(data: bytes) -> None:
    try:
        expand_payload(b"{{" + data + b"}}", FIELDS, FUNCTIONS, "secret s")
    except InvalidArgument as err:
        assert str(err).startswith("expanding secret s failed: ")


def test_whose_a_file_is_is_always_shown() -> None:
    """Also where it is the default, wherever that text comes from."""
    for file in (FileTarget(name="x"), msgspec.json.decode(b'{"Name": "x", "UID": "0"}', type=FileTarget)):
        assert msgspec.to_builtins(file) == {"Name": "x", "UID": "0", "GID": "0", "Mode": 0}
