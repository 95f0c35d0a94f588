"""What a client asks for with POST /build (Engine API ImageBuild), checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import Ulimit
from swarmlet.model.container import HostConfig
from swarmlet_agent.images.auth import decode_registry_config
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.types import RegistryAuth

T = TypeVar("T")
_HUB = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")


class Query(Protocol):
    """Where parameters come from (an API call)."""

    def text(self, name: str, default: str = "") -> str: ...
    def texts(self, name: str) -> list[str]: ...
    def flag(self, name: str, default: bool = False) -> bool: ...
    def number(self, name: str, default: int | None = None) -> int | None: ...


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """host: limits and settings for the containers of RUN. build_args: None = take it from nowhere (as unset)."""

    tags: tuple[Reference, ...] = ()
    dockerfile: str = ""
    target: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cache_from: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    quiet: bool = False
    platform: str = ""
    remote: str = ""
    build_id: str = ""
    host: HostConfig = field(default_factory=HostConfig)
    auth: Mapping[str, RegistryAuth] = field(default_factory=dict)

    def auth_for(self, ref: Reference) -> RegistryAuth | None:
        """The credentials for a registry, if the client has sent some."""
        names = _HUB if ref.domain == "docker.io" else (ref.domain, f"https://{ref.domain}", f"http://{ref.domain}")
        return next((self.auth[name] for name in names if name in self.auth), None)


def read_options(query: Query, registry_config: str = "") -> BuildOptions:
    """From the query and the X-Registry-Config header. InvalidArgument; NotSupported names what is refused."""
    _refuse(query)
    force_remove = query.flag("forcerm")
    return BuildOptions(
        tags=_tags(query.texts("t")),
        dockerfile=query.text("dockerfile"),
        target=query.text("target"),
        build_args=_json(query, "buildargs", dict[str, str | None]) or {},
        labels=_json(query, "labels", dict[str, str]) or {},
        cache_from=tuple(_json(query, "cachefrom", list[str]) or ()),
        no_cache=query.flag("nocache"),
        pull=query.flag("pull"),
        remove=force_remove or query.flag("rm", True) or query.text("rm", "1") == "",
        force_remove=force_remove,
        quiet=query.flag("q"),
        platform=query.text("platform"),
        remote=query.text("remote"),
        build_id=query.text("buildid"),
        host=_host(query),
        auth=decode_registry_config(registry_config),
    )


def _refuse(query: Query) -> None:
    if query.text("version", "1") not in ("", "1"):
        raise NotSupported("BuildKit is not supported by this engine: use the classic builder (DOCKER_BUILDKIT=0)")
    if query.flag("squash"):
        raise NotSupported("squash is only supported with experimental mode, which this engine does not have")
    if any(query.texts("securityopt")):
        raise InvalidArgument("The daemon on this platform does not support setting security options on build")
    if query.text("outputs"):
        raise NotSupported("outputs are not supported: the result of a build is an image of this engine")
    if query.text("isolation", "default").lower() not in ("", "default"):
        raise NotSupported(f'Unsupported isolation: "{query.text("isolation")}"')
    if query.text("session"):
        raise NotSupported("build sessions are not supported by this engine: use the classic builder")


def _tags(texts: Sequence[str]) -> tuple[Reference, ...]:
    found: dict[str, Reference] = {}
    for text in texts:
        if not text:
            continue
        name = parse_reference(text)
        if name.digest:
            raise InvalidArgument("build tag cannot contain a digest")
        name = name.with_default_tag()
        found[name.full] = name
    return tuple(found.values())


def _json(query: Query, name: str, kind: type[T]) -> T | None:
    text = query.text(name)
    if not text or text == "null":
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError) as err:
        raise InvalidArgument(f"error reading {name}: {err}") from err


class _Ulimit(msgspec.Struct, frozen=True):
    Name: str
    Soft: int = 0
    Hard: int = 0


def _host(query: Query) -> HostConfig:
    ulimits = _json(query, "ulimits", list[_Ulimit]) or []
    extra_hosts: tuple[str, ...] = ()
    for text in query.texts("extrahosts"):
        if text.startswith("["):
            extra_hosts += tuple(_json(query, "extrahosts", list[str]) or ())
        else:
            extra_hosts += tuple(word for word in text.split(",") if word)
    network = query.text("networkmode")
    return HostConfig(
        memory=query.number("memory") or 0, memory_swap=query.number("memswap") or 0,
        cpu_shares=query.number("cpushares") or 0, cpu_period=query.number("cpuperiod") or 0,
        cpu_quota=query.number("cpuquota") or 0, cpuset_cpus=query.text("cpusetcpus"),
        cpuset_mems=query.text("cpusetmems"), cgroup_parent=query.text("cgroupparent"),
        shm_size=query.number("shmsize") or 0, extra_hosts=extra_hosts,
        ulimits=tuple(Ulimit(name=limit.Name, soft=limit.Soft, hard=limit.Hard) for limit in ulimits),
        network_mode="" if network == "default" else network,
    )
