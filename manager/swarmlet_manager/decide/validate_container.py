"""What the container of a service may be given: image, mounts, health check, privileges."""

from __future__ import annotations

import re

from swarmlet.errors import InvalidArgument, NotSupported, rpc_words
from swarmlet.model.common import HealthConfig, Mount
from swarmlet.model.service import ContainerSpec, Privileges
from swarmlet.model.template import FIELDS, expand, expand_mount
from swarmlet.model.times import NS
from swarmlet_manager.decide.dependencies import check_references

#: Engine API: durations of a health check are 0 (inherit) or at least this.
_MINIMUM_HEALTH_NS = NS // 1000
_PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:\[[a-fA-F0-9:]+\]|{_LABEL}(?:\.{_LABEL})*)"
#: [domain[:port]/]path[:tag][@digest], as distribution/reference defines it.
_REFERENCE = re.compile(
    rf"(?:{_DOMAIN}(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[\w][\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)


def check_container_spec(container: ContainerSpec) -> None:
    """InvalidArgument or NotSupported, naming the field."""
    if not container.image:
        raise InvalidArgument(rpc_words("ContainerSpec: image reference must be provided"))
    if not _REFERENCE.fullmatch(container.image):
        raise InvalidArgument(rpc_words(f'ContainerSpec: "{container.image}" is not a valid repository/tag'))
    if container.stop_grace_period is not None and container.stop_grace_period < 0:
        raise InvalidArgument(rpc_words("ContainerSpec: stop-grace-period cannot be negative"))
    _check_mounts(container.mounts)
    if container.healthcheck is not None:
        _check_health(container.healthcheck)
    check_references(container)
    _check_templates(container)
    if container.isolation not in ("", "default"):
        raise NotSupported(f"isolation {container.isolation} exists on Windows only")
    if container.privileges is not None:
        _check_privileges(container.privileges)


def _check_templates(container: ContainerSpec) -> None:
    """What no task's node could resolve is refused at once. The values themselves are not known yet."""
    fields = dict.fromkeys(FIELDS, "")
    try:
        expand(container.hostname, fields, "hostname")
        for entry in container.env:
            expand(entry, fields, "env")
        for mount in container.mounts:
            expand_mount(mount, fields)
    except InvalidArgument as err:
        raise InvalidArgument(rpc_words(str(err))) from err


def _check_mounts(mounts: tuple[Mount, ...]) -> None:
    targets: set[str] = set()
    for mount in mounts:
        if not mount.target:
            raise InvalidArgument("invalid mount: target must not be empty")
        if not mount.target.startswith("/"):
            raise InvalidArgument(f"invalid mount target, must be an absolute path: {mount.target}")
        if mount.target in targets:
            raise InvalidArgument(rpc_words(f"ContainerSpec: duplicate mount point: {mount.target}"))
        targets.add(mount.target)
        _check_source(mount)


def _check_source(mount: Mount) -> None:
    match mount.type:
        case "bind":
            if not mount.source:
                raise InvalidArgument(f"invalid bind mount at {mount.target}: source must not be empty")
            if not mount.source.startswith("/"):
                raise InvalidArgument(f"invalid bind mount source, must be an absolute path: {mount.source}")
        case "volume":
            if mount.source.startswith("/"):
                raise InvalidArgument(f"invalid volume mount source, must not be an absolute path: {mount.source}")
        case "tmpfs":
            if mount.source:
                raise InvalidArgument("invalid tmpfs mount, source must be empty")
        case "cluster" | "npipe" | "image":
            raise NotSupported(f"mounts of type {mount.type} are not supported: use bind, volume or tmpfs")
        case _:
            raise InvalidArgument(f'invalid MountType: "{mount.type}"')
    propagation = mount.bind_options.propagation if mount.bind_options is not None else ""
    if propagation not in _PROPAGATIONS:
        raise InvalidArgument(f'invalid MountPropagation: "{propagation}"')
    options = {"bind": mount.bind_options, "volume": mount.volume_options, "tmpfs": mount.tmpfs_options}
    for kind, given in options.items():
        if given is not None and kind != mount.type:
            raise InvalidArgument(f"cannot mix '{kind}-*' options with mount type '{mount.type}'")


def _check_health(health: HealthConfig) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < _MINIMUM_HEALTH_NS:
            raise InvalidArgument(rpc_words(f"ContainerSpec: {name} in HealthConfig cannot be less than 1ms"))
    if health.retries < 0:
        raise InvalidArgument(rpc_words("ContainerSpec: Retries in HealthConfig cannot be negative"))


def _check_privileges(privileges: Privileges) -> None:
    if privileges.credential_spec is not None:
        raise NotSupported("credential specs, and configs as such, exist on Windows only")
    if privileges.seccomp is not None and privileges.seccomp.mode not in ("", "default", "unconfined"):
        raise NotSupported("custom seccomp profiles of services are not supported yet: use default or unconfined")
    if privileges.app_armor is not None and privileges.app_armor.mode not in ("", "default", "disabled"):
        raise InvalidArgument(f"invalid AppArmor mode: {privileges.app_armor.mode}")
