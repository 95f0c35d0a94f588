"""What a cluster's settings (SwarmSpec of the Engine API) may say, at `docker swarm init` and at `update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from swarmlet.errors import InvalidArgument, NotSupported, rpc_words
from swarmlet.model.cluster import RaftSpec, SwarmSpec
from swarmlet.model.times import NS

MINIMUM_CERT_EXPIRY_NS = 3600 * NS
#: Whose 0 is a wish, and not what Go writes where nothing was said.
_MEANT_AT_ZERO = frozenset({"TaskHistoryRetentionLimit"})


def first_spec(said: Any) -> SwarmSpec | None:
    """The settings that a `docker swarm init` asks for, None where it leaves them all alone.

    A client sends zeros for what it did not set. InvalidArgument, NotSupported.
    """
    if not isinstance(said, Mapping):
        raise InvalidArgument("invalid JSON: Spec must be an object")
    try:
        spec = msgspec.convert(_said(said), SwarmSpec)
    except msgspec.ValidationError as err:
        raise InvalidArgument(f"invalid JSON: Spec: {err}") from err
    check_swarm_spec(spec)
    return None if spec == SwarmSpec() else spec


def _said(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without zeros, empty texts, lists and objects, at any depth."""
    kept = {key: _said(item) if isinstance(item, Mapping) else item for key, item in value.items()}
    return {key: item for key, item in kept.items() if item or (item is not None and key in _MEANT_AT_ZERO)}


def check_swarm_spec(spec: SwarmSpec) -> None:
    """InvalidArgument in dockerd's words; NotSupported: what this version does not honour is refused.

    Values for Raft are kept and shown, though there is none: they say how managers keep what they know, which no client
    can tell, and whoever sets them (Ansible's docker_swarm) wants to find them again.
    """
    if spec.name not in ("", "default"):
        raise InvalidArgument('swarm spec must be named "default"')
    if spec.dispatcher.heartbeat_period <= 0:
        raise InvalidArgument(rpc_words("heartbeat time period cannot be a negative duration"))
    if spec.ca_config.node_cert_expiry < MINIMUM_CERT_EXPIRY_NS:
        raise InvalidArgument(rpc_words("minimum certificate expiry time is: 1h0m0s"))
    if min(msgspec.structs.astuple(spec.raft)) < 0:
        raise InvalidArgument("invalid JSON: numbers of Raft cannot be negative")
    if spec.ca_config.external_cas:
        raise NotSupported("external certificate authorities are not supported")
    if spec.ca_config.force_rotate or spec.ca_config.signing_ca_cert or spec.ca_config.signing_ca_key:
        raise NotSupported("rotating the cluster's CA is not supported yet")
    if spec.encryption_config.auto_lock_managers:
        raise NotSupported("locking managers (autolock) is not supported: the cluster's keys are not in its state")
    if spec.task_defaults.log_driver is not None:
        raise NotSupported("a default log driver for tasks is not supported")


def raft_of(said: RaftSpec) -> RaftSpec:
    """The defaults where a client sent the zeros of what it did not set."""
    values = {name: value for name, value in msgspec.structs.asdict(said).items() if value}
    return RaftSpec(**values)
