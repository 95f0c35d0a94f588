"""A cluster of `swarmlet up` and stock clients to drive it: what every end-to-end test uses.

Apart from `conftest`, whose name is not its own: every folder of tests may have one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from swarmlet.local import hosts
from swarmlet.local.layout import ClusterLayout, HostLayout

NAME = os.environ.get("SWARMLET_E2E_NAME", "e2e")
T = TypeVar("T")


def swarmlet(*args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The installed command."""
    program = str(Path(sys.executable).with_name("swarmlet"))
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise AssertionError(f"swarmlet {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def eventually(check: Callable[[], T], timeout_s: float = 60.0, period_s: float = 0.1) -> T:
    """The first true value of check; its last error or value otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        error: BaseException | None = None
        value: Any = None
        try:
            value = check()
            if value:
                return value
        except (AssertionError, LookupError, ValueError, OSError) as err:
            error = err
        if time.monotonic() > deadline:
            if error is not None:
                raise error
            raise AssertionError(f"still {value!r} after {timeout_s} s")
        time.sleep(period_s)


def hang_up(connection: Any) -> None:
    """Close what docker-py's attach_socket or exec_start(socket=True) gave: its own close leaves the socket open."""
    connection._sock.close()
    connection.close()


@dataclass
class View:
    """One engine endpoint, driven by the stock docker command."""

    socket: Path

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def run(
        self, *args: str, input: bytes | None = None, timeout: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """The docker command; never raises for its exit code."""
        return subprocess.run(
            ["docker", *args],
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout,
            env=os.environ | {"DOCKER_HOST": self.url} | (env or {}),
        )

    def __call__(self, *args: str, input: bytes | None = None, timeout: float = 60) -> str:
        """The docker command's standard output, stripped; a failure shows everything it said."""
        done = self.run(*args, input=input, timeout=timeout)
        if done.returncode:
            said = f"{done.stdout!r}\n{done.stderr!r}"
            raise AssertionError(f"docker {' '.join(args)}: exit code {done.returncode}\n{said}")
        return done.stdout.decode().strip()

    def popen(self, *args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["docker", *args], env=os.environ | {"DOCKER_HOST": self.url}, **kwargs)

    def json(self, *args: str) -> Any:
        """The output, decoded."""
        return json.loads(self(*args))

    def rows(self, *args: str) -> list[dict[str, str]]:
        """A list command's rows as dicts."""
        return [json.loads(line) for line in self(*args, "--format", "{{json .}}").splitlines() if line]


class Cluster:
    """The cluster under test."""

    def __init__(self, layout: ClusterLayout) -> None:
        self.layout = layout
        self.view = View(layout.nodes[0].manager_socket)

    def host(self, number: int) -> HostLayout:
        return self.layout.nodes[number - 1]

    def node(self, number: int) -> View:
        """A node's own engine."""
        return View(self.host(number).agent_socket)

    def exec(self, number: int, *argv: str, check: bool = True) -> str:
        """A command in a host's namespaces."""
        done = subprocess.run(hosts.enter_argv(self.host(number), argv), capture_output=True, text=True, timeout=30)
        if check and done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def command(self, verb: str, number: int) -> None:
        swarmlet("host", verb, self.host(number).name, "--name", self.layout.name)

    def pid(self, number: int, program: str) -> int:
        """The pid of a host's agent, manager or etcd."""
        host = self.host(number)
        for pid in sorted(hosts.host_pids(host)):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(os.path.basename(word.decode(errors="replace")) == program for word in words[:2]):
                if words[0].endswith(b"sh"):
                    continue  # the supervisor's shell has the program's name in its arguments
                return pid
        raise LookupError(f"no {program} on {host.name}")

    def tasks(self, service: str, *, desired: str = "running") -> list[dict[str, str]]:
        """Rows of `docker service ps`."""
        return self.view.rows("service", "ps", service, "--no-trunc", "--filter", f"desired-state={desired}")

    def running(self, service: str) -> list[dict[str, str]]:
        return [task for task in self.tasks(service) if task["CurrentState"].startswith("Running")]

    def wait_running(self, service: str, count: int, timeout_s: float = 60) -> list[dict[str, str]]:
        def settled() -> list[dict[str, str]] | None:
            found = self.running(service)
            return found if len(found) == count and len(self.tasks(service)) == count else None

        found = eventually(settled, timeout_s)
        assert found is not None
        return found

    def ready(self) -> set[str]:
        return {node["Hostname"] for node in self.view.rows("node", "ls") if node["Status"] == "Ready"}
