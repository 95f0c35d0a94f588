"""A node's image store on a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swarmlet_agent.images.store import ImageStore
from swarmlet_agent.journal import Journal


class Node:
    """One store on one folder; `restart` is what a new agent finds there."""

    def __init__(self, data: Path, **options: Any) -> None:
        self.data, self._options = data, options
        self.users: dict[str, list[tuple[str, bool]]] = {}
        self.events: list[tuple[str, str]] = []

    async def start(self) -> None:
        self.journal = Journal(self.data / "journal.db")
        self.store = ImageStore(
            self.data,
            self.journal,
            users=self,
            on_event=lambda action, subject, _: self.events.append((action, subject)),
            **self._options,
        )
        await self.store.start()

    def users_of(self, image_id: str) -> list[tuple[str, bool]]:
        return self.users.get(image_id, [])

    async def stop(self) -> None:
        await self.store.close()
        self.journal.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def layer_folders(self) -> set[str]:
        return {path.name for path in (self.data / "images" / "layers").iterdir()}

    def leftovers(self) -> list[Path]:
        return [file for name in ("tmp", "partial") for file in (self.data / "images" / name).iterdir()]
