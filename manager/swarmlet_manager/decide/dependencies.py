"""Secrets and configs: what may be made, changed and removed, and what services may say of them. Pure.

Rules and words are SwarmKit's control API (manager/controlapi: secret.go, config.go, service.go).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping

from swarmlet.errors import Conflict, InvalidArgument, NotSupported, rpc_words
from swarmlet.model.common import Driver
from swarmlet.model.dependency import GOLANG, SECRETS_FOLDER, Config, ConfigSpec, Kind, Secret, SecretSpec
from swarmlet.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference, ServiceSpec
from swarmlet.model.template import check_payload
from swarmlet_manager.state import State

#: Data has at least one byte and less than so many.
SIZE_LIMITS: dict[Kind, int] = {Secret: 500 * 1024, Config: 1000 * 1024}
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?")
_MAX_NAME = 64
_ID = re.compile(r"[0-9]{1,10}")


def word(kind: Kind) -> str:
    return kind.__name__.lower()


def check_new(state: State, kind: Kind, spec: SecretSpec | ConfigSpec) -> bytes:
    """The data of a secret or config to be made. InvalidArgument, NotSupported; Conflict if the name is taken."""
    _check_name(spec.name)
    if isinstance(spec, SecretSpec) and spec.driver is not None:
        if not spec.driver.name:
            raise InvalidArgument(rpc_words("secret driver must have a name"))
        raise NotSupported(
            f"secret {spec.name}: secret drivers are plugins, which are not supported ({spec.driver.name}): "
            "give the secret its data"
        )
    data = decode_data(kind, spec.data)
    if not 0 < len(data) < SIZE_LIMITS[kind]:
        raise InvalidArgument(
            rpc_words(f"{word(kind)} data must be larger than 0 and less than {SIZE_LIMITS[kind]} bytes")
        )
    if templating(spec.templating):
        check_payload(data, f"{word(kind)} {spec.name}")
    if state.dependency_named(kind, spec.name) is not None:
        raise Conflict(f"rpc error: code = AlreadyExists desc = {word(kind)} {spec.name} already exists")
    return data


def templating(driver: Driver | None) -> str:
    """"" or GOLANG. NotSupported for another driver."""
    if driver is None or not driver.name:
        return ""
    if driver.name != GOLANG:
        raise NotSupported(f"template driver {driver.name} is not supported: use {GOLANG}")
    if driver.options:
        raise NotSupported(f"the template driver {GOLANG} has no options here: {', '.join(sorted(driver.options))}")
    return GOLANG


def decode_data(kind: Kind, text: str) -> bytes:
    """InvalidArgument, without a piece of the text, for what is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"invalid JSON: Data of a {word(kind)} must be base64 (RFC 4648)") from None


def check_labels_alone(
    record: Secret | Config, spec: SecretSpec | ConfigSpec, data: bytes
) -> None:
    """InvalidArgument if an update would change more than labels; what is left out stays. data: of the record."""
    said = decode_data(type(record), spec.data)
    same = not said or hmac.compare_digest(said, data)
    if spec.name != record.name or not same:
        raise InvalidArgument(rpc_words("only updates to Labels are allowed"))
    if spec.templating is not None and templating(spec.templating) != record.templating:
        raise InvalidArgument(rpc_words("only updates to Labels are allowed"))


def check_unused(state: State, record: Secret | Config) -> None:
    """InvalidArgument names the services that use it."""
    names = sorted(
        service.spec.name for service in state.services.values()
        if not service.pending_delete and record.id in _ids(type(record), service.spec.task_template.container_spec)
    )
    if names:
        services = "service" if len(names) == 1 else "services"
        raise InvalidArgument(rpc_words(
            f"{word(type(record))} '{record.name}' is in use by the following {services}: {', '.join(names)}"
        ))


def has_references(spec: ServiceSpec) -> bool:
    container = spec.task_template.container_spec
    return container is not None and bool(container.secrets or container.configs)


def check_existence(state: State, spec: ServiceSpec) -> None:
    """InvalidArgument names the secrets or configs that a service refers to and that are not there by this id and
    name."""
    container = spec.task_template.container_spec
    if container is None:
        return
    _check_there(Secret, state.secrets, [(ref.secret_id, ref.secret_name) for ref in container.secrets])
    _check_there(Config, state.configs, [(ref.config_id, ref.config_name) for ref in container.configs])


def check_references(container: ContainerSpec) -> None:
    """InvalidArgument for references that cannot be meant."""
    for secret in container.secrets:
        if not secret.secret_id or not secret.secret_name:
            raise InvalidArgument(rpc_words("malformed secret reference"))
        if secret.file is None:
            raise InvalidArgument(rpc_words("malformed secret reference, no target provided"))
        _check_file("secret", secret.secret_name, secret.file)
    for config in container.configs:
        if not config.config_id or not config.config_name:
            raise InvalidArgument(rpc_words("malformed config reference"))
        if config.file is not None and config.runtime is not None:
            raise InvalidArgument(rpc_words("malformed config reference, File and Runtime exclude each other"))
        if config.file is None and config.runtime is None:
            raise InvalidArgument(rpc_words("malformed config reference, no target provided"))
        if config.file is not None:
            _check_file("config", config.config_name, config.file)
    _check_distinct("secret", _targets(container.secrets))
    _check_distinct("config", _targets(container.configs))
    _check_places(container)


def _check_file(kind: str, name: str, file: FileTarget) -> None:
    if not file.name:
        raise InvalidArgument(rpc_words(f"malformed file {kind} reference, invalid target file name provided"))
    if "\0" in file.name or ".." in file.name.split("/") or file.name.endswith("/"):
        raise InvalidArgument(f"{kind} {name}: invalid target {file.name!r}: expected the path of a file, without ..")
    for field, value in (("UID", file.uid), ("GID", file.gid)):
        if not _ID.fullmatch(value) or int(value) >= 1 << 32:
            raise InvalidArgument(f"{kind} {name}: invalid {field} {value!r}: expected a number")
    if not 0 <= file.mode < 1 << 32:
        raise InvalidArgument(f"{kind} {name}: invalid Mode {file.mode}")


def _targets(references: Iterable[SecretReference | ConfigReference]) -> list[tuple[str, str]]:
    return [
        (ref.file.name, ref.secret_name if isinstance(ref, SecretReference) else ref.config_name)
        for ref in references if ref.file is not None
    ]


def _check_distinct(kind: str, targets: list[tuple[str, str]]) -> None:
    known: dict[str, str] = {}
    for target, name in targets:
        if target in known:
            raise InvalidArgument(
                rpc_words(f"{kind} references '{known[target]}' and '{name}' have a conflicting target: '{target}'")
            )
        known[target] = name


def _check_places(container: ContainerSpec) -> None:
    """Two of any kind at one place would hide each other. The words are dockerd's, of a container's mounts."""
    places = [posixpath.normpath(mount.target) for mount in container.mounts]
    places += [place_of(SECRETS_FOLDER, target) for target, _ in _targets(container.secrets)]
    places += [place_of("/", target) for target, _ in _targets(container.configs)]
    twice = {place for place in places if places.count(place) > 1}
    if twice:
        raise InvalidArgument(rpc_words(f"ContainerSpec: duplicate mount point: {min(twice)}"))


def place_of(folder: str, target: str) -> str:
    """Where a file appears in the container."""
    return posixpath.normpath(posixpath.join(folder, target))


def _ids(kind: Kind, container: ContainerSpec | None) -> Collection[str]:
    if container is None:
        return ()
    if kind is Secret:
        return {ref.secret_id for ref in container.secrets}
    return {ref.config_id for ref in container.configs}


def _check_there(
    kind: Kind, known: Mapping[str, Secret] | Mapping[str, Config], wanted: list[tuple[str, str]]
) -> None:
    lacking = [name for ident, name in wanted if (found := known.get(ident)) is None or found.name != name]
    if lacking:
        things = word(kind) if len(lacking) == 1 else f"{word(kind)}s"
        raise InvalidArgument(rpc_words(f"{things} not found: {', '.join(lacking)}"))


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument(rpc_words("name must be provided"))
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidArgument(rpc_words(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be "
            "[a-zA-Z0-9]"
        ))
