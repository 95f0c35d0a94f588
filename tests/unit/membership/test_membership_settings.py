"""Settings that a `docker swarm init` begins a cluster with, and what a node begins as."""

from __future__ import annotations

from typing import Any

import pytest

from swarmlet.errors import InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.cluster import CAConfig, DispatcherSpec, OrchestrationSpec, SwarmSpec
from swarmlet.model.states import Availability
from swarmlet.model.times import NS
from swarmlet.swarm_spec import first_spec
from swarmlet_agent.addresses import availability_of, founding_of

#: What the stock client sends when no flag of the kind was given.
NOTHING = {
    "Labels": None, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0}, "Dispatcher": {},
    "CAConfig": {}, "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": False},
}


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ({}, None), (NOTHING, None), ({"Name": "default"}, None),
        ({**NOTHING, "Orchestration": {"TaskHistoryRetentionLimit": 0}},
         SwarmSpec(orchestration=OrchestrationSpec(task_history_retention_limit=0))),
        ({**NOTHING, "Dispatcher": {"HeartbeatPeriod": 2 * NS}, "CAConfig": {"NodeCertExpiry": 7200 * NS}},
         SwarmSpec(dispatcher=DispatcherSpec(heartbeat_period=2 * NS), ca_config=CAConfig(node_cert_expiry=7200 * NS))),
        ({"Labels": {"site": "b"}}, SwarmSpec(labels={"site": "b"})),
    ],
)  # fmt: skip
def test_what_is_said_is_set_and_the_rest_is_as_always(said: dict[str, Any], spec: SwarmSpec | None) -> None:
    assert first_spec(said) == spec
    assert founding_of({"Spec": said, "DefaultAddrPool": ["10.20.0.0/16"]}).spec == spec
    assert founding_of({"Spec": said}).spec == spec


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ([], InvalidArgument, "Spec must be an object"),
        ({"Labels": {"a": 1}}, InvalidArgument, r"Spec: Expected `str`, got `int` - at `\$.Labels"),
        ({"Dispatcher": {"HeartbeatPeriod": -1}}, InvalidArgument, "heartbeat time period"),
        ({"CAConfig": {"NodeCertExpiry": 60 * NS}}, InvalidArgument, "minimum certificate expiry time is: 1h0m0s"),
        ({"EncryptionConfig": {"AutoLockManagers": True}}, NotSupported, "autolock"),
        ({"Raft": {"SnapshotInterval": -5}}, InvalidArgument, "numbers of Raft cannot be negative"),
        ({"CAConfig": {"ExternalCAs": [{"URL": "https://ca.example.com"}]}}, NotSupported, "external certificate"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(said: Any, kind: type[SwarmletError], told: str) -> None:
    with pytest.raises(kind, match=told):
        first_spec(said)


def test_a_node_begins_as_it_is_told_and_active_otherwise() -> None:
    assert availability_of({}) is availability_of({"Availability": ""}) is Availability.ACTIVE
    assert availability_of({"Availability": "drain"}) is Availability.DRAIN
    with pytest.raises(InvalidArgument, match="invalid Availability: 'asleep'"):
        availability_of({"Availability": "asleep"})
