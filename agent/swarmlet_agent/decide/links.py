"""`--link`: the old way for containers of the default network to know each other (moby daemon/links).

A record keeps links as inspect shows them, "/target:/self/alias". A linked container finds the other's name and
alias in /etc/hosts (the networks write those), and its address, exposed ports and environment in variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.container import HostConfig


def parse_link(text: str) -> tuple[str, str]:
    """(container, alias) of "name", "name:alias" or "/name:/self/alias". Internal: dockerd has no other status for it.
    """
    if not text:
        raise Internal("empty string specified for links")
    name, separator, alias = text.partition(":")
    name = name.removeprefix("/")
    alias = alias.rsplit("/", 1)[-1] if separator else name
    if not name or not alias or text.count(":") > 1:
        raise Internal(f"bad format for links: {text}")
    return name, alias


def link_text(target: str, own: str, alias: str) -> str:
    """The form that is kept. target, own: names without a slash in front."""
    return f"/{target}:/{own}/{alias}"


def parent_of(ref: str) -> tuple[str, str]:
    """(container, alias) of a name that a link has made: "parent/alias", with or without a slash in front; ("", "") of
    every other reference."""
    parent, separator, alias = ref.removeprefix("/").partition("/")
    return (parent, alias) if separator else ("", "")


def meant_by(links: Sequence[str], alias: str) -> str:
    """The name of the container that these links call `alias`; "" if none does."""
    return next((target for target, name in map(parse_link, links) if name == alias), "")


def link_names(all_links: Iterable[Sequence[str]]) -> Mapping[str, tuple[str, ...]]:
    """By a container's name: what those that link to it call it, "/parent/alias"."""
    found: dict[str, tuple[str, ...]] = {}
    for text in (text for links in all_links for text in links):
        target, _, name = text.removeprefix("/").partition(":")
        found[target] = (*found.get(target, ()), name)
    return found


def check_links(host: HostConfig) -> None:
    """InvalidArgument for what is malformed, or makes no sense with the network mode."""
    for text in host.links:
        parse_link(text)
    if not host.links:
        return
    kind = host.network_mode.partition(":")[0]
    if kind in ("host", "container"):
        raise InvalidArgument(
            f"conflicting options: {kind} type networking can't be used with links. "
            "This would result in undefined behavior"
        )


def renamed(links: Sequence[str], old: str, new: str) -> tuple[str, ...]:
    """The links once the container `old`, at either end, is called `new`."""
    result = []
    for text in links:
        target, alias = parse_link(text)
        own = text.partition(":")[2].removeprefix("/").partition("/")[0]
        result.append(link_text(new if target == old else target, new if own == old else own, alias))
    return tuple(result)


def link_env(own: str, alias: str, address: str, exposed: Iterable[str], env: Iterable[str]) -> tuple[str, ...]:
    """Variables that tell `own` of the container it calls `alias`.

    exposed: "80/tcp" …; env: the other's, of which PATH and HOME are not told.
    """
    prefix = alias.upper().replace("-", "_")
    ports = sorted({_port(text) for text in exposed}, key=lambda port: (port[1] != "tcp", port[1], port[0]))
    found = []
    if ports:
        number, protocol = ports[0]
        found.append(f"{prefix}_PORT={protocol}://{address}:{number}")
    found += _ranges(prefix, address, ports)
    for number, protocol in ports:
        name = f"{prefix}_PORT_{number}_{protocol.upper()}"
        found += [
            f"{name}={protocol}://{address}:{number}", f"{name}_ADDR={address}", f"{name}_PORT={number}",
            f"{name}_PROTO={protocol}",
        ]  # fmt: skip
    found.append(f"{prefix}_NAME=/{own}/{alias}")
    for entry in env:
        key, separator, value = entry.partition("=")
        if separator and key not in ("PATH", "HOME"):
            found.append(f"{prefix}_ENV_{key}={value}")
    return tuple(found)


def _ranges(prefix: str, address: str, ports: Sequence[tuple[int, str]]) -> Iterable[str]:
    """Of three and more ports in a row, the first and the last."""
    start = 0
    while start < len(ports):
        end = start
        while end + 1 < len(ports) and ports[end + 1] == (ports[end][0] + 1, ports[end][1]):
            end += 1
        if end > start + 1:
            (first, protocol), (last, _) = ports[start], ports[end]
            name = f"{prefix}_PORT_{first}_{protocol.upper()}"
            yield f"{name}_START={protocol}://{address}:{first}"
            yield f"{name}_ADDR={address}"
            yield f"{name}_PROTO={protocol}"
            yield f"{name}_PORT_START={first}"
            yield f"{prefix}_PORT_{last}_{protocol.upper()}_END={protocol}://{address}:{last}"
            yield f"{name}_PORT_END={last}"
        start = end + 1


def _port(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return int(number), protocol or "tcp"
