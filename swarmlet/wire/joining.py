"""What a host that joins and its manager say to each other, as JSON over the manager's TLS port.

    GET  /swarmlet/v1/ca            the CA certificate, PEM (any client; checked by the digest in the token)
    POST /swarmlet/v1/join          JoinRequest -> Certificate (any client with a token)
    POST /swarmlet/v1/renew         RenewRequest -> Certificate (a node, by its certificate)
    POST /swarmlet/v1/local-join    JoinRequest without a token -> Certificate (by its unix socket, or another manager)
    GET  /swarmlet/v1/data-key      the key that secrets and configs are sealed with (a manager, by its certificate)
    GET  /swarmlet/v1/session       WebSocket (a node, by its certificate): see messages.py
"""

from __future__ import annotations

from swarmlet.model.base import Record
from swarmlet.model.cluster import SwarmSpec
from swarmlet.model.states import Availability, Role

CA_PATH = "/swarmlet/v1/ca"
JOIN_PATH = "/swarmlet/v1/join"
RENEW_PATH = "/swarmlet/v1/renew"
LOCAL_JOIN_PATH = "/swarmlet/v1/local-join"
DATA_KEY_PATH = "/swarmlet/v1/data-key"
SESSION_PATH = "/swarmlet/v1/session"


class Founding(Record, frozen=True, kw_only=True):
    """What `docker swarm init` says of the whole cluster. () and 0: as it is, or the default."""

    address_pools: tuple[str, ...] = ()
    subnet_size: int = 0
    data_path_port: int = 0
    spec: SwarmSpec | None = None


class JoinRequest(Record, frozen=True, kw_only=True):
    """addr: where this host is reached, "" = where the request came from. Of local joins only: founding, and
    manager_addr, "host:port" of this host's manager."""

    token: str = ""
    csr: str
    hostname: str = ""
    addr: str = ""
    availability: Availability = Availability.ACTIVE
    founding: Founding = Founding()
    manager_addr: str = ""

    def __repr__(self) -> str:
        return f"JoinRequest(hostname={self.hostname!r}, addr={self.addr!r})"


class RenewRequest(Record, frozen=True, kw_only=True):
    csr: str
    addr: str = ""


class Certificate(Record, frozen=True, kw_only=True):
    """The answer to all of them: cert and ca are PEM."""

    node_id: str
    role: Role
    cert: str
    ca: str
