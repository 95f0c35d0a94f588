"""What tests of networks have in common."""

from __future__ import annotations

import ipaddress

from e2e_cluster import Cluster, View

#: Answers every connection with its own host name, then the peer's address.
HTTPD = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p {port} -h /www"


def serve(view: View, name: str, *args: str, port: int = 80) -> str:
    """A web server that tells its host name; its container id."""
    return view(
        "run", "-d", "--name", name, "--hostname", name, *args, "busybox", "sh", "-c", HTTPD.format(port=port)
    )


def get(view: View, container: str, url: str) -> str:
    """A page, fetched inside a container."""
    return view("exec", container, "timeout", "5", "wget", "-qO-", url)


def address(view: View, container: str, network: str = "bridge") -> str:
    """The container's address in a network."""
    shown = view.json("inspect", container)[0]["NetworkSettings"]["Networks"][network]["IPAddress"]
    assert ipaddress.ip_address(shown)
    return str(shown)


def fetch(cluster: Cluster, number: int, url: str) -> str:
    """A page, fetched on a host."""
    return cluster.exec(number, "busybox", "timeout", "5", "busybox", "wget", "-qO-", url).strip()
