"""Logging: a constant message and fields, one line each, to standard error.

    log = get_logger(__name__)
    log.info("task started", task_id=task.id, node_id=node.id)

    with log_context(loop="scheduler", key=key):  # added to every line below
        ...

Secrets, tokens, credentials and environment values are never fields.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_context: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("log_context", default=_NOTHING)


class Logger:
    """A thin face over `logging` that takes fields as keywords."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: Any) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        """As error, with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, fields, exc_info=True)

    def _log(self, level: int, message: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**_context.get(), **fields}
            words = [message, *(f"{key}={_quote(value)}" for key, value in merged.items())]
            self._logger.log(level, " ".join(words), exc_info=exc_info)


def get_logger(name: str) -> Logger:
    return Logger(name)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add fields to every line logged in this block, in this task and those it starts."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def set_up(level: str = "info") -> None:
    """To standard error; the time only where the supervisor (systemd's journal) does not add one."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for chatty in ("aiohttp.access", "grpc"):  # a line per request and per call tells an operator nothing
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def _quote(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(char.isspace() or char in "\"'=" for char in text) else text
