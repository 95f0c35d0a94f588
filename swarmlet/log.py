"""Logging: a constant message and fields, one line each, to standard error or, as fields, to systemd's journal.

    log = get_logger(__name__)
    log.info("task started", task_id=task.id, node_id=node.id)

    with log_context(loop="scheduler", key=key):  # added to every line below
        ...

Secrets, tokens, credentials and environment values are never fields.
"""

from __future__ import annotations

import contextvars
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from swarmlet.journald import JOURNAL_SOCKET, entry, field_name

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
            self._logger.log(level, " ".join(words), exc_info=exc_info, extra={"fields": merged})


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


class JournalHandler(logging.Handler):
    """Lines as entries of systemd's journal, with SWARMLET_<FIELD> for each field.

    So that an operator can ask `journalctl SWARMLET_TASK_ID=…`. An OSError of the journal is logging's to report.
    """

    def __init__(self, identifier: str, path: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._identifier = identifier
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(path)
        except BaseException:  # of any kind: undo, and pass it on
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.send(entry(self._fields(record)))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, bytes]:
        # The whole line: what journalctl shows by default must not lack the fields.
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
        }
        for key, value in getattr(record, "fields", _NOTHING).items():
            fields[f"SWARMLET_{field_name(str(key))}"] = str(value)
        return {key: text.encode(errors="replace") for key, text in fields.items()}


#: syslog(3) levels, which the journal uses.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def set_up(level: str = "info", identifier: str = "swarmlet") -> None:
    """To systemd's journal where standard error is connected to it (systemd.exec(5), JOURNAL_STREAM), else as text."""
    if _is_journal(sys.stderr.fileno(), os.environ.get("JOURNAL_STREAM", "")):
        journal = JournalHandler(identifier)
        logging.basicConfig(level=level.upper(), handlers=[journal], format="%(name)s: %(message)s", force=True)
    else:
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=level.upper(), stream=sys.stderr, format=text, force=True)
    for chatty in ("aiohttp.access", "grpc"):  # a line per request and per call tells an operator nothing
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def _is_journal(descriptor: int, stream: str) -> bool:
    """JOURNAL_STREAM is inherited by whoever a service starts: only its device and inode tell whose stream it is."""
    found = os.fstat(descriptor)
    return stream == f"{found.st_dev}:{found.st_ino}"


def _quote(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(char.isspace() or char in "\"'=" for char in text) else text
