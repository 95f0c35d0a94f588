"""A manager's API for one client, which passes on what the client reads and notes what it changes.

The docker command turns a compose file into services, networks, secrets and configs. Nobody does that exactly as it
does, so what a stack would change is found by letting it deploy here: in a rehearsal what it writes is noted, and
answered as if it were done; otherwise it is passed on, but for updates that change nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socketserver
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.swarmlet.cluster.plugins.module_utils.engine_api import Answer, ApiError, EngineApi

_VERSION = re.compile(r"/v[0-9.]+(?=/)")
_CHANGE = re.compile(r"/(service|network|secret|config)s/(?:(create)|([^/]+)/update|([^/]+))")
#: Headers of one connection alone (RFC 9110, 7.6.1), and what is said anew; and answers are read here, so not packed.
_OF_THE_CONNECTION = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
)


class Step(NamedTuple):
    """One change: "create", "update" or "remove", of what, and its spec (Engine API) before and after."""

    action: str
    kind: str
    name: str
    before: dict[str, Any]
    after: dict[str, Any]


#: What a service has where its spec does not say it (Engine API ServiceSpec): managers may add it.
_DEFAULTS = {
    "Condition": "any", "FailureAction": "pause", "Isolation": "default", "Mode": "vip",
    "Order": "stop-first", "Protocol": "tcp", "PublishMode": "ingress", "Replicas": 1, "Runtime": "container",
}
#: The only switch whose being off is something else than its not being there.
_TERNARY = "Init"


def tidied(value: Any) -> Any:
    """A spec without what says nothing, and so may be there or not: null, empty lists, objects and texts, switches that
    are off, and defaults."""
    if isinstance(value, dict):
        kept = {key: tidied(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if not _says_nothing(key, each)}
    return [tidied(each) for each in value] if isinstance(value, list) else value


def _says_nothing(key: str, value: Any) -> bool:
    if isinstance(value, (dict, list, str)) and not value:
        return True
    off = value is False and key != _TERNARY
    return value is None or off or (key in _DEFAULTS and value == _DEFAULTS[key] and not isinstance(value, bool))


def told(spec: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The spec, fit to be shown: without the content of secrets and configs and the values of environment variables.
    other: what it is shown beside; a value that differs from the one there is marked."""
    shown = {key: value for key, value in spec.items() if key != "Data"}
    environment = _environment(spec)
    if not environment:
        return shown
    there = set(_environment(other))
    hidden = [
        f"{word.partition('=')[0]}={'(hidden)' if word in there or not other else '(hidden, differs)'}"
        for word in environment
    ]
    template = dict(spec["TaskTemplate"])
    template["ContainerSpec"] = {**template["ContainerSpec"], "Env": hidden}
    return {**shown, "TaskTemplate": template}


def _environment(spec: dict[str, Any]) -> list[str]:
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    return list(container.get("Env") or [])


class Rehearsal:
    """Entered, it listens at `url` for as long as that lasts. really: whether changes are passed on."""

    def __init__(self, api: EngineApi, *, really: bool) -> None:
        self.steps: list[Step] = []
        self._api = api
        self._really = really
        self._made: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Rehearsal:
        self._folder = tempfile.mkdtemp(prefix="swarmlet-stack-")  # for its owner alone
        path = os.path.join(self._folder, "sock")
        self._server = _Server(path, _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"unix://{path}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._folder)

    def answer(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> Answer:
        """What the client is answered."""
        try:
            if method in ("GET", "HEAD"):
                return self._with_made(target, self._api.exchange(method, target, None, headers))
            return self._change(method, target, body, headers)
        except ApiError as err:
            return _said(502, {"message": str(err)})

    def _change(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> Answer:
        found = _CHANGE.fullmatch(_VERSION.sub("", urlsplit(target).path))
        if found is None or (method == "DELETE") != (found[4] is not None):
            return _said(501, {"message": f"{method} {target}: no part of a stack is changed by that"})
        content = json.loads(body) if body else {}
        step = self._step(found, content)
        with self._lock:
            if step.action == "update" and _same(step):
                return _said(200, {"Warnings": []})
            self.steps.append(step)
            if not self._really:
                return self._as_if_done(step)
        return self._api.exchange(method, target, body, headers)

    def _step(self, found: re.Match[str], content: dict[str, Any]) -> Step:
        kind, create, updated, removed = found.groups()
        if create:
            return Step("create", kind, content["Name"], {}, content)
        record = self._api.get(f"/{kind}s/{updated or removed}")
        before = record if kind == "network" else record["Spec"]
        if kind == "service":
            before, content = self._with_names(before), self._with_names(content)
        return Step("update" if updated else "remove", kind, before["Name"], before, content if updated else {})

    def _with_names(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Its networks by name: managers keep their ids."""
        template = spec.get("TaskTemplate") or {}
        if not template.get("Networks"):
            return spec
        names = {network["Id"]: network["Name"] for network in self._api.get("/networks")}
        named = [{**each, "Target": names.get(each["Target"], each["Target"])} for each in template["Networks"]]
        return {**spec, "TaskTemplate": {**template, "Networks": named}}

    def _as_if_done(self, step: Step) -> Answer:
        if step.action != "create":
            return _said(200, {"Warnings": []})
        ident = f"rehearsed{len(self.steps)}"
        self._made.setdefault(step.kind, []).append({"ID": ident, "Spec": {"Name": step.name}})
        return _said(201, {"ID": ident, "Id": ident})

    def _with_made(self, target: str, answer: Answer) -> Answer:
        """Services name secrets and configs by their ids, for which the command looks in the list of them."""
        kind = {"/secrets": "secret", "/configs": "config"}.get(_VERSION.sub("", urlsplit(target).path), "")
        made = self._made.get(kind)
        return _said(200, json.loads(answer.body) + made) if made and answer.status == 200 else answer


def _same(step: Step) -> bool:
    """Whether an update changes nothing. The content of secrets and configs cannot be changed, nor read."""
    before, after = ({**spec, "Data": None} for spec in (step.before, step.after))
    return bool(tidied(before) == tidied(after))


def _said(status: int, content: Any) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _handler(rehearsal: Rehearsal) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION}
            answer = rehearsal.answer(self.command, self.path, body, asked)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _OF_THE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_DELETE = _serve

        def address_string(self) -> str:
            return "the docker command"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a module's output is its result."""

    return Handler
