"""Requests with one thing wrong, sent as they are: no client corrects or refuses them first."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from e2e_cluster import Cluster, View

API = "/v1.50"


class Case(NamedTuple):
    """A request and what its answer must be; a body of bytes is sent as it is."""

    status: int
    says: str
    method: str
    path: str
    body: Any = None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def ask(view: View, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and body of one request; a path that begins with /v is sent as it is."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = _UnixConnection(view.socket)
    try:
        url = path if path.startswith(("/v1.", "/v2.")) else API + path
        connection.request(method, url, body=data, headers={"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get(view: View, path: str) -> Any:
    status, body = ask(view, "GET", path)
    assert status == 200, (path, status, body)
    return json.loads(body)


def complaints(view: View, cases: list[Case]) -> Iterator[str]:
    """One line for each case that is not answered as it should."""
    for case in cases:
        status, body = ask(view, case.method, case.path, case.body)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or set(answer) != {"message"}:
            yield f"{case[2:]!r:.200}: no message: {status} {body!r:.200}"
        elif status != case.status or case.says not in answer["message"]:
            yield f"{case[2:]!r:.200}: {status} {answer['message']!r}, not {case.status} {case.says!r}"


def belongings(cluster: Cluster) -> dict[str, Any]:
    """Everything that a request could have left half made, everywhere."""
    found: dict[str, Any] = {}
    for number in (1, 2, 3):
        node = cluster.node(number)
        found |= {
            f"containers {number}": sorted(each["Id"] for each in get(node, "/containers/json?all=1")),
            f"images {number}": sorted(
                (each["Id"], *sorted(each["RepoTags"] or ())) for each in get(node, "/images/json?all=1")
            ),
            f"networks {number}": sorted(each["Name"] for each in get(node, "/networks")),
            f"volumes {number}": sorted(each["Name"] for each in get(node, "/volumes")["Volumes"] or ()),
        }
    found["services"] = sorted((each["ID"], each["Version"]["Index"]) for each in get(cluster.view, "/services"))
    found["nodes"] = sorted((each["ID"], json.dumps(each["Spec"])) for each in get(cluster.view, "/nodes"))
    swarm = get(cluster.view, "/swarm")
    found["swarm"] = (swarm["Version"]["Index"], json.dumps(swarm["Spec"]))
    return found


def create(status: int, says: str, /, *, query: str = "", **body: Any) -> Case:
    """A container of busybox with one thing wrong; keys in small letters go into HostConfig."""
    return Case(status, says, "POST", f"/containers/create{query}", {"Image": "busybox"} | body)


def host(status: int, says: str, /, **config: Any) -> Case:
    return create(status, says, HostConfig=config)


def network(status: int, says: str, /, **config: Any) -> Case:
    return Case(status, says, "POST", "/networks/create", config)


def mounts(status: int, says: str, /, *given: dict[str, Any]) -> Case:
    return host(status, says, Mounts=list(given))


def service(says: str, /, *, container: Any = None, task: Any = None, status: int = 400, **spec: Any) -> Case:
    """A service with one thing wrong."""
    template = {"ContainerSpec": {"Image": "busybox"} | (container or {})} | (task or {})
    return Case(status, says, "POST", "/services/create", {"Name": "bad", "TaskTemplate": template} | spec)
