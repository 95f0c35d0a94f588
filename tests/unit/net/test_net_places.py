"""What was told of a network, and what differs from before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmlet.wire.networking import EndpointInfo, ServiceInfo
from swarmlet_agent.net.overlay.places import Places

endpoints = st.builds(
    EndpointInfo, network_id=st.just("n"), id=st.sampled_from("abc"), node_id=st.just("x"), node_addr=st.just(""),
    address=st.sampled_from(["10.0.0.1", "10.0.0.2"]), service_id=st.sampled_from(["", "s", "t"]),
    address6=st.sampled_from(["", "fd00::1", "fd00::2"]), serving=st.booleans(),
)
services = st.builds(
    ServiceInfo, network_id=st.just("n"), id=st.sampled_from("st"), name=st.sampled_from(["web", "db"])
)
steps = st.lists(
    st.one_of(endpoints, services, st.sampled_from(["clear", "take", "give up", "-a", "-b", "-c", "-s", "-t"])),
    max_size=15,
)


@given(steps=steps)
def test_changes_lead_from_what_was_taken_to_what_is_known(steps: list[EndpointInfo | ServiceInfo | str]) -> None:
    places = Places()
    taken_endpoints: dict[str, EndpointInfo] = {}
    taken_services: dict[str, ServiceInfo] = {}

    def take() -> None:
        nonlocal taken_endpoints, taken_services
        changes = places.take()
        for ident in {*taken_endpoints, *places.endpoints}:
            before, now = taken_endpoints.get(ident), places.endpoints.get(ident)
            assert (ident in changes.endpoints) == (before != now)
            assert before == now or changes.endpoints[ident] == before
        for ident in {*taken_services, *places.services}:
            assert (ident in changes.services) == (taken_services.get(ident) != places.services.get(ident))
        both = [*changes.endpoints.values(), *(places.endpoints.get(ident) for ident in changes.endpoints)]
        assert places.addresses(changes) == {
            address for one in both if one is not None for address in one.addresses
        }
        told = {one.service_id for one in both if one is not None and one.service_id}
        assert places.services_of(changes) == told | set(changes.services)
        taken_endpoints, taken_services = dict(places.endpoints), dict(places.services)
        assert not places.take()

    for step in steps:
        match step:
            case EndpointInfo():
                places.put(step)
            case ServiceInfo():
                places.put_service(step)
            case "take":
                take()
            case "clear":
                places.clear()
            case "give up":
                places.put_back(places.take())
            case _:
                places.remove(step[1])
                places.remove_service(step[1])
    take()
    for ident in ("s", "t"):
        own = {one.id for one in places.endpoints.values() if one.service_id == ident}
        assert {one.id for one in places.of_service(ident)} == own
    for address in ("10.0.0.1", "10.0.0.2", "fd00::1"):
        there = [one for one in places.endpoints.values() if address in one.addresses]
        at = places.at(address)
        assert (at is None) == (not there)
        assert at is None or at.serving == any(one.serving for one in there)
