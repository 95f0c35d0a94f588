"""Images for tasks: present, or pulled once however many tasks wait for them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from swarmlet.errors import NotFound, SwarmletError
from swarmlet_agent.images.auth import decode_auth
from swarmlet_agent.images.types import Image, RegistryAuth


class ImageSource(Protocol):
    """The image store, as a task needs it."""

    def get(self, ref: str) -> Image: ...

    async def pull(self, ref: str, *, auth: RegistryAuth | None = None) -> Image: ...


class ImageMissing(SwarmletError):
    """The image is not here and cannot be fetched; the text is what `service ps` shows."""


class Puller:
    """Tasks that wait for the same image share one pull, which goes on when one of them loses interest."""

    def __init__(self, images: ImageSource) -> None:
        self._images = images
        self._pulls: dict[tuple[str, str], asyncio.Task[Image]] = {}

    async def ensure(self, ref: str, encoded_auth: str) -> None:
        """Returns once the image is here; one that is here already is used as it is. ImageMissing."""
        if self.present(ref):
            return
        key = (ref, encoded_auth)
        pull = self._pulls.get(key)
        if pull is None:
            try:
                auth = decode_auth(encoded_auth)
            except SwarmletError as err:
                raise ImageMissing(f"pulling image {ref} failed: {err}") from None
            pull = asyncio.ensure_future(self._images.pull(ref, auth=auth))
            self._pulls[key] = pull
            pull.add_done_callback(lambda done: self._ended(key, done))
        try:
            await asyncio.shield(pull)
        except NotFound as err:
            raise ImageMissing(f"No such image: {ref}: {err}") from err
        except SwarmletError as err:
            raise ImageMissing(f"pulling image {ref} failed: {err}") from err

    def present(self, ref: str) -> bool:
        try:
            self._images.get(ref)
        except NotFound:
            return False
        return True

    async def close(self) -> None:
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _ended(self, key: tuple[str, str], pull: asyncio.Task[Image]) -> None:
        self._pulls.pop(key, None)
        if not pull.cancelled():
            pull.exception()  # those who wait get it; with nobody waiting it is nobody's
