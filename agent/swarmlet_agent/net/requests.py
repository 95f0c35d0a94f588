"""Bodies of the Engine API's network calls; those that manager and agent share are the model's."""

from __future__ import annotations

from swarmlet.model.base import ApiStruct
from swarmlet.model.container import EndpointSettings
from swarmlet.model.network import ConfigReference as ConfigReference
from swarmlet.model.network import Ipam as Ipam
from swarmlet.model.network import IpamConfig as IpamConfig
from swarmlet.model.network import NetworkContainer as NetworkContainer
from swarmlet.model.network import NetworkCreate as NetworkCreate
from swarmlet.model.network import NetworkView as NetworkView


class NetworkConnect(ApiStruct, frozen=True, kw_only=True):
    """POST /networks/{id}/connect."""

    container: str = ""
    endpoint_config: EndpointSettings = EndpointSettings()


class NetworkDisconnect(ApiStruct, frozen=True, kw_only=True):
    """POST /networks/{id}/disconnect."""

    container: str = ""
    force: bool = False
