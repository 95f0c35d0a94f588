"""What the engine asks of the networks and gets back: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.model.container import EndpointSettings, PortBinding


@dataclass(frozen=True, slots=True)
class NetworkWish:
    """What a container asks of the networks.

    mode: bridge/default, none, host, a user-defined network's name or id, or container:<id> (resolved by
    the engine, which then passes netns_of). endpoints: further or more detailed wishes by network name.
    ports: "80/tcp" -> wanted bindings. hostname/domainname/extra_hosts/dns go to the files made for it.
    """

    container_id: str
    container_name: str
    hostname: str
    mode: str
    domainname: str = ""
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)
    ports: Mapping[str, tuple[PortBinding, ...]] = field(default_factory=dict)
    mac_address: str = ""
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    #: For mode container:<id>: that container's namespace and files are shared.
    share_with: str = ""
    #: The file of the user namespace that shall own its network; "" for the agent's own.
    user_namespace: str = ""
    #: It is a task's: a manager has given it its addresses in networks of the cluster.
    of_task: bool = False


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's place in the networks, once made.

    netns_path None: the host's network. endpoints by network name. ports: "80/tcp" -> bindings as really
    published (an empty tuple: exposed but not published). files: container path -> host file to bind.
    """

    netns_path: str | None
    endpoints: Mapping[str, EndpointSettings]
    ports: Mapping[str, tuple[PortBinding, ...]]
    files: Mapping[str, Path]
    sandbox_id: str = ""


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """One interface of a container, for stats."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class ContainerView:
    """What the networks need to know of a container they may never have attached.

    network_mode: its HostConfig's. endpoints: its wishes by network name, attached or not.
    """

    id: str
    name: str
    network_mode: str
    endpoints: Mapping[str, EndpointSettings]
