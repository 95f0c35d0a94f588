"""What a container asks of a network is refused in dockerd's words, all at once."""

from __future__ import annotations

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings
from swarmlet_agent.net.plan_attach import check_settings
from swarmlet_agent.net.records import NetworkRecord

BRIDGE = NetworkRecord(id="1" * 64, name="bridge", subnet="172.17.0.0/16")
OWN = NetworkRecord(id="2" * 64, name="own", subnet="10.1.0.0/16", chosen_subnet=True)
PLAIN = NetworkRecord(id="3" * 64, name="plain", subnet="172.18.0.0/16")
_PREDEFINED = "user specified IP address is supported on user defined networks only"
_WITHIN = "no configured subnet or ip-range contain the IP address"
_CHOSEN = "user specified IP address is supported only when connecting to networks with user configured subnets"


@pytest.mark.parametrize(
    ("network", "address", "told"),
    [
        (BRIDGE, "172.17.0.9", _PREDEFINED),
        (BRIDGE, "odd", f"* {_PREDEFINED}\n* invalid IPv4 address: odd\n* {_WITHIN} odd"),
        (PLAIN, "172.18.0.9", _CHOSEN),
        (OWN, "10.2.0.1", f"{_WITHIN} 10.2.0.1"),
        (OWN, "0.0.0.0", f"* invalid IPv4 address: 0.0.0.0\n* {_WITHIN} 0.0.0.0"),
        (OWN, "fd00::1", f"* invalid IPv4 address: fd00::1\n* {_WITHIN} fd00::1"),
    ],
)
def test_each_thing_that_is_wrong_with_an_address_is_told(network: NetworkRecord, address: str, told: str) -> None:
    settings = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address=address))

    with pytest.raises(InvalidArgument) as refused:
        check_settings(network, settings, "invalid config for network it: ")

    assert str(refused.value) == f"invalid config for network it: invalid endpoint settings:\n{told}"


def test_an_address_of_a_chosen_subnet_is_fine() -> None:
    check_settings(OWN, EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.1.0.9")))
