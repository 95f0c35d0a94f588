"""The Docker Engine API of a manager, over its unix socket or TCP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

#: How a manager is reached: options of whatever asks one, as the documentation fragment `manager` tells them.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "docker_host": {"type": "str", "default": "unix:///run/swarmlet/manager.sock"},
    "ca_path": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
}


class ApiError(Exception):
    """What the manager answered, or why it could not be asked."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class EngineApi:
    """One manager. Each call is a request of its own; ApiError says what went wrong."""

    def __init__(
        self, host: str, *, ca_path: str | None = None, client_cert: str | None = None, client_key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._host = host
        self._url = urlsplit(host)
        self._timeout = timeout
        if self._url.scheme not in ("unix", "tcp"):
            raise ApiError(f"docker_host {host!r}: unix:///path or tcp://host:port is expected")
        self._tls: ssl.SSLContext | None = None
        if ca_path or client_cert:
            self._tls = ssl.create_default_context(cafile=ca_path)
            # Docker's clients take certificates that have not all extensions that Python 3.13 wants by itself.
            self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
            # A manager's certificate names its node; the cluster's own CA is who is trusted.
            self._tls.check_hostname = False
            if client_cert:
                self._tls.load_cert_chain(client_cert, client_key)

    def get(self, path: str, **query: str) -> Any:
        return self._call("GET", path, query)

    def post(self, path: str, body: Any, **query: str) -> Any:
        return self._call("POST", path, query, json.dumps(body))

    def exchange(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """One request as it is, whatever is answered."""
        connection = self._connection()
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        except (OSError, http.client.HTTPException) as err:
            raise ApiError(f"{self._host} does not answer: {err}") from err
        finally:
            connection.close()

    def _call(self, method: str, path: str, query: dict[str, str], body: str | None = None) -> Any:
        target = f"{path}?{urlencode(query)}" if query else path
        content_type = {"Content-Type": "application/json"} if body else {}
        answer = self.exchange(method, target, body.encode() if body else None, content_type)
        text = answer.body.decode()
        try:
            content = json.loads(text) if text.strip() else None
        except ValueError as err:
            raise ApiError(f"{self._host} is no manager: {method} {path} answered no JSON") from err
        if answer.status >= 400:
            message = content.get("message") if isinstance(content, dict) else None
            raise ApiError(message or f"{method} {path}: status {answer.status}")
        return content

    def _connection(self) -> http.client.HTTPConnection:
        if self._url.scheme == "unix":
            return _UnixConnection(self._url.path, self._timeout)
        host, port = self._url.hostname or "localhost", self._url.port or 2377
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)


def availability_change(
    spec: dict[str, Any], availability: str | None, labels: dict[str, str] | None, purge_labels: bool
) -> dict[str, Any]:
    """The node's spec as it is wanted; the same if nothing is to change. Labels are added; with purge they are all."""
    wanted = dict(spec)
    if availability is not None:
        wanted["Availability"] = availability
    if labels is not None:
        kept = {} if purge_labels else dict(spec.get("Labels") or {})
        wanted["Labels"] = {**kept, **labels}
    return wanted


#: States of tasks that still hold something on their node (Engine API TaskState).
_BUSY = frozenset({"assigned", "accepted", "preparing", "ready", "starting", "running"})


def busy_tasks(tasks: list[dict[str, Any]]) -> list[str]:
    """Ids of the tasks that keep a node from being empty."""
    return [task["ID"] for task in tasks if task.get("Status", {}).get("State") in _BUSY]


def connected(options: Mapping[str, Any]) -> EngineApi:
    """By the values of `ARGUMENTS`; others may be among them."""
    return EngineApi(
        options["docker_host"], ca_path=options["ca_path"], client_cert=options["client_cert"],
        client_key=options["client_key"],
    )
