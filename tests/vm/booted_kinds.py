"""Which kind of booted hosts a run has: the variable SWARMLET_VM says."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from booted_hosts import BootedHost, HostLab
from container_hosts import ContainerHost
from virtual_hosts import VirtualHost

KINDS: dict[str, Callable[[HostLab, int], BootedHost]] = {"container": ContainerHost, "virtual": VirtualHost}


CHOSEN = os.environ.get("SWARMLET_VM", "container")

needs_virtual_hosts = pytest.mark.skipif(
    CHOSEN != "virtual", reason="is of a kernel that hosts have to themselves: SWARMLET_VM=virtual"
)


def chosen_kind() -> Callable[[HostLab, int], BootedHost]:
    return KINDS[CHOSEN]
