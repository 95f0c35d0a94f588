"""docker login: whether a registry takes these credentials. Nothing of them is kept."""

from __future__ import annotations

from urllib.parse import urlsplit

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.reference import DOCKER_HUB
from swarmlet_agent.images.registry import Registries
from swarmlet_agent.images.types import RegistryAuth

#: What clients call Docker Hub when they log in.
_HUB_NAMES = ("", "index.docker.io", "docker.io", "registry-1.docker.io")


async def login(registries: Registries, auth: RegistryAuth) -> str:
    """The refresh token the registry gives in place of the password, "" for none.

    Unauthorized in the registry's words; InvalidArgument for an address that is none; RegistryUnreachable.
    """
    door = await registries.door(registry_of(auth.server_address), auth)
    await door.connect()
    return await door.login()


def registry_of(address: str) -> str:
    """host[:port] of AuthConfig.serveraddress: "registry:5000", "https://registry/v1/", or Docker Hub's old URL."""
    text = address.strip()
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.netloc.lower()
        _ = parts.port  # a bad one raises here
    except ValueError as err:
        raise InvalidArgument(f"unable to parse server address: {err}") from err
    if (text and not host) or "@" in host or any(char.isspace() for char in host):
        raise InvalidArgument("unable to parse server address: expected host[:port]")
    return DOCKER_HUB if host in _HUB_NAMES else host
