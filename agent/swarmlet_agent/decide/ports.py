"""Ports as clients write them: exposed ones, and where they are to be published."""

from __future__ import annotations

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import ContainerCreate, PortBinding

_PROTOCOLS = ("tcp", "udp", "sctp")


def wanted_ports(request: ContainerCreate) -> dict[str, tuple[PortBinding, ...]]:
    """ "80/tcp" -> wanted bindings, () for a port that is only exposed. Publish-all gives each exposed one any port.

    InvalidArgument for what is no port, range or address.
    """
    host = request.host_config
    wanted: dict[str, tuple[PortBinding, ...]] = {}
    for text in request.exposed_ports:
        for port in expand_ports(text):
            wanted[port] = (PortBinding(),) if host.publish_all_ports else ()
    for text, bindings in host.port_bindings.items():
        ports = expand_ports(text)
        given = tuple(check_binding(binding) for binding in bindings or ())
        if len(ports) > 1 and any(binding.host_port for binding in given):
            raise InvalidArgument(f'invalid port specification: "{text}"')
        for port in ports:
            wanted[port] = given or (PortBinding(),)
    return wanted


def expand_ports(text: str) -> tuple[str, ...]:
    """ "80" -> 80/tcp; "8000-8002/udp" -> each of them."""
    numbers, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    first, dash, last = numbers.partition("-")
    low, high = _number(first, numbers), _number(last, numbers) if dash else _number(first, numbers)
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f"invalid proto: {protocol}")
    if not 0 < low <= high:
        raise InvalidArgument(f'invalid port specification: "{numbers}"')
    return tuple(f"{number}/{protocol}" for number in range(low, high + 1))


def check_binding(binding: PortBinding) -> PortBinding:
    """The binding, if its host port is empty, a port or a range."""
    first, dash, last = binding.host_port.partition("-")
    if binding.host_port:
        low = _number(first, binding.host_port)
        if dash and _number(last, binding.host_port) < low:
            raise InvalidArgument(f'invalid port specification: "{binding.host_port}"')
    return binding


def _number(text: str, whole: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise InvalidArgument(f'invalid port specification: "{whole}"')
