"""The text of /etc/hosts, /etc/resolv.conf and /etc/hostname of a container. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, ip_address

from swarmlet.errors import InvalidArgument
from swarmlet_agent.net.plan_rules import DNS_ADDRESS

_LOCAL = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)
#: As Docker: a container whose host has only loopback resolvers is given public ones.
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
HOST_GATEWAY = "host-gateway"


@dataclass(frozen=True, slots=True)
class ResolvConf:
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """resolv.conf(5): the last search or domain line wins; what is not understood is left out."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        match words:
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *domains]:
                search = tuple(domains)
            case ["options", *values]:
                options += values
            case _:
                pass
    return ResolvConf(tuple(servers), search, tuple(options))


def is_loopback(server: str) -> bool:
    """True for a resolver that only the host itself can reach; False for what is no address."""
    try:
        return ip_address(server.split("%", 1)[0]).is_loopback
    except ValueError:
        return False


def resolv_conf(
    host: ResolvConf, *, embedded: bool, servers: Sequence[str], search: Sequence[str], options: Sequence[str]
) -> str:
    """A container's resolv.conf: its own wishes before the host's; embedded: the agent's server answers."""
    chosen = tuple(servers) or tuple(server for server in host.servers if not is_loopback(server)) or FALLBACK_SERVERS
    wanted_search = tuple(search) or host.search
    wanted_options = tuple(options) or host.options
    if embedded:
        chosen = (DNS_ADDRESS,)
        if not any(option.startswith("ndots:") for option in wanted_options):
            wanted_options += ("ndots:0",)
    lines = [f"nameserver {server}" for server in chosen]
    if wanted_search and tuple(wanted_search) != (".",):
        lines.append("search " + " ".join(wanted_search))
    if wanted_options:
        lines.append("options " + " ".join(wanted_options))
    return "\n".join(lines) + "\n"


def parse_extra_hosts(entries: Iterable[str], gateways: Sequence[str]) -> list[tuple[str, str]]:
    """(address, name) of "name:address" or "name=address"; "host-gateway" stands for each of `gateways`.

    InvalidArgument.
    """
    found: list[tuple[str, str]] = []
    for entry in entries:
        separator = "=" if "=" in entry else ":"
        name, _, address = entry.partition(separator)
        address = address.strip("[]")
        if address == HOST_GATEWAY:
            if not gateways:
                raise InvalidArgument(f"unable to derive the IP value for host-gateway in {entry!r}")
            addresses = tuple(gateways)
        else:
            try:
                ip_address(address)
            except ValueError as err:
                raise InvalidArgument(f"invalid extra host {entry!r}: expected name:address") from err
            addresses = (address,)
        if not name or any(char.isspace() for char in name):
            raise InvalidArgument(f"invalid extra host {entry!r}: bad name")
        found += [(each, name) for each in addresses]
    return found


def hosts(
    *, own: Iterable[str], hostname: str, domainname: str, extra: Iterable[tuple[str, str]],
    linked: Iterable[tuple[str, str]] = (),
) -> str:
    """A container's /etc/hosts. own: its addresses; linked: (address, names) of linked containers."""
    full = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines = [*_LOCAL, *extra, *linked]
    if full:
        lines += [(address, full) for address in own]
    return "".join(f"{address}\t{names}\n" for address, names in lines)


def host_hosts(text: str, extra: Iterable[tuple[str, str]]) -> str:
    """/etc/hosts in host mode: the host's, with the extra names."""
    body = text if not text or text.endswith("\n") else text + "\n"
    return body + "".join(f"{address}\t{name}\n" for address, name in extra)


def check_servers(servers: Iterable[str]) -> None:
    """InvalidArgument for a --dns that is no address."""
    for server in servers:
        try:
            if ":" not in server:
                IPv4Address(server)
            else:
                ip_address(server)
        except (AddressValueError, ValueError) as err:
            raise InvalidArgument(f"invalid DNS server {server!r}: not an IP address") from err
