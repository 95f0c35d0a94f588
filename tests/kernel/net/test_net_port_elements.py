"""Rules and elements by raw messages: the kernel holds the same as by text."""

from __future__ import annotations

import subprocess

import pytest
from net_lab import Lab, in_own_network

from swarmlet_agent.net.dns_sockets import change_rules_here
from swarmlet_agent.net.nftset import ElementsError, ElementSocket
from swarmlet_agent.net.plan_dns_rules import dns_rules
from swarmlet_agent.net.plan_port_elements import port_changes
from swarmlet_agent.net.plan_rules import TABLE, TABLES, dns_ruleset, no_ruleset, ruleset
from swarmlet_agent.net.records import PortRecord

pytestmark = pytest.mark.kernel


def record(host_ip: str, host_port: int, target_ip: str, port: int = 80, protocol: str = "tcp") -> PortRecord:
    return PortRecord(port=port, protocol=protocol, host_ip=host_ip, host_port=host_port, target_ip=target_ip)


PORTS = (
    record("0.0.0.0", 8080, "172.17.0.2"),
    record("0.0.0.0", 5353, "172.17.0.2", 53, "udp"),
    record("192.0.2.1", 8081, "172.17.0.3", 8000, "sctp"),
    record("0.0.0.0", 0, "172.17.0.4", 443),
    record("::", 8080, "fd00::2"),
    record("2001:db8::1", 8082, "fd00::3", 81),
    record("::", 0, "fd00::4", 443, "udp"),
    record("0.0.0.0", 9000, "fd00::5"),  # the relay's: not in the kernel
)


def held() -> list[str]:
    """The elements of all maps and sets."""
    return [
        subprocess.run(["nft", "list", "table", *table.split()], check=True, capture_output=True, text=True).stdout
        for table in TABLES
    ]


@in_own_network
async def test_elements_are_what_text_would_have_made(lab: Lab) -> None:
    change_rules_here(ruleset([], PORTS))
    wanted = held()
    change_rules_here(ruleset([], PORTS[:3]))
    some = held()
    change_rules_here(ruleset([], ()))
    none = held()
    assert some[1] == none[1] and len({*wanted, *some, *none}) == 5
    with ElementSocket() as elements:
        elements.apply(port_changes((), PORTS))
        assert held() == wanted
        elements.apply(port_changes(PORTS, PORTS[:3]))
        assert held() == some
        # To another container in one step, and back.
        moved = (record("0.0.0.0", 8080, "172.17.0.9"), *PORTS[1:3])
        elements.apply(port_changes(PORTS[:3], moved))
        assert "172.17.0.9" in held()[0] and "172.17.0.2 . 80 " not in held()[0]
        elements.apply(port_changes(moved, PORTS[:3]))
        assert held() == some
        elements.apply(port_changes(PORTS[:3], ()))
        assert held() == none
        with pytest.raises(ElementsError):
            elements.apply(port_changes(PORTS[:1], ()))  # someone else took it away
        assert port_changes(PORTS, PORTS) == ()


@in_own_network
async def test_the_way_to_the_dns_server_is_what_text_would_have_made(lab: Lab) -> None:
    def listed() -> str:
        return subprocess.run(
            ["nft", "list", "table", *TABLE.split()], check=True, capture_output=True, text=True
        ).stdout

    change_rules_here(no_ruleset())
    change_rules_here(dns_ruleset(40053))
    wanted = listed()
    change_rules_here(no_ruleset())
    with ElementSocket() as rules:
        rules.make(dns_rules(40053), "the rules of a test")
        assert "dnat to 127.0.0.11:40053" in wanted and listed() == wanted
        rules.apply(())
