"""The errors both sides raise; none of them knows of HTTP, gRPC or exit codes.

The rim that answers a client maps each to a status (`engine_api/errors.py`); messages name the
object and, where there is one, the next step. They are shown to users as they are.
"""

from __future__ import annotations


def rpc_words(text: str, code: str = "InvalidArgument") -> str:
    """As dockerd shows what SwarmKit refuses: with the code of the gRPC error it got."""
    return f"rpc error: code = {code} desc = {text}"


class SwarmletError(Exception):
    """Base of all errors that are answers; anything else is a defect or a broken machine."""


class InvalidArgument(SwarmletError):
    """The request cannot be meant: wrong type, impossible value, unknown key. Nothing was changed."""


class NotSupported(InvalidArgument):
    """A known option of the Docker API that this version refuses rather than ignores."""


class NotFound(SwarmletError):
    """An object that does not exist."""

    def __init__(self, kind: str, ref: str, message: str | None = None) -> None:
        super().__init__(message or f"No such {kind}: {ref}")
        self.kind, self.ref = kind, ref


class Conflict(SwarmletError):
    """The object exists in a state that forbids the request (name taken, in use, running)."""


class NameTaken(Conflict):
    """A container of this name exists, on this host or, in the cluster view, on any."""

    def __init__(self, name: str, holder: str, doing: str = "") -> None:
        """holder: that container's id; doing: what failed for it, if that is told."""
        super().__init__(
            f'{doing and doing + ": "}Conflict. The container name "/{name}" is already in use by container '
            f'"{holder}". You have to remove (or rename) that container to be able to reuse that name.'
        )


class NotModified(SwarmletError):
    """The object is in the wanted state already (Engine API 304: start of a running container)."""


class Forbidden(SwarmletError):
    """The caller may not do this, or the object is protected."""


class Unauthorized(SwarmletError):
    """Credentials are missing or wrong (a registry's, or a join token)."""


class Unavailable(SwarmletError):
    """Cannot be answered now: no leader, not a manager, node unreachable. Trying later may help."""


class NotAManager(Unavailable):
    """A cluster request reached a node that is not a manager (Engine API 503)."""

    def __init__(self) -> None:
        super().__init__(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
            "to connect this node to swarm and try again."
        )


class StaleView(SwarmletError):
    """A write was decided on a record that has changed since; look again and decide anew."""


class OutOfSequence(SwarmletError):
    """An update named a version of the object that is no longer the current one (Docker answers 500)."""

    def __init__(self) -> None:
        super().__init__("rpc error: code = Unknown desc = update out of sequence")


class Internal(SwarmletError):
    """Something this host should be able to do has failed; the message tells what."""
