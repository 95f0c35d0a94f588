"""The progress of one pull on many nodes, as one stream: a line per node that is overwritten as it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

#: Lines go out at most this often; what changed meanwhile is merged.
PERIOD_S = 0.1

Json = dict[str, Any]


class _Layers:
    """How far one node is: bytes of each layer, and the last thing it said."""

    def __init__(self) -> None:
        self.current: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.last = ""
        self.closing: list[str] = []

    def take(self, line: Json) -> None:
        status, ident = str(line.get("status", "")), str(line.get("id", ""))
        detail = line.get("progressDetail") or {}
        if status == "Downloading" and "total" in detail:
            self.current[ident], self.total[ident] = int(detail.get("current", 0)), int(detail["total"])
        elif status == "Download complete" and ident in self.total:
            self.current[ident] = self.total[ident]
        if not ident and status:
            self.closing.append(status)
        elif status:
            self.last = status

    def line(self, name: str) -> Json:
        current, total = sum(self.current.values()), sum(self.total.values())
        if total and current < total:
            return {"status": "Downloading", "progressDetail": {"current": current, "total": total}, "id": name}
        return {"status": self.last or "Waiting", "progressDetail": {}, "id": name}


class Progress:
    """Fed by one task per node, read by the one that answers the client."""

    def __init__(self, nodes: list[str]) -> None:
        self._layers = {name: _Layers() for name in nodes}
        self._errors: dict[str, Exception | None] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    def take(self, node: str, line: Json) -> None:
        """A line of a node's own stream. An error in it ends that node's part."""
        if "error" in line:
            raise ValueError(str(line["error"]))
        self._layers[node].take(line)
        self._note(node)

    def end(self, node: str, error: Exception | None) -> None:
        self._errors[node] = error
        self._layers[node].last = "Pull complete" if error is None else f"Error: {error}"
        self._layers[node].current.clear()
        self._layers[node].total.clear()
        self._note(node)

    def failures(self) -> dict[str, Exception]:
        return {name: error for name, error in self._errors.items() if error is not None}

    def succeeded(self) -> list[str]:
        return [name for name, error in self._errors.items() if error is None]

    async def lines(self) -> AsyncIterator[Json]:
        """Until every node has ended; then, if any succeeded, the closing lines (digest, status) of one that did.

        Nothing is said before a node has news worth telling, so that a pull that fails at once everywhere can still
        be answered with a status of its own.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = sorted(self._changed), set()
            for name in changed:
                if self._errors.get(name) is None or self.succeeded():
                    yield self._layers[name].line(name)
            if len(self._errors) == len(self._layers):
                break
            await asyncio.sleep(PERIOD_S)
        for name in self.succeeded()[:1]:
            for status in self._layers[name].closing:
                yield {"status": status}

    def _note(self, node: str) -> None:
        self._changed.add(node)
        self._wake.set()
