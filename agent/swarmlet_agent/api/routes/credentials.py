"""Who a client is to a registry, as its X-Registry-Auth header says."""

from __future__ import annotations

from swarmlet.engine_api.router import Call
from swarmlet.errors import InvalidArgument
from swarmlet.log import get_logger
from swarmlet_agent.images.auth import decode_auth
from swarmlet_agent.images.types import RegistryAuth

log = get_logger(__name__)


def credentials(call: Call) -> RegistryAuth | None:
    """None for nobody. A header that is no credentials is nobody's: clients of dockerd send placeholders in it
    (aiodocker does, with every push), and go on from the registry's answer if it wants to know them."""
    try:
        return decode_auth(call.request.headers.get("X-Registry-Auth", ""))
    except InvalidArgument as err:
        log.warning("a request to a registry goes without credentials", reason=str(err))
        return None
