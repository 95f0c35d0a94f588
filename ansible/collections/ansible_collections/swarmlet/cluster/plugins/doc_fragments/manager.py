"""The options of whatever asks a manager; `engine_api.ARGUMENTS` are the same for modules."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  docker_host:
    description: How a manager is reached, C(unix:///path) or C(tcp://host:port).
    type: str
    default: unix:///run/swarmlet/manager.sock
  ca_path:
    description: The CA of the cluster (PEM), for TCP.
    type: path
  client_cert:
    description: The client's certificate (PEM), for TCP.
    type: path
  client_key:
    description: The key of the client's certificate (PEM), for TCP.
    type: path
"""
