"""Which kind of booted hosts the playbooks are tried on: the variable SWARMLET_VM says."""

from __future__ import annotations

import os
from collections.abc import Callable

from booted_hosts import BootedHost, HostLab
from container_hosts import ContainerHost
from virtual_hosts import VirtualHost

KINDS: dict[str, Callable[[HostLab, int], BootedHost]] = {"container": ContainerHost, "virtual": VirtualHost}


CHOSEN = os.environ.get("SWARMLET_VM", "container")


def chosen_kind() -> Callable[[HostLab, int], BootedHost]:
    return KINDS[CHOSEN]
