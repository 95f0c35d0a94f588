"""Settings: a TOML file and the environment become one frozen object per daemon.

Precedence: environment (SWARMLET_<KEY> in capitals, dots as double underscores) over file over default.
Unknown keys are refused: a typo must not silently mean the default. Every default stands here, with its unit.
"""

from __future__ import annotations

import builtins
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec

from swarmlet.errors import InvalidArgument

AGENT_SOCKET = "agent.sock"
MANAGER_SOCKET = "manager.sock"
#: In the manager's folder: when it was restored, in microseconds of the epoch. The manager notes it and removes it.
RESTORED = "restored"
DEFAULT_CONFIG = Path("/etc/swarmlet/agent.toml")
ENV_PREFIX = "SWARMLET_"


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An etcd of your own: https endpoints and client certificate files. Without endpoints one is embedded."""

    endpoints: tuple[str, ...] = ()
    ca: str = ""
    cert: str = ""
    key: str = ""


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files for TLS with docker clients: the CA that vouches for them, and this host's certificate and key."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def complete(self) -> bool:
        return bool(self.ca and self.cert and self.key)


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent needs to know of its host; of the cluster it learns by `docker swarm init` or `join`."""

    data_dir: str = "/var/lib/swarmlet"
    run_dir: str = "/run/swarmlet"
    hostname: str = ""  # "" = the kernel's
    advertise_addr: str = ""  # "" = the address of the default route's interface
    node_port: int = 2378  # Engine API for managers, mTLS
    manager_port: int = 2377  # where a manager on this host listens, mTLS
    socket_group: str = ""  # group that may use the sockets; "" = root alone
    hosts: tuple[str, ...] = ()  # "tcp://ADDRESS:PORT", where docker clients find this host's engine as well
    cluster_hosts: tuple[str, ...] = ()  # the same for the cluster, while a manager runs here
    hosts_tls: TlsFiles = TlsFiles()  # needed for addresses that are not loopback
    cgroup_parent: str = "/swarmlet"
    bridge_name: str = "swl0"
    bridge_subnet: str = "172.17.0.0/16"
    insecure_registries: tuple[str, ...] = ("127.0.0.0/8", "::1/128")  # host[:port] or CIDR: plain HTTP allowed
    bridge_subnet6: str = ""  # IPv6 of the default network; "" = it has none
    #: Where networks without a subnet of their own get one: "10.200.0.0/16:24" cuts /24s; () = Docker's pools
    default_address_pools: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()  # base URLs tried before Docker Hub
    registry_certificates: str = "/etc/docker/certs.d"  # in <host[:port]>/: *.crt, *.cert and *.key
    #: What layers looked like in a registry stays on disk beside them, so that pushing them needs no compression
    keep_compressed_layers: bool = True
    runtime: str = "auto"  # auto, crun or runc
    seccomp_profile: str = "/usr/share/containers/seccomp.json"
    wireguard_program: str = ""  # encrypts where the kernel has no WireGuard: wireguard-go, boringtun-cli; "" = none
    selinux_enabled: bool = False  # containers have SELinux labels; needs a host with SELinux and a policy
    userns_remap: str = ""  # default, or user[:group] with ranges in subuid and subgid; "" = off
    subid_dir: str = "/etc"  # where subuid and subgid are
    labels: dict[str, str] = {}  # engine labels, for constraints
    log_level: str = "info"
    etcd: EtcdSettings = EtcdSettings()


Settings = TypeVar("Settings", bound=msgspec.Struct)


def load_agent(file: Path | None, environ: Mapping[str, str]) -> AgentSettings:
    """The agent's settings from this file, or from the usual one if there is one. InvalidArgument as `load`."""
    return load(AgentSettings, file or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None), environ)


def load(kind: type[Settings], file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Settings of `kind` from an optional TOML file and the environment.

    InvalidArgument names the file or variable, the key, and what was expected there.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as err:
            raise InvalidArgument(f"cannot read {file}: {err.strerror}") from err
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
            raise InvalidArgument(f"{file}: {err}") from err
        # Types of the file's own values are checked strictly: "2378" is not a number there.
        _convert(values, kind, f"{file}", strict=True)
    _merge_environment(values, kind, environ, ENV_PREFIX)
    return _convert(values, kind, f"{file}" if file else "environment", strict=False)


def _merge_environment(
    values: dict[str, Any], kind: type[msgspec.Struct], environ: Mapping[str, str], prefix: str
) -> None:
    """Lists are separated by commas, tables of strings are `key=value` pairs separated by commas."""
    for field in msgspec.structs.fields(kind):
        variable = prefix + field.name.upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            below = dict(values.get(field.name, {}))
            _merge_environment(below, field.type, environ, f"{variable}__")
            if below:
                values[field.name] = below
        elif (text := environ.get(variable)) is not None:
            parts = [part for part in text.split(",") if part]
            match get_origin(field.type):
                case builtins.tuple:
                    values[field.name] = parts
                case builtins.dict:
                    values[field.name] = dict(_pair(variable, part) for part in parts)
                case _:
                    values[field.name] = text


def _pair(variable: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"{variable}: expected key=value, not {text!r}")
    return key, value


def _convert(values: dict[str, Any], kind: type[Settings], where: str, *, strict: bool) -> Settings:
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as err:
        raise InvalidArgument(f"{where}: {err}") from err
