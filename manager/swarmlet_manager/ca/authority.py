"""The cluster's certificate authority: makes the cluster on its first start, lets hosts in, renews.

Any manager may sign (the CA's key is in the cluster record); a join also needs the leader, because the new
node's record is written before its certificate is handed out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from msgspec.structs import replace

from swarmlet.errors import Conflict, Forbidden, NotAManager, StaleView
from swarmlet.issuing import issue, new_ca, requested_key, sign_request
from swarmlet.log import get_logger
from swarmlet.model.cluster import Cluster, SwarmSpec
from swarmlet.model.ids import cluster_id_of, new_cluster_id
from swarmlet.model.node import Node, NodeDescription, NodeSpec
from swarmlet.model.states import Availability, Role
from swarmlet.model.times import NS
from swarmlet.pki import Identity, KeyPair, new_join_token, parse_join_token, same_token
from swarmlet.swarm_spec import check_swarm_spec
from swarmlet.wire.joining import Certificate, Founding
from swarmlet_manager.ca.seal import new_key
from swarmlet_manager.control.ports import StorePort
from swarmlet_manager.state import Put

log = get_logger(__name__)

NOTHING_SAID = Founding()


class Authority:
    def __init__(
        self,
        store: StorePort,
        *,
        now: Callable[[], int] = time.time_ns,
        new_id: Callable[[], str] = new_cluster_id,
    ) -> None:
        self._store = store
        self._now = now
        self._new_id = new_id

    async def ensure_cluster(self, spec: SwarmSpec | None = None) -> Cluster:
        """The cluster's record; the leader makes it, with CA and tokens, where there is none yet."""
        while self._store.state.cluster is None:
            ident, now = self._new_id(), self._now()
            ca = new_ca(ident)
            cluster = Cluster(
                id=ident, spec=spec or SwarmSpec(), ca_cert_pem=ca.cert_pem, ca_key_pem=ca.key_pem,
                worker_token=new_join_token(ca.cert_pem), manager_token=new_join_token(ca.cert_pem),
                seal_key=new_key(), created_at=now, updated_at=now,
            )
            try:
                await self._store.commit([Put(cluster)])
            except StaleView:  # another manager was first: use what it made
                continue
            log.info("cluster created", cluster_id=ident)
        return self._store.state.cluster

    def ca_pem(self) -> str:
        return self._cluster().ca_cert_pem

    def is_manager_token(self, token: str) -> bool:
        return same_token(token, self._cluster().manager_token)

    async def join(
        self, token: str, csr: str, hostname: str, addresses: Sequence[str],
        availability: Availability = Availability.ACTIVE,
    ) -> Certificate:
        """A new node, with the role its token gives. InvalidArgument for what is no token or no CSR, Forbidden for
        a token that is not (or no longer) valid."""
        cluster = self._cluster()
        parse_join_token(token)
        if same_token(token, cluster.worker_token):
            role = Role.WORKER
        elif same_token(token, cluster.manager_token):
            role = Role.MANAGER
        else:
            raise Forbidden("rpc error: code = PermissionDenied desc = the join token is not valid for this cluster")
        return await self.admit(role, csr, hostname, addresses, availability=availability)

    async def admit(
        self, role: Role, csr: str, hostname: str, addresses: Sequence[str], *, manager_addr: str = "",
        founding: Founding = NOTHING_SAID, availability: Availability = Availability.ACTIVE,
    ) -> Certificate:
        """A new node without a token: for the manager's own host, whose manager is at manager_addr.

        Who asks again with the same key, since the answer was lost, is told of the same node. founding: what the
        cluster is to be like, while it has no node yet. Conflict if it is otherwise; InvalidArgument, NotSupported for
        settings that no cluster can have.
        """
        if founding.spec is not None:
            check_swarm_spec(founding.spec)
        key = requested_key(csr)
        while True:
            cluster, now = self._cluster(), self._now()
            founded = _founded(cluster, founding)
            if founded != cluster and self._store.state.nodes:
                raise Conflict(
                    f"cluster {cluster.id} is there already, with DefaultAddrPool {', '.join(cluster.address_pools)}, "
                    f"SubnetSize {cluster.subnet_size} and DataPathPort {cluster.data_path_port}: these cannot be "
                    "changed; other settings can, by docker swarm update"
                )
            node_id = _node_id(cluster, role, key)
            if (node := self._store.state.nodes.get(node_id)) is not None:
                log.info("node admitted again", node_id=node_id, role=node.spec.role, hostname=hostname)
                break
            node = Node(
                id=node_id, spec=NodeSpec(role=role, availability=availability),
                description=NodeDescription(hostname=hostname),
                addr=addresses[0] if addresses else "", manager_addr=manager_addr,
                created_at=now, updated_at=now, state_changed_at=now,
            )
            try:
                await self._store.commit([Put(node)] if founded == cluster else [Put(founded), Put(node)])
            except StaleView:  # it asks twice at once, or the cluster's record has changed: look again
                continue
            log.info("node admitted", node_id=node_id, role=role, hostname=hostname)
            break
        cert = self._sign(founded, csr, Identity(node_id, node.spec.role, cluster.id), addresses)
        return Certificate(node_id=node_id, role=node.spec.role, cert=cert, ca=cluster.ca_cert_pem)

    def renew(self, identity: Identity, csr: str, addresses: Sequence[str]) -> Certificate:
        """A fresh certificate for a node that is still a member, with the role it now has."""
        cluster = self._cluster()
        node = self._store.state.nodes.get(identity.node_id)
        if node is None or identity.cluster_id != cluster.id:
            raise Forbidden(f"node {identity.node_id} is not a member of this cluster")
        cert = self._sign(cluster, csr, Identity(node.id, node.spec.role, cluster.id), addresses)
        return Certificate(node_id=node.id, role=node.spec.role, cert=cert, ca=cluster.ca_cert_pem)

    def own_certificate(self, name: str, addresses: Sequence[str]) -> KeyPair:
        """A certificate for this manager's own listening socket; its key stays in memory."""
        cluster = self._cluster()
        return issue(_ca(cluster), Identity(name, Role.MANAGER, cluster.id), addresses, _life(cluster))

    def _sign(self, cluster: Cluster, csr: str, identity: Identity, addresses: Sequence[str]) -> str:
        return sign_request(_ca(cluster), csr, identity, addresses, _life(cluster))

    def _cluster(self) -> Cluster:
        cluster = self._store.state.cluster
        if cluster is None:
            raise NotAManager
        return cluster


def _node_id(cluster: Cluster, role: Role, key: bytes) -> str:
    """Of who has this key. Who asks for another role is another node: the user has changed his mind."""
    return cluster_id_of(b"\0".join((b"swarmlet node", cluster.id.encode(), role.value.encode(), key)))


def _founded(cluster: Cluster, founding: Founding) -> Cluster:
    said = {name: value for name in Founding.__struct_fields__ if (value := getattr(founding, name))}
    return replace(cluster, **said)


def _ca(cluster: Cluster) -> KeyPair:
    return KeyPair(cluster.ca_cert_pem, cluster.ca_key_pem)


def _life(cluster: Cluster) -> timedelta:
    return timedelta(seconds=cluster.spec.ca_config.node_cert_expiry / NS)
