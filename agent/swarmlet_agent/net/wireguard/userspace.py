"""WireGuard as a program of its own (wireguard-go and its like), for kernels without it. In the "net" thread only.

A device is a process: it ends with its interface, and its interface with it. It is spoken to by a socket in
`folder`, in the text protocol of https://www.wireguard.com/xplatform/. The programs make that socket at a fixed place
of the file system, so each gets a view of its own in which the place is `folder`: hosts that share a file system (but
no network namespace) then have their own. The program outlives the agent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from swarmlet.errors import Internal
from swarmlet_agent.net.wireguard.plan import DeviceChange, DeviceNow, Peer

#: Where these programs make their sockets.
PLACE = "/var/run/wireguard"
START_S = 5.0
ANSWER_S = 5.0
END_S = 1.0
_LOOK_S = 0.01
_IN_A_VIEW = 'mkdir -p "$1" && mount --bind "$0" "$1" && exec "$2" -f "$3"'


class UserspaceDevices:
    """Devices of one network namespace. program: name or path; folder: this host's own, for the sockets."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def lacking(self) -> str:
        if shutil.which(self._program) is None:
            return f"there is no program {self._program} (setting wireguard_program)"
        if not Path("/dev/net/tun").exists():
            return f"there is no /dev/net/tun, which {self._program} needs"
        return ""

    def create(self, name: str) -> None:
        """Start it; it answers, and its interface is there, when this returns. Internal if it does not come up."""
        self._reap()
        program = shutil.which(self._program)
        if program is None:
            raise Internal(self.lacking())
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path(name).unlink(missing_ok=True)
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_A_VIEW]
        process = subprocess.Popen(
            [*argv, str(self._folder), PLACE, program, name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/", env=os.environ | {"LOG_LEVEL": "error"},
        )
        self._running[name] = process
        deadline = time.monotonic() + START_S
        while not self._path(name).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Internal(f"{self._program} did not make interface {name}")
            time.sleep(_LOOK_S)

    def read(self, name: str) -> DeviceNow:
        return parse(self._ask(name, "get=1\n\n"))

    def change(self, name: str, change: DeviceChange) -> None:
        self._ask(name, text_of(change))

    def removed(self, name: str) -> None:
        """Its interface has been deleted: the program ends by itself, at once."""
        self._path(name).unlink(missing_ok=True)
        if (process := self._running.get(name)) is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        self._reap()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.sock"

    def _ask(self, name: str, question: str) -> list[str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ANSWER_S)
            line.connect(str(self._path(name)))
            line.sendall(question.encode())
            answer = b""
            while not answer.endswith(b"\n\n"):
                if not (part := line.recv(65536)):
                    break
                answer += part
        lines = answer.decode().split()
        if "errno=0" not in lines:
            raise Internal(f"{self._program} refuses a change of {name}: {' '.join(lines[-1:])}")
        return lines

    def _reap(self) -> None:
        """Children of this agent that have ended."""
        with contextlib.suppress(ChildProcessError):
            self._running = {name: process for name, process in self._running.items() if process.poll() is None}


def text_of(change: DeviceChange) -> str:
    """A change as a `set` operation. Who goes, goes first: an inner address belongs to one peer at a time."""
    lines = ["set=1"]
    if change.private_key is not None:
        lines.append(f"private_key={change.private_key.hex()}")
    if change.port is not None:
        lines.append(f"listen_port={change.port}")
    for key in change.gone:
        lines += [f"public_key={key.hex()}", "remove=true"]
    for peer in change.peers:
        address = f"[{peer.address}]" if ":" in peer.address else peer.address
        lines += [
            f"public_key={peer.public_key.hex()}", f"endpoint={address}:{peer.port}", "replace_allowed_ips=true",
            f"allowed_ip={peer.inner}/{128 if ':' in peer.inner else 32}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n\n"


def parse(lines: Iterable[str]) -> DeviceNow:
    """The answer to a `get` operation."""
    key, port = b"", 0
    peers: list[Peer] = []
    for line in lines:
        name, _, value = line.partition("=")
        match name:
            case "private_key":
                key = bytes.fromhex(value)
            case "listen_port":
                port = int(value)
            case "public_key":
                peers.append(Peer(bytes.fromhex(value), "", 0, ""))
            case "endpoint":
                host, _, number = value.rpartition(":")
                peers[-1] = Peer(peers[-1].public_key, host.strip("[]"), int(number), peers[-1].inner)
            case "allowed_ip":
                inner = ",".join(filter(None, (peers[-1].inner, value.partition("/")[0])))
                peers[-1] = Peer(peers[-1].public_key, peers[-1].address, peers[-1].port, inner)
            case _:
                pass
    return DeviceNow(key, port, tuple(peers))
