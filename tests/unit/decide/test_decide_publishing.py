"""Labels that say how ports are published: all or one, and nothing that says nothing."""

from __future__ import annotations

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet.model.publishing import with_rules
from swarmlet.model.service import PortConfig

WEB = PortConfig(target_port=80, published_port=8080)
DNS = PortConfig(target_port=53, published_port=8080, protocol="udp")
OPEN = PortConfig(target_port=90)


def test_a_rule_holds_for_all_ports_and_what_is_said_of_one_wins() -> None:
    labels = {
        "swarmlet.publish.host-ip": "192.0.2.1", "swarmlet.publish.8080.host-ip": "192.0.2.2",
        "swarmlet.publish.8080/udp.host-ip": "2001:DB8::1", "swarmlet.publish.entry": "local",
        "swarmlet.publish.8080/tcp.entry": "all", "other": "x",
    }
    ruled = with_rules((WEB, DNS, OPEN), labels)
    assert [(port.host_ip, port.local_only) for port in ruled] == [
        ("192.0.2.2", False), ("2001:db8::1", True), ("192.0.2.1", True),
    ]  # fmt: skip
    assert with_rules((WEB, DNS), {"a": "b"}) == (WEB, DNS)


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("swarmlet.publish.host", "192.0.2.1", "is not known"),
        ("swarmlet.publish.8080/icmp.entry", "local", "is not known"),
        ("swarmlet.publish.host-ip", "eth0", "'eth0' is not an IP address"),
        ("swarmlet.publish.entry", "nearby", "'nearby' is not one of all, local"),
        ("swarmlet.publish.8081.entry", "local", "publishes no such port"),
        ("swarmlet.publish.8080/sctp.entry", "local", "publishes no such port"),
    ],
)
def test_a_label_that_says_nothing_is_refused(label: str, value: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as err:
        with_rules((WEB, DNS), {label: value})
    assert label in str(err.value)


def test_labels_of_publishing_need_ports() -> None:
    with pytest.raises(InvalidArgument, match="publishes no such port"):
        with_rules((), {"swarmlet.publish.entry": "local"})
