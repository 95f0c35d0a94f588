"""From stored networks of the cluster to Engine API objects (API 1.50: Network, ServiceInfo, PeerInfo). Pure."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

from swarmlet.ipam import mac_of
from swarmlet.model.base import to_api
from swarmlet.model.network import Network, NetworkAttachment, NetworkContainer, NetworkView, Subnet
from swarmlet.model.states import TaskState
from swarmlet.model.task import Task
from swarmlet.model.times import rfc3339
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import State

Json = dict[str, Any]
#: libnetwork's key of the option that tells a network's number between nodes.
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"


def network(record: Network) -> Json:
    """As lists show it."""
    spec = record.spec
    view = NetworkView(
        name=record.name, id=record.id, created=rfc3339(record.created_at), scope="swarm", driver=spec.driver,
        enable_ipv6=bool(record.v6.subnet),
        ipam={
            "Driver": "default", "Options": spec.ipam.options or None,
            "Config": [_ipam(part) for part in record.families],
        },
        internal=spec.internal, attachable=spec.attachable, ingress=spec.ingress,
        options={VNI_OPTION: str(record.vni), **spec.options}, labels=spec.labels,
    )
    answer: Json = to_api(view)
    return answer


def predefined(name: str, created_at: int) -> Json:
    """A network that every node has of its own, as the cluster's: what clients look up before they name it in a
    service. Their ids differ by node: here the name is the id."""
    view = NetworkView(
        name=name, id=name, created=rfc3339(created_at), scope="swarm", driver=name,
        ipam={"Driver": "", "Options": None, "Config": []}, labels={"com.docker.swarm.predefined": "true"},
    )
    answer: Json = to_api(view) | {"Containers": None, "Options": None}
    return answer


def _ipam(part: Subnet) -> Json:
    """One entry of IPAM.Config."""
    config: Json = {"Subnet": part.subnet, "Gateway": part.gateway}
    if part.ip_range:
        config["IPRange"] = part.ip_range
    if part.auxiliary:
        config["AuxiliaryAddresses"] = part.auxiliary
    return config


def attachment(record: Network, place: NetworkAttachment) -> Json:
    """One entry of a task's NetworksAttachments."""
    spec = record.spec
    described: Json = {
        "ID": record.id,
        "Version": {"Index": record.version},
        "CreatedAt": rfc3339(record.created_at),
        "UpdatedAt": rfc3339(record.updated_at),
        "Spec": {
            "Name": record.name, "Labels": spec.labels, "DriverConfiguration": {"Name": spec.driver},
            "IPAMOptions": {"Driver": {"Name": "default"}}, "Scope": "swarm",
            **({"Attachable": True} if spec.attachable else {}), **({"Internal": True} if spec.internal else {}),
            **({"Ingress": True} if spec.ingress else {}), **({"IPv6Enabled": True} if record.v6.subnet else {}),
        },
        "DriverState": {"Name": spec.driver, "Options": {VNI_OPTION: str(record.vni)}},
        "IPAMOptions": {
            "Driver": {"Name": "default"},
            "Configs": [{"Subnet": part.subnet, "Gateway": part.gateway} for part in record.families],
        },
    }
    return {"Network": described, "Addresses": [*place.addresses]}


def containers(state: State, record: Network) -> Json:
    """Containers on the network anywhere in the cluster, by id."""
    found: Json = {}
    for task in state.tasks_on_network(record.id):
        if task.status.container_id and not is_gone(task):
            found[task.status.container_id] = _container(task.name, task.id, _place(task, record))
    for lease in state.leases_on_network(record.id):
        found[lease.container_id] = _container(lease.container_name, lease.id, lease.place)
    return found


def services(state: State, record: Network) -> Json:
    """Services on the network, by name, with their running tasks (verbose inspect).

    Plain containers stand under the name "" and the address "<nil>", as libnetwork lists what is no service's.
    """
    found: Json = {}
    on_it = [task for task in state.tasks_on_network(record.id) if not is_gone(task)]
    if leases := sorted(state.leases_on_network(record.id), key=lambda lease: (lease.container_name, lease.id)):
        plain = [
            _endpoint(state, lease.container_name, lease.id, lease.address, lease.node_id) for lease in leases
        ]
        found[""] = {"VIP": "<nil>", "Ports": [], "LocalLBIndex": 0, "Tasks": plain}
    for service in state.services.values():
        vip = next((vip.address for vip in service.vips if vip.network_id == record.id), "")
        tasks = [task for task in on_it if task.service_id == service.id]
        if not vip and not tasks:
            continue
        found[service.spec.name] = {
            "VIP": vip.partition("/")[0],
            "Ports": [
                f"Target: {port.target_port}, Publish: {port.published_port}"
                for port in (service.ports if service.spec.endpoint_spec else ())
            ],
            "LocalLBIndex": 0,
            "Tasks": [
                _endpoint(state, task.name, task.id, _place(task, record).address, task.node_id)
                for task in sorted(tasks, key=lambda task: (task.slot, task.id))
                if task.status.state == TaskState.RUNNING
            ],
        }
    return found


def _endpoint(state: State, name: str, ident: str, address: str, node_id: str) -> Json:
    host = state.nodes[node_id].addr if node_id in state.nodes else ""
    return {"Name": name, "EndpointID": ident, "EndpointIP": address.partition("/")[0], "Info": {"Host IP": host}}


def peers(state: State, record: Network) -> list[Json]:
    """Nodes that have a part of the network."""
    ids = {task.node_id for task in state.tasks_on_network(record.id) if task.node_id and not is_gone(task)}
    ids |= {lease.node_id for lease in state.leases_on_network(record.id)}
    return [{"Name": ident[:12], "IP": state.nodes[ident].addr} for ident in sorted(ids) if ident in state.nodes]


def _container(name: str, endpoint_id: str, place: NetworkAttachment) -> Json:
    answer: Json = to_api(
        NetworkContainer(
            name=name, endpoint_id=endpoint_id, mac_address=place.mac or mac_of(ip_interface(place.address).ip),
            ipv4_address=place.address, ipv6_address=place.address6,
        )
    )
    return answer


def _place(task: Task, record: Network) -> NetworkAttachment:
    return next(place for place in task.networks if place.network_id == record.id)
