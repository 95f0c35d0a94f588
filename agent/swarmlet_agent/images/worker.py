"""The unpacking process: `python -m swarmlet_agent.images.worker`, one layer after another.

A process of its own because unpacking is CPU the agent's loop must not wait for, because it can be killed in the
middle, and because it locks itself into the layer's folder (chroot) while it handles what it must not trust.

Frames on stdin and stdout: 4 bytes big-endian length, JSON of Job / Report (bytes as Latin-1). By the standard library:
a quarter of what the process costs before its first layer would be importing another.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from typing import BinaryIO

from swarmlet.memory import keep_for_reuse
from swarmlet_agent.images.feed import BadLayer
from swarmlet_agent.images.unpack import Limits, unpack_layer

LENGTH = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Unpack `length` bytes at `offset` of the file `source` into `folder`: diff/, kept/ and recipe. ahead: see `Feed`
    in feed.py."""

    source: str
    offset: int
    length: int
    folder: str
    label: str
    expected: str | None
    limits: tuple[int, int, int]
    ahead: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Progress (`consumed` source bytes), or the end: `error` with its kind, or what the layer turned out to be."""

    consumed: int = 0
    finished: bool = False
    error: str = ""
    bad_layer: bool = False
    diff_id: str = ""
    tar_bytes: int = 0
    size_bytes: int = 0
    implied: tuple[str, ...] = ()


def do(job: Job, old_root: int, out: BinaryIO) -> Report:
    with open(job.source, "rb", buffering=0) as source, open(f"{job.folder}/recipe", "xb") as recipe:
        source.seek(job.offset)
        os.mkdir(f"{job.folder}/diff", 0o755)
        os.chroot(job.folder)
        os.chdir("/")
        try:
            done = unpack_layer(
                source, job.length, b"/diff", b"/kept", recipe, label=job.label, expected=job.expected,
                limits=Limits(*job.limits), report=lambda consumed: _send(out, Report(consumed=consumed)),
                ahead=job.ahead,
            )
        finally:
            os.fchdir(old_root)
            os.chroot(".")
    return Report(
        finished=True, diff_id=done.diff_id, tar_bytes=done.tar_bytes, size_bytes=done.size_bytes,
        implied=tuple(path.decode("latin-1") for path in done.implied),
    )


def main() -> None:
    # An agent that is killed takes its unpackers along; what they left is removed at the next start.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_for_reuse()
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    old_root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    while head := incoming.read(LENGTH.size):
        job = Job(**json.loads(incoming.read(LENGTH.unpack(head)[0])))
        try:
            report = do(job, old_root, outgoing)
        except BadLayer as err:
            report = Report(finished=True, error=str(err), bad_layer=True)
        except OSError as err:
            report = Report(finished=True, error=f"layer {job.label} cannot be unpacked: {err.strerror or err}")
        except MemoryError:
            report = Report(finished=True, error=f"layer {job.label} cannot be unpacked: out of memory")
        try:
            _send(outgoing, report)
        except BrokenPipeError:  # the agent was killed, and this process is about to be
            os._exit(1)


def _send(out: BinaryIO, report: Report) -> None:
    data = json.dumps(asdict(report)).encode()
    out.write(LENGTH.pack(len(data)) + data)
    out.flush()


if __name__ == "__main__":
    main()
