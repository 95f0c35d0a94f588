"""Pieces that the list and the inspection of containers have in common."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from swarmlet.model.container import EndpointSettings, PortBinding
from swarmlet_agent.decide.points import MountPoint


def mount_points(mounts: Iterable[MountPoint], tmpfs: Iterable[str]) -> list[dict[str, Any]]:
    """Engine API MountPoint. tmpfs: targets of HostConfig.Tmpfs (--tmpfs), which Docker shows there alone."""
    elsewhere = {posixpath.normpath("/" + target.lstrip("/")) for target in tmpfs}
    shown = []
    for mount in mounts:
        if mount.type == "tmpfs" and mount.destination in elsewhere:
            continue
        entry: dict[str, Any] = {"Type": mount.type}
        if mount.name:
            entry["Name"] = mount.name
        entry |= {"Source": mount.source, "Destination": mount.destination}
        if mount.driver:
            entry["Driver"] = mount.driver
        shown.append(entry | {"Mode": mount.mode, "RW": mount.rw, "Propagation": mount.propagation})
    return shown


def endpoint(settings: EndpointSettings) -> dict[str, Any]:
    """Engine API EndpointSettings with every field present."""
    ipam = settings.ipam_config
    return {
        "IPAMConfig": None if ipam is None else _ipam(ipam.ipv4_address, ipam.ipv6_address, ipam.link_local_ips),
        "Links": list(settings.links) or None,
        "Aliases": list(settings.aliases) or None,
        "MacAddress": settings.mac_address,
        "DriverOpts": settings.driver_opts or None,
        "GwPriority": settings.gw_priority,
        "NetworkID": settings.network_id,
        "EndpointID": settings.endpoint_id,
        "Gateway": settings.gateway,
        "IPAddress": settings.ip_address,
        "IPPrefixLen": settings.ip_prefix_len,
        "IPv6Gateway": settings.ipv6_gateway,
        "GlobalIPv6Address": settings.global_ipv6_address,
        "GlobalIPv6PrefixLen": settings.global_ipv6_prefix_len,
        "DNSNames": list(settings.dns_names) or None,
    }


def _ipam(ipv4: str, ipv6: str, link_local: tuple[str, ...]) -> dict[str, Any]:
    given = {"IPv4Address": ipv4, "IPv6Address": ipv6, "LinkLocalIPs": list(link_local)}
    return {name: value for name, value in given.items() if value}


def binding(value: PortBinding) -> dict[str, str]:
    return {"HostIp": value.host_ip, "HostPort": value.host_port}


def port_map(ports: Mapping[str, tuple[PortBinding, ...] | None]) -> dict[str, list[dict[str, str]] | None]:
    """Inspect's Ports: null for a port that is exposed but not published."""
    return {port: [binding(each) for each in bindings] if bindings else None for port, bindings in ports.items()}


def split_port(port: str) -> tuple[int, str]:
    """ "80/tcp" -> (80, "tcp"); the protocol may be missing. ValueError if the port is no number."""
    number, _, protocol = port.partition("/")
    return int(number), protocol or "tcp"
