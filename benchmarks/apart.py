"""Apart from the host: what a benchmark does to networks and mounts ends with its process."""

from __future__ import annotations

import subprocess

from swarmlet_agent.runtime import linux

_CLONE_NEWNET = 0x40000000


def leave_the_host() -> None:
    """This process is in network and mount namespaces of its own from here on; `lo` is up. OSError without root."""
    linux.unshare(_CLONE_NEWNET | linux.CLONE_NEWNS)
    linux.mount("", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
