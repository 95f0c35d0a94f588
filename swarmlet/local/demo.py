"""The demo: a small web service that every newcomer sees first."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import quote

from swarmlet.errors import SwarmletError
from swarmlet.local.client import call, wait_until
from swarmlet.local.images import DEMO
from swarmlet.local.layout import ClusterLayout

SERVICE = "demo"
REPLICAS = 6
SERVE_TIMEOUT_S = 60.0


def ensure_demo(cluster: ClusterLayout) -> list[str]:
    """Deploy the demo service if it is not there, wait until every replica serves, return their URLs."""
    socket = cluster.nodes[0].manager_socket
    named = quote(f'{{"name":["{SERVICE}"]}}')
    if not any(service["Spec"]["Name"] == SERVICE for service in call(socket, "GET", f"/services?filters={named}")):
        call(socket, "POST", "/services/create", demo_spec())
    # In a tuple, as no URLs at all are an answer too: somebody has scaled it to zero.
    urls: tuple[list[str]] = wait_until("the demo serves", lambda: _serving(cluster), SERVE_TIMEOUT_S, period_s=0.1)
    return urls[0]


def demo_spec() -> dict[str, Any]:
    """Each replica gets a free port of its node, so that several can share one."""
    port = {"Protocol": "tcp", "TargetPort": 80, "PublishMode": "host"}
    return {
        "Name": SERVICE,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": DEMO,
                "Env": ["WHERE={{.Node.Hostname}}", "SLOT={{.Task.Slot}}"],
                # As process 1 its server does not react to SIGTERM: each stop would take the grace period of 10 s.
                "StopSignal": "SIGKILL",
            },
            "Resources": {"Limits": {"MemoryBytes": 64 << 20}},
        },
        "Mode": {"Replicated": {"Replicas": REPLICAS}},
        "EndpointSpec": {"Ports": [port]},
    }


def _serving(cluster: ClusterLayout) -> tuple[list[str]] | None:
    """The URLs of all running replicas once each has answered, else None."""
    socket = cluster.nodes[0].manager_socket
    filters = quote(f'{{"service":["{SERVICE}"],"desired-state":["running"]}}')
    addresses = {node["ID"]: node["Status"].get("Addr", "") for node in call(socket, "GET", "/nodes")}
    wanted = call(socket, "GET", f"/services/{SERVICE}")["Spec"]["Mode"]["Replicated"]["Replicas"]
    urls = []
    for task in call(socket, "GET", f"/tasks?filters={filters}"):
        ports = task["Status"].get("PortStatus", {}).get("Ports") or []
        if task["Status"]["State"] == "running" and ports:
            urls.append(f"{addresses[task['NodeID']]}:{ports[0]['PublishedPort']}")
    if len(urls) < wanted or not all(_answers(url) for url in urls):
        return None
    return (sorted(f"http://{url}/cgi-bin/index.cgi" for url in urls),)


def _answers(authority: str) -> bool:
    connection = http.client.HTTPConnection(authority, timeout=2)
    try:
        connection.request("GET", "/cgi-bin/index.cgi")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, SwarmletError):
        return False
    finally:
        connection.close()
