"""Networks of the cluster: what may be asked for, which addresses and which VNI one gets, and who uses it. Pure.

Subnets are unique in the cluster: a published port leads to a task by its address alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from swarmlet.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotSupported
from swarmlet.model.cluster import Cluster
from swarmlet.model.defaults import cluster_networks, ingress_ports
from swarmlet.model.network import IpamConfig, Network, NetworkCreate
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State

#: SwarmKit's first number is 4096, which stands for the routing mesh here.
FIRST_VNI, LAST_VNI = 4097, 0xFFFFFF
#: What VXLAN adds to a packet over IPv4: outer Ethernet, IP, UDP and VXLAN headers.
VXLAN_BYTES = 50
UNDERLAY_MTU = 1500
OPTION_MTU = "com.docker.network.driver.mtu"
#: SwarmKit's rule for names of networks.
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_.]?[a-zA-Z0-9]+)*")
INGRESS = "ingress"
_PREDEFINED = ("bridge", "host", "none", "default")


def plan_network(state: State, spec: NetworkCreate, network_id: str, now: int) -> Network:
    """The record of a new network. InvalidArgument, NotSupported, Conflict (name), Forbidden (subnet in use)."""
    _check(state, spec)
    configs = spec.ipam.config
    if len(configs) > 1 or any(":" in config.subnet for config in configs):
        raise NotSupported(f"network {spec.name}: one IPv4 subnet per network of the cluster is supported so far")
    config = configs[0] if configs else IpamConfig()
    used = [IPv4Network(network.subnet) for network in state.networks.values()]
    if config.subnet:
        subnet = _subnet(config.subnet, "subnet")
        if subnet.prefixlen > 30:
            raise InvalidArgument(f"invalid subnet {subnet}: a network of the cluster needs at least a /30")
        if any(subnet.overlaps(other) for other in used):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
    else:
        if config.gateway or config.ip_range or config.auxiliary_addresses:
            raise InvalidArgument("invalid network config: a gateway, IP range or auxiliary address needs a subnet")
        subnet = pick_subnet(state, used)
    return Network(
        id=network_id, spec=spec, subnet=str(subnet), gateway=_gateway(config, subnet),
        ip_range=_range(config, subnet), vni=next_vni(state.networks.values()), mtu=_mtu(spec),
        created_at=now, updated_at=now,
    )


def plan_ingress(state: State, network_id: str, now: int) -> Network:
    """The network of the routing mesh: made by us, once a service publishes a port."""
    subnet = pick_subnet(state, [IPv4Network(network.subnet) for network in state.networks.values()])
    spec = NetworkCreate(name=INGRESS, driver="overlay", ingress=True)
    return Network(
        id=network_id, spec=spec, subnet=str(subnet), gateway=str(subnet.network_address + 1),
        vni=next_vni(state.networks.values()), mtu=_mtu(spec), created_at=now, updated_at=now,
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


def mac_of(address: str) -> str:
    """The MAC address that goes with an IPv4 address: 02:42 and its four bytes, so that it need not be stored."""
    return (b"\x02\x42" + IPv4Address(address).packed).hex(":")


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
    if state.network_named(name) is not None or name == INGRESS:
        raise Conflict(f"network with name {name} already exists")
    if spec.driver != "overlay":
        raise NotFound("plugin", spec.driver, f"network driver {spec.driver} cannot span nodes: use overlay")
    if not spec.enable_ipv4:
        raise NotSupported("IPv4 cannot be disabled on a network of the cluster (EnableIPv4=false)")
    if spec.enable_ipv6:
        raise NotSupported(f"network {name}: IPv6 in networks of the cluster is not supported yet")
    if spec.ingress:
        raise NotSupported(f"network {name}: networks of the routing mesh (--ingress) are not supported yet")
    if spec.config_only or (spec.config_from is not None and spec.config_from.network):
        raise NotSupported("config-only and config-from networks cannot span nodes")
    if spec.ipam.driver not in ("", "default"):
        raise NotSupported(f"IPAM driver {spec.ipam.driver} is not supported; use default")
    for option in sorted(spec.options):
        if option == "encrypted" and spec.options[option].lower() not in ("false", "0"):
            raise NotSupported(f"network {name}: encrypted networks are not supported yet")
        if option.startswith("com.docker.network.") and option != OPTION_MTU:
            raise NotSupported(f"network option {option} is not supported")


def _subnet(text: str, what: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as err:
        raise InvalidArgument(f"invalid {what} {text}: {err}") from err


def _gateway(config: IpamConfig, subnet: IPv4Network) -> str:
    if not config.gateway:
        return str(subnet.network_address + 1)
    try:
        gateway = IPv4Address(config.gateway)
    except ValueError as err:
        raise InvalidArgument(f"invalid gateway address: {config.gateway}") from err
    if gateway not in subnet or gateway in (subnet.network_address, subnet.broadcast_address):
        raise InvalidArgument(f"invalid network config: gateway {gateway} is not an address of subnet {subnet}")
    return str(gateway)


def _range(config: IpamConfig, subnet: IPv4Network) -> str:
    for name, text in config.auxiliary_addresses.items():
        try:
            inside = IPv4Address(text) in subnet
        except ValueError as err:
            raise InvalidArgument(f"invalid auxiliary address {name}: {text}") from err
        if not inside:
            raise InvalidArgument(f"invalid network config: auxiliary address {name}={text} is not in subnet {subnet}")
    if not config.ip_range:
        return ""
    wanted = _subnet(config.ip_range, "IP range")
    if not wanted.subnet_of(subnet):
        raise InvalidArgument(f"invalid network config: IP range {wanted} is not in subnet {subnet}")
    return str(wanted)


def _mtu(spec: NetworkCreate) -> int:
    text = spec.options.get(OPTION_MTU, "")
    if not text:
        return UNDERLAY_MTU - VXLAN_BYTES
    if not text.isdigit() or not 68 <= int(text) <= 65535 - VXLAN_BYTES:
        raise InvalidArgument(f"invalid value {text!r} for network option {OPTION_MTU}: expected 68 to 65485")
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
