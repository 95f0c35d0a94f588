"""A small blocking client of the Engine API over a unix socket, for the command line alone."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarmlet.errors import SwarmletError, Unavailable

API = "/v1.44"


class ApiError(SwarmletError):
    """The engine answered with an error; the text is its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(
    path: Path, method: str, url: str, body: Any = None, *, content_type: str = "application/json", timeout: float = 60
) -> Any:
    """One request; the decoded JSON answer, or its text.

    ApiError for a status of 400 and more, Unavailable if nobody listens.
    """
    connection = _UnixConnection(path, timeout)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, API + url, body=data, headers={"Content-Type": content_type} if data else {})
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as err:
        raise Unavailable(f"{path} does not answer: {err}") from err
    finally:
        connection.close()
    try:
        answer = json.loads(text) if text else None
    except ValueError:
        answer = text.decode(errors="replace")
    if response.status >= 400:
        message = answer.get("message") if isinstance(answer, dict) else None
        raise ApiError(response.status, message or f"{method} {url}: status {response.status}")
    return answer


def wait_until(what: str, check: Callable[[], Any], timeout_s: float, period_s: float = 0.05) -> Any:
    """The first true value of `check`; API errors on the way count as "not yet". Unavailable names the last one."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except SwarmletError as err:
            last = f" ({err})"
        time.sleep(period_s)
    raise Unavailable(f"gave up after {timeout_s:.0f} s waiting until {what}{last}")
