"""Memory of idle daemons, and what one more running container costs them, as PSS."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.lab import cluster, docker
from swarmlet.local import hosts
from swarmlet.local.layout import HostLayout

CONTAINERS = 30
MB = 1e6


def measure() -> list[Figure]:
    with cluster() as layout:
        time.sleep(5)  # start-up's own garbage is gone by then
        first, second = layout.nodes[0], layout.nodes[1]
        figures = [
            Figure("idle agent, PSS", _pss(second, "swarmlet-agent") / MB, "MB", bound=55),
            Figure("idle agent beside a manager, PSS", _pss(first, "swarmlet-agent") / MB, "MB", bound=55),
            Figure("idle manager, PSS", _pss(first, "swarmlet-manager") / MB, "MB", bound=80),
            Figure("idle etcd, PSS", _pss(first, "etcd") / MB, "MB"),
        ]
        before = _pss(second, "swarmlet-agent") + _pss(second, "conmon")
        for _ in range(CONTAINERS):
            docker(second.agent_socket, "run", "-d", "--network", "none", "busybox", "sleep", "86400")
        time.sleep(2)
        grown = _pss(second, "swarmlet-agent") + _pss(second, "conmon") - before
        figures.append(
            Figure("each running container, PSS over its own", grown / CONTAINERS / MB, "MB", bound=0.7, n=CONTAINERS)
        )
        return figures


def _pss(host: HostLayout, program: str) -> float:
    """Bytes, over all processes of that name on the host."""
    total = 0
    for pid in hosts.host_pids(host):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if program not in {os.path.basename(word.decode(errors="replace")) for word in words[:2]}:
                continue
            if words[0] == b"sh":
                continue
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total
