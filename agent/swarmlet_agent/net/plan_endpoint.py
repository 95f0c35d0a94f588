"""An endpoint's own options (`--network name=…,driver-opt=…`): the interface's name and its sysctls. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from swarmlet.errors import Conflict, InvalidArgument, NotSupported
from swarmlet_agent.net.records import EndpointRecord, NetworkRecord

_PREFIX = "com.docker.network."
OPTION_NAME = _PREFIX + "endpoint.ifname"
OPTION_SYSCTLS = _PREFIX + "endpoint.sysctls"
#: Of a network: what its interfaces in containers are called, before their number.
OPTION_NAME_PREFIX = _PREFIX + "container_iface_prefix"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
#: The docker command of some versions makes all of it lower case.
_SYSCTL = re.compile(r"(net\.[a-z0-9_]+\.[a-z0-9_]+)\.(?:IFNAME|ifname)\.([a-z0-9_]+)")


def check_options(options: Mapping[str, str]) -> None:
    """InvalidArgument, NotSupported. Words of others are kept and shown, as Docker does; they mean nothing here."""
    unknown = sorted(key for key in options if key.startswith(_PREFIX) and key not in (OPTION_NAME, OPTION_SYSCTLS))
    if unknown:
        raise NotSupported(f"endpoint option {unknown[0]} is not supported")
    name = options.get(OPTION_NAME, "")
    if OPTION_NAME in options and (not _NAME.fullmatch(name) or name == "lo"):
        raise InvalidArgument(f"invalid interface name {name!r}: at most 15 of letters, digits, '_', '.' and '-'")
    sysctls(options, "eth0")


def sysctls(options: Mapping[str, str], interface: str) -> list[tuple[str, str]]:
    """("net/ipv4/conf/eth0/log_martians", "1") of each. InvalidArgument for what is not of one interface."""
    found = []
    for text in filter(None, options.get(OPTION_SYSCTLS, "").split(",")):
        key, equals, value = text.partition("=")
        match = _SYSCTL.fullmatch(key)
        if match is None or not equals or not value:
            raise InvalidArgument(
                f"invalid {OPTION_SYSCTLS} {text!r}: expected net.<a>.<b>.IFNAME.<c>=<value>, separated by commas"
            )
        found.append((f"{match[1].replace('.', '/')}/{interface}/{match[2]}", value))
    return found


def interface_name(options: Mapping[str, str], network: NetworkRecord, others: Sequence[EndpointRecord]) -> str:
    """The name asked for, else the network's prefix (eth) with the lowest number that is free. Conflict."""
    used = {endpoint.interface for endpoint in others}
    if wanted := options.get(OPTION_NAME, ""):
        if wanted in used:
            raise Conflict(f"interface name {wanted} is used by another network of this container")
        return wanted
    prefix = network.options.get(OPTION_NAME_PREFIX, "") or "eth"
    return next(name for number in range(len(used) + 1) if (name := f"{prefix}{number}") not in used)
