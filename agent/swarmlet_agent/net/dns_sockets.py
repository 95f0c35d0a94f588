"""The embedded DNS server's sockets in a container's namespace, and the rules that lead port 53 to them.

For the net thread while it is in that namespace.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from swarmlet.errors import Internal
from swarmlet_agent.net.nft import Nft
from swarmlet_agent.net.plan_rules import DNS_ADDRESS

_TRIES = 16


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """Bound on 127.0.0.11 in a container's namespace, both with the same port; not blocking."""

    udp: socket.socket
    tcp: socket.socket
    port: int

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def change_rules_here(text: str) -> None:
    """Rules of the namespace this thread is in.

    Only add where that will do: closing the context after a deletion waits some 10 ms for the kernel.
    """
    rules = Nft()
    try:
        rules.run(text)
    finally:
        rules.close()


def bind_dns(wanted: int) -> DnsSockets:
    """UDP and TCP on one port: the wanted one, else one that the kernel picks and is free for both."""
    for attempt in range(_TRIES):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((DNS_ADDRESS, wanted if attempt == 0 else 0))
            port = udp.getsockname()[1]
            tcp.bind((DNS_ADDRESS, port))
            tcp.listen(16)
        except OSError as err:
            udp.close()
            tcp.close()
            if err.errno != errno.EADDRINUSE:
                raise
            continue
        return DnsSockets(udp, tcp, port)
    raise Internal("no port is free for the embedded DNS server in the container's namespace")
