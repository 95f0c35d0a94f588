"""How a port is published beyond what the Engine API has fields for: by labels of the service.

* `swarmlet.publish.host-ip=192.0.2.10`: the service's published ports are open on this address only, on the node
  that has it. Two services may then publish one port number on different addresses.
* `swarmlet.publish.entry=local`: only nodes that run a task of the service answer, each with its own tasks
  (Kubernetes' externalTrafficPolicy: Local); `all` is the rule.
* `swarmlet.publish.8080.host-ip=…`, `swarmlet.publish.8080/udp.entry=…`: of this published port only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.service import PortConfig

PREFIX = "swarmlet.publish."
_KEY = re.compile(r"swarmlet\.publish\.(?:([0-9]{1,5})(?:/(tcp|udp|sctp))?\.)?(host-ip|entry)")
_ENTRIES = ("all", "local")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One label. port 0: all published ports; protocol "": each."""

    label: str
    port: int
    protocol: str
    what: str
    value: str

    def concerns(self, port: PortConfig) -> bool:
        return self.port in (0, port.published_port) and self.protocol in ("", port.protocol)


def with_rules(ports: Sequence[PortConfig], labels: Mapping[str, str]) -> tuple[PortConfig, ...]:
    """The ports as the service's labels say they are published. InvalidArgument for a label that says nothing."""
    rules = sorted(_rules(labels), key=lambda rule: (bool(rule.port), bool(rule.protocol)))  # what is special, last
    for rule in rules:
        if not any(rule.concerns(port) for port in ports):
            raise InvalidArgument(f"label {rule.label}: the service publishes no such port")
    return tuple(_ruled(port, [rule for rule in rules if rule.concerns(port)]) for port in ports)


def _ruled(port: PortConfig, rules: Sequence[_Rule]) -> PortConfig:
    for rule in rules:
        if rule.what == "host-ip":
            port = replace(port, host_ip=rule.value)
        else:
            port = replace(port, local_only=rule.value == "local")
    return port


def _rules(labels: Mapping[str, str]) -> Iterator[_Rule]:
    for label, value in sorted(labels.items()):
        if not label.startswith(PREFIX):
            continue
        match = _KEY.fullmatch(label)
        if match is None:
            raise InvalidArgument(
                f"label {label} is not known: swarmlet.publish.[PORT[/PROTOCOL].]host-ip and ….entry are"
            )
        port, protocol, what = match.groups()
        if what == "host-ip":
            try:
                value = str(ip_address(value))
            except ValueError as err:
                raise InvalidArgument(f"label {label}: {value!r} is not an IP address") from err
        elif value not in _ENTRIES:
            raise InvalidArgument(f"label {label}: {value!r} is not one of {', '.join(_ENTRIES)}")
        yield _Rule(label, int(port or 0), protocol or "", what, value)
