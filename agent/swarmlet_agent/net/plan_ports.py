"""Published ports: what is wanted, which host ports may serve it, what stands in the way. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import PortBinding
from swarmlet_agent.net.records import PortRecord

#: Where ports that nobody named come from (the kernel's own ephemeral range, as Docker).
EPHEMERAL = range(32768, 61000)
PROTOCOLS = ("tcp", "udp", "sctp")
ANY, ANY6 = "0.0.0.0", "::"
ANY_OF_ALL = (ANY, ANY6)


@dataclass(frozen=True, slots=True)
class PortWish:
    """A container's port wanted on the host. first 0: any free port; first < last: any of that range.

    host_ips: each is to have it, all with the same number.
    """

    port: int
    protocol: str
    host_ips: tuple[str, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class HostPort:
    """Something that only one can have."""

    host_ip: str
    protocol: str
    port: int


def parse_ports(ports: Mapping[str, tuple[PortBinding, ...]], default_host_ips: tuple[str, ...]) -> list[PortWish]:
    """Every wanted binding, fixed ones first so that no random one takes their port. InvalidArgument."""
    wishes = []
    for key, bindings in ports.items():
        port, protocol = parse_key(key)
        for binding in bindings:
            host_ip = _host_ip(binding.host_ip, key)
            first, last = _host_port(binding.host_port, key)
            wishes.append(PortWish(port, protocol, (host_ip,) if host_ip else default_host_ips, first, last))
    return sorted(wishes, key=lambda wish: (wish.first == 0, wish.last - wish.first))


def parse_key(key: str) -> tuple[int, str]:
    """(80, "tcp") of "80/tcp" or "80". InvalidArgument."""
    text, _, protocol = key.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f"invalid port specification {key!r}: unknown protocol {protocol!r}")
    return _number(text, key), protocol


def candidates(wish: PortWish, start: int) -> Iterator[int]:
    """Host ports to try, in order. start: where the walk through the ephemeral range goes on."""
    if wish.first:
        yield from range(wish.first, wish.last + 1)
        return
    offset = start - EPHEMERAL.start
    for step in range(len(EPHEMERAL)):
        yield EPHEMERAL[(offset + step) % len(EPHEMERAL)]


def blocker(wanted: HostPort, taken: Collection[HostPort]) -> HostPort | None:
    """The one of `taken` (same host address, or either is all addresses of that family) that has this port."""
    whole = ANY6 if ":" in wanted.host_ip else ANY
    for port in (wanted, HostPort(whole, wanted.protocol, wanted.port)):
        if port in taken:
            return port
    if wanted.host_ip != whole:
        return None
    same = (other for other in taken if (other.port, other.protocol) == (wanted.port, wanted.protocol))
    return next((other for other in same if (":" in other.host_ip) == (":" in whole)), None)


def published(ports: Collection[PortRecord], wishes: Mapping[str, object]) -> dict[str, tuple[PortBinding, ...]]:
    """As an attachment shows it: every exposed port, with its bindings if it has any."""
    shown: dict[str, tuple[PortBinding, ...]] = {}
    for key in wishes:
        port, protocol = parse_key(key)
        shown[f"{port}/{protocol}"] = tuple(
            PortBinding(host_ip=record.host_ip, host_port=str(record.host_port))
            for record in sorted(ports, key=lambda record: ":" in record.host_ip)
            if record.port == port and record.protocol == protocol and record.host_port
        )
    return shown


def _host_ip(text: str, key: str) -> str:
    if not text:
        return ""
    try:
        return str(ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError as err:
        raise InvalidArgument(f"invalid port specification {key!r}: invalid IP address {text!r}") from err


def _host_port(text: str, key: str) -> tuple[int, int]:
    if not text or text == "0":
        return 0, 0
    low, dash, high = text.partition("-")
    first = _number(low, key)
    last = _number(high, key) if dash else first
    if last < first:
        raise InvalidArgument(f"invalid port specification {key!r}: invalid range {text!r}")
    return first, last


def _number(text: str, key: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise InvalidArgument(f"invalid port specification {key!r}: invalid port {text!r}")
    return int(text)


def default_host_ips(binding: str, *, host_has_ipv6: bool) -> tuple[str, ...]:
    """Where a port is published that names no address. binding: the network's setting, "" or 0.0.0.0 for all."""
    if binding not in ("", ANY):
        return (binding,)
    return ANY_OF_ALL if host_has_ipv6 else (ANY,)


def aim(host_ips: Collection[str], target: str, target6: str) -> dict[str, str]:
    """Which of a container's addresses ("": it has none) each host address leads to: of its own family if there is
    one."""
    return {host_ip: (target6 or target) if ":" in host_ip else (target or target6) for host_ip in host_ips}


def reachable(wishes: Collection[PortWish], target: str, target6: str) -> list[PortWish]:
    """Without what no one can serve: SCTP from one family to the other. InvalidArgument if it was asked for by name."""
    kept = []
    for wish in wishes:
        host_ips = wish.host_ips
        if wish.protocol == "sctp":
            host_ips = tuple(host_ip for host_ip in host_ips if (target6 if ":" in host_ip else target))
        if not host_ips:
            raise InvalidArgument(
                f"port {wish.port}/sctp: the container has no address of the family of {wish.host_ips[0]}, and SCTP is "
                "not relayed from one to the other"
            )
        kept.append(replace(wish, host_ips=host_ips))
    return kept


def split_routed(
    wishes: Collection[PortWish], targets: tuple[str, str], routed: tuple[bool, bool]
) -> tuple[list[PortWish], list[PortRecord]]:
    """What needs ports of the host, and what is open at the container itself. routed: IPv4, IPv6 of its network."""
    mapped, opened = [], []
    for wish in wishes:
        left = tuple(host_ip for host_ip in wish.host_ips if not routed[":" in host_ip])
        opened += [
            PortRecord(port=wish.port, protocol=wish.protocol, host_ip=host_ip, host_port=0, target_ip=target)
            for host_ip in wish.host_ips if host_ip not in left and (target := targets[":" in host_ip])
        ]
        if left:
            mapped.append(replace(wish, host_ips=left))
    return mapped, opened
