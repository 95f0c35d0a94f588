"""The OCI runtime's complaints in Docker's form, with the exit code the docker CLI answers with. Pure."""

from __future__ import annotations

import re

import msgspec

from swarmlet_agent.runtime.types import StartFailed

_CREATE = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
_EXEC = "OCI runtime exec failed: "
_UNABLE = "unable to start container process: "

#: crun's words for a program that is not there; the errno's own text may follow.
_CRUN_NOT_FOUND = re.compile(r"executable file [`'](?P<name>.*?)['`] not found(?: in \$PATH)?")
_CRUN_CHDIR = re.compile(r"chdir [`'](?P<path>.*)['`]: (?P<why>.*)")
_CRUN_MOUNT = re.compile(r"mount [`'](?P<source>.*)['`] to [`'](?P<target>.*)['`]: Not a directory")
#: On a terminal both decorate: colours, and in front a time (crun) or a level (runc).
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DECORATION = re.compile(r"^(?:\d{4}-\d\d-\d\dT[0-9:.]+Z: |[A-Z]{4}\[\d+\] )")
_RUNC_LEVEL = re.compile(r'^time="[^"]*" level=\w+ msg="(?P<text>(?:[^"\\]|\\.)*)"$', re.MULTILINE)
_RUNC_PREFIX = re.compile(r"^(?:runc create failed|exec failed|runc run failed): ")

_NOT_FOUND = ("executable file not found", "no such file or directory")
_NOT_RUNNABLE = ("permission denied", "is a directory", "not a directory", "exec format error")


class _LogLine(msgspec.Struct):
    msg: str


def create_failed(text: str, program: str) -> StartFailed:
    """For a container that could not be created or started. program: argv[0]."""
    return _failed(_CREATE, "runc create failed: ", text, program)


def exec_failed(text: str, program: str) -> StartFailed:
    """For an exec."""
    return _failed(_EXEC, "exec failed: ", text, program)


def last_logged(text: str) -> str:
    """The last message of a runtime's log in JSON lines; "" if there is none."""
    for line in reversed(text.splitlines()):
        try:
            return msgspec.json.decode(line, type=_LogLine).msg
        except msgspec.DecodeError:  # cut off, or something else wrote there
            continue
    return ""


def _failed(prefix: str, step: str, text: str, program: str) -> StartFailed:
    reason = _reason(_DECORATION.sub("", _COLOUR.sub("", text).strip()), program)
    return StartFailed(f"{prefix}{step}{_UNABLE}{reason}: unknown", exit_code(reason))


def exit_code(reason: str) -> int:
    """127 not found, 126 cannot be executed, 128 anything else (moby's errors from containerd, docker CLI's run)."""
    lowered = reason.lower()
    if any(words in lowered for words in _NOT_FOUND):
        return 127
    return 126 if any(words in lowered for words in _NOT_RUNNABLE) else 128


def _reason(text: str, program: str) -> str:
    if (line := _RUNC_LEVEL.search(text)) is not None:
        text = line["text"].replace('\\"', '"')
    text = _RUNC_PREFIX.sub("", text).removeprefix(_UNABLE)
    if (match := _CRUN_NOT_FOUND.search(text)) is not None:
        name = match["name"]
        if "/" in name:
            return f'exec: "{name}": stat {name}: no such file or directory'
        return f'exec: "{name}": executable file not found in $PATH'
    # crun 1.8 opens what it is to execute and says only that; a directory fails with EPERM, a plain file with EACCES.
    if text.startswith("open executable: Operation not permitted"):
        return f'exec: "{program}": is a directory' if program else 'exec: "": executable file not found in $PATH'
    if text.startswith("open executable:") or re.match(r"exec [`'].*[`']: Permission denied", text):
        return f'exec: "{program}": permission denied'
    if (match := _CRUN_CHDIR.fullmatch(text)) is not None:
        return f'chdir to cwd ("{match["path"]}") set in config.json failed: {match["why"].lower()}'
    if (match := _CRUN_MOUNT.fullmatch(text)) is not None:
        return (
            f'error mounting "{match["source"]}" to rootfs at "/{match["target"]}": not a directory: Are you trying to '
            "mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the "
            "expected type"
        )
    if text.startswith("exec:") or not text:
        return text or "the runtime gave no reason"
    return _lowered_errno(text)


def _lowered_errno(text: str) -> str:
    """crun ends with strerror's capitalised text where Go programs, and thus Docker's users, have it in lower case."""
    head, separator, tail = text.rpartition(": ")
    return f"{head}{separator}{tail[:1].lower()}{tail[1:]}" if separator else text
