"""Networks of the cluster: what may be asked for, which addresses and which VNI one gets, and who uses it. Pure.

Subnets are unique in the cluster: a published port leads to a task by its address alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, ip_network

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotSupported
from swarmlet.ipam import check_ipam, config_of, plan_family, unique_local_pools
from swarmlet.model.cluster import Cluster
from swarmlet.model.defaults import cluster_networks, ingress_ports
from swarmlet.model.network import OPTION_MTU, Ipam, Network, NetworkCreate, Subnet, vxlan_mtu
from swarmlet.model.states import NodeState
from swarmlet.model.ways import WAYS_BYTES
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State

#: SwarmKit's first number is 4096, which stands for the routing mesh here.
FIRST_VNI, LAST_VNI = 4097, 0xFFFFFF
#: Where a node does not tell.
UNDERLAY_MTU = 1500
#: What a network may carry (RFC 8200: IPv6 needs no less than 1280).
LARGEST_MTU, IPV6_LEAST_MTU = vxlan_mtu(65_535, ""), 1280
#: SwarmKit's rule for names of networks.
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_.]?[a-zA-Z0-9]+)*")
INGRESS = "ingress"
_PREDEFINED = ("bridge", "host", "none", "default")


def plan_network(state: State, spec: NetworkCreate, network_id: str, now: int) -> Network:
    """The record of a new network. InvalidArgument, NotSupported, Conflict (name), Forbidden (subnet in use)."""
    _check(state, spec)
    check_ipam(spec.ipam, ipv6=spec.enable_ipv6)
    known = [part for network in state.networks.values() for part in network.families]
    used = [ip_network(part.subnet) for part in known]
    asked = config_of(spec.ipam, 4, spec.driver)
    pools = () if asked.subnet else (pick_subnet(state, [net for net in used if isinstance(net, IPv4Network)]),)
    v4, v6 = plan_family(asked, used=used, host_routes=(), pools=pools), Subnet()
    if spec.enable_ipv6:
        # Where nobody chose: the cluster's own unique local network.
        seed = "" if state.cluster is None else state.cluster.id
        asked = config_of(spec.ipam, 6, spec.driver)
        v6 = plan_family(asked, used=used, host_routes=(), pools=unique_local_pools(seed))
    return Network(
        id=network_id, spec=spec, subnet=v4.subnet, gateway=v4.gateway, ip_range=v4.ip_range, v6=v6,
        vni=next_vni(state.networks.values()), mtu=_mtu(state, spec), created_at=now, updated_at=now,
    )


def plan_ingress(state: State, network_id: str, now: int) -> Network:
    """The network of the routing mesh: made by us, once a service publishes a port."""
    used = [ip_network(part.subnet) for network in state.networks.values() for part in network.families]
    subnet = pick_subnet(state, [net for net in used if isinstance(net, IPv4Network)])
    seed = "" if state.cluster is None else state.cluster.id
    v6 = plan_family(config_of(Ipam(), 6, "overlay"), used=used, host_routes=(), pools=unique_local_pools(seed))
    # In Swarm it has no IPv6, and its clients none either.
    spec = NetworkCreate(name=INGRESS, driver="overlay", ingress=True, enable_ipv6=True)
    return Network(
        id=network_id, spec=spec, subnet=str(subnet), gateway=str(subnet.network_address + 1), v6=v6,
        vni=next_vni(state.networks.values()), mtu=_mtu(state, spec), created_at=now, updated_at=now,
    )


def pick_subnet(state: State, used: Iterable[IPv4Network]) -> IPv4Network:
    """The first of the cluster's pools that no network has and no node lives in."""
    cluster = state.cluster or Cluster(id="")
    taken = [*used, *_hosts(text for node in state.nodes.values() for text in (node.addr, node.data_addr))]
    for pool in cluster.address_pools:
        for subnet in _cuts(IPv4Network(pool), cluster.subnet_size, taken):
            return subnet
    raise Conflict(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network: "
        f"{', '.join(cluster.address_pools)} in subnets of /{cluster.subnet_size} are all in use"
    )


def next_vni(networks: Iterable[Network]) -> int:
    """One more than the highest in use: a number rests as long as possible, since a node may be slow to forget it."""
    used = {network.vni for network in networks}
    highest = max(used, default=FIRST_VNI - 1)
    if highest < LAST_VNI:
        return highest + 1
    return next(number for number in range(FIRST_VNI, LAST_VNI) if number not in used)


def users_of(state: State, network: Network) -> str:
    """Who keeps a network from being removed, in SwarmKit's words; "" for nobody."""
    for service in state.services.values():
        if network.spec.ingress and not service.pending_delete and ingress_ports(service.ports):
            return f"ingress network cannot be removed because service {service.id} depends on it"
        if not service.pending_delete and network.id in cluster_networks(service.spec.task_template):
            return f"network {network.id} is in use by service {service.id}"
    for task in state.tasks_on_network(network.id):
        owner = state.services.get(task.service_id)
        # A task whose service is being removed is about to be told to go.
        if task.is_active and owner is not None and not owner.pending_delete:
            return f"network {network.id} is in use by task {task.id}"
    for lease in state.leases_on_network(network.id):
        return f"network {network.id} is in use by container {lease.container_name} on node {lease.node_id}"
    return ""


def is_quiet(state: State, network: Network) -> bool:
    """Nothing of it can be on any node any more."""
    tasks = state.tasks_on_network(network.id)
    return all(is_gone(task) for task in tasks) and not state.leases_on_network(network.id)


def _check(state: State, spec: NetworkCreate) -> None:
    name = spec.name
    if not name:
        raise InvalidArgument("meta: name must be provided")
    if name in _PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if not _NAME.fullmatch(name):
        raise InvalidArgument("name must be valid as a DNS name component")
    if state.network_named(name) is not None or (name == INGRESS and not spec.ingress):
        raise Conflict(f"network with name {name} already exists")
    if spec.driver != "overlay":
        raise NotFound("plugin", spec.driver, f"network driver {spec.driver} cannot span nodes: use overlay")
    if not spec.enable_ipv4:
        raise NotSupported("IPv4 cannot be disabled on a network of the cluster (EnableIPv4=false)")
    if spec.ingress:
        _check_ingress(state, spec)
    if spec.config_only or (spec.config_from is not None and spec.config_from.network):
        raise NotSupported("config-only and config-from networks cannot span nodes")
    if spec.ipam.driver not in ("", "default"):
        raise NotSupported(f"IPAM driver {spec.ipam.driver} is not supported; use default")
    if spec.encrypted:
        _check_encryption(state, spec)
    for option in sorted(spec.options):
        if option.startswith("com.docker.network.") and option != OPTION_MTU:
            raise NotSupported(f"network option {option} is not supported")


def _check_encryption(state: State, spec: NetworkCreate) -> None:
    """Every node that is there can encrypt: else its tasks would depend on where they are placed."""
    if spec.ingress:
        raise NotSupported(f"network {spec.name}: packets of the routing mesh cannot be encrypted")
    lacking = [node for node in state.nodes.values() if node.ways.lacking and node.state is NodeState.READY]
    if lacking:
        node, more = lacking[0], len(lacking) - 1
        raise NotSupported(
            f"network {spec.name}: node {node.description.hostname or node.id}"
            f"{f' and {more} more' if more else ''} cannot encrypt: {node.ways.lacking}"
        )


def _check_ingress(state: State, spec: NetworkCreate) -> None:
    """There is one network of the routing mesh, and clients come into it from outside."""
    if state.ingress is not None:
        raise Conflict(
            f"rpc error: code = AlreadyExists desc = ingress network ({state.ingress.id}) is already present"
        )
    if spec.attachable:
        raise InvalidArgument("ingress network cannot be attachable")
    if spec.internal:
        raise InvalidArgument("ingress network cannot be internal")


def _mtu(state: State, spec: NetworkCreate) -> int:
    text = spec.options.get(OPTION_MTU, "")
    if not text:
        if spec.encrypted:  # addresses inside are IPv4's
            underlay = min((node.data_mtu or UNDERLAY_MTU for node in state.nodes.values()), default=UNDERLAY_MTU)
            return vxlan_mtu(underlay - WAYS_BYTES, "")
        carried = (vxlan_mtu(node.data_mtu or UNDERLAY_MTU, node.data_path) for node in state.nodes.values())
        return min(carried, default=vxlan_mtu(UNDERLAY_MTU, ""))
    least = IPV6_LEAST_MTU if spec.enable_ipv6 else 68
    if not text.isdigit() or not least <= int(text) <= LARGEST_MTU:
        raise InvalidArgument(
            f"invalid value {text!r} for network option {OPTION_MTU}: expected {least} to {LARGEST_MTU}"
        )
    return int(text)


def _cuts(pool: IPv4Network, size: int, taken: list[IPv4Network]) -> Iterator[IPv4Network]:
    """Free subnets of a pool in order; jumps over what is taken instead of trying each subnet inside it."""
    size = max(size, pool.prefixlen)
    step = 1 << (32 - size)
    at, end = int(pool.network_address), int(pool.broadcast_address)
    while at <= end:
        subnet = IPv4Network((at, size))
        blocking = next((other for other in taken if other.overlaps(subnet)), None)
        if blocking is None:
            yield subnet
            at += step
        else:
            after = max(int(blocking.broadcast_address), int(subnet.broadcast_address)) + 1
            at = -(-after // step) * step


def _hosts(addresses: Iterable[str]) -> Iterator[IPv4Network]:
    for text in addresses:
        try:
            yield IPv4Network(text)
        except ValueError:  # IPv6, or there is none
            continue
