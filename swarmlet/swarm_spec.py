"""What a cluster's settings (SwarmSpec of the Engine API) may say, at `docker swarm init` and at `update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from swarmlet.errors import InvalidArgument, NotSupported
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
    """InvalidArgument, NotSupported: what this version does not honour is refused."""
    if spec.name not in ("", "default"):
        raise InvalidArgument("rpc error: code = InvalidArgument desc = modification of cluster name is not allowed")
    if spec.dispatcher.heartbeat_period <= 0:
        raise InvalidArgument(
            "rpc error: code = InvalidArgument desc = heartbeat time period cannot be a negative duration"
        )
    if spec.ca_config.node_cert_expiry < MINIMUM_CERT_EXPIRY_NS:
        raise InvalidArgument(
            "rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s"
        )
    if spec.ca_config.external_cas or spec.ca_config.signing_ca_cert or spec.ca_config.signing_ca_key:
        raise NotSupported("external certificate authorities are not supported")
    if spec.encryption_config.auto_lock_managers:
        raise NotSupported("locking managers (autolock) is not supported")
    if spec.task_defaults.log_driver is not None:
        raise NotSupported("a default log driver for tasks is not supported")
    if spec.raft != RaftSpec():
        raise NotSupported("there is no Raft to configure: the cluster's state is kept in etcd")
