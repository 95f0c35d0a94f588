"""An agent killed with -9 at any moment of creating, starting, executing and removing, again and again.

What a client was told holds, and once everything is removed the kernel has nothing left of it. The seed of the moments
and the work is in the failure.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest
import requests
import urllib3
from docker.types import Mount
from real_node import RealNode

from swarmlet.local import hosts

pytestmark = pytest.mark.kernel

ROUNDS = 5
#: Kills come this long after the work began: from the first request to well into the second container.
LATEST_KILL_S = 1.2
#: What a client sees of an agent that is no more; a refusal (APIError) is none of it.
_GONE = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError, docker.errors.DockerException)


@dataclass
class Told:
    """What clients were told, by name."""

    made: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    #: Asked to go; only an answer says that it has.
    asked_to_go: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)


def work(node: RealNode, told: Told, number: int, seed: int) -> None:
    """Until the agent is no more."""
    try:
        make_and_remove(node, told, number, seed)
    except docker.errors.APIError as err:
        told.refusals.append(str(err))
    except _GONE:
        return


def make_and_remove(node: RealNode, told: Told, number: int, seed: int) -> None:
    """Containers with all kinds of mounts, one after the other."""
    dice = random.Random(seed)
    client = docker.DockerClient(base_url=node.url, timeout=20)
    with contextlib.closing(client):
        for count in range(50):
            name = f"w{number}-{count}-{seed}"
            mounts = [
                Mount("/named", f"vol{dice.randrange(3)}"), Mount("/anon", None),
                Mount("/bind", str(node.base), type="bind"), Mount("/t", None, type="tmpfs"),
            ]
            box = client.containers.create(
                "busybox", ["sleep", "600"], name=name, mounts=dice.sample(mounts, dice.randrange(len(mounts) + 1)),
                ipc_mode=dice.choice(("private", "shareable")), mem_limit="32m",
            )
            told.made.add(name)
            if dice.random() < 0.8:
                box.start()
                told.started.add(name)
            if dice.random() < 0.5 and name in told.started:
                client.api.exec_start(client.api.exec_create(box.id, ["true"]), detach=True)
            if dice.random() < 0.7:
                told.asked_to_go.add(name)
                box.remove(force=True, v=True)
                told.gone.add(name)


def check(node: RealNode, told: Told) -> None:
    with node.client() as client:
        found = {box.name: box.status for box in client.containers.list(all=True)}
    assert told.refusals == []
    assert told.made - told.asked_to_go <= set(found)
    assert not told.gone & set(found)
    for name in told.started - told.asked_to_go:
        assert found[name] == "running", (name, found[name])


def leftovers(node: RealNode) -> list[str]:
    """Mounts, cgroups, folders, namespaces and processes of containers; conmon's own group stays with the agent."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in lines if f"{node.base}/data/containers-rootfs/" in line or f"/run/{node.name}/c" in line]
    for hierarchy in hosts.cgroup_hierarchies():
        parent = Path(f"{hierarchy}/{node.name}")
        found += [str(path) for path in parent.glob("*") if path.is_dir() and len(path.name) == 64]
    for folder in (
        node.base / "data/containers", node.base / "data/containers-rootfs", Path(f"/run/{node.name}/containers"),
        Path(f"/run/{node.name}/oci"), Path(f"/run/{node.name}/exits"), Path(f"/run/{node.name}/engine"),
        Path(f"/run/{node.name}/netns"),
    ):  # fmt: skip
        found += [str(path) for path in folder.glob("[!.]*")]
    done = subprocess.run(["pgrep", "-f", f"/run/{node.name}/containers/"], capture_output=True, text=True, check=False)
    return found + done.stdout.split()


@pytest.fixture
def seed() -> Iterator[int]:
    value = int(os.environ.get("SWARMLET_SEED", random.randrange(1 << 20)))
    print(f"SWARMLET_SEED={value}")
    yield value


# Connections that broke in a client's hands are closed by the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whenever_the_agent_is_killed_what_was_told_holds_and_nothing_stays_behind(
    real_node: RealNode, seed: int
) -> None:
    dice = random.Random(seed)
    told = Told()
    for _ in range(ROUNDS):
        workers = [
            threading.Thread(target=work, args=(real_node, told, number, dice.randrange(1 << 20)))
            for number in range(3)
        ]
        for worker in workers:
            worker.start()
        time.sleep(dice.uniform(0.02, LATEST_KILL_S))  # the moment is the point
        real_node.end(signal.SIGKILL)
        for worker in workers:
            worker.join()
        real_node.start()
        check(real_node, told)
    assert told.made
    with real_node.client() as client:
        last = client.containers.run("busybox", ["sleep", "600"], detach=True)
        assert any(last.id in trace for trace in leftovers(real_node))  # else the look at it sees nothing
        for box in client.containers.list(all=True):
            box.remove(force=True, v=True)
        client.volumes.prune(filters={"all": "true"})
        assert client.volumes.list() == []
    deadline = time.monotonic() + 60
    while (left := leftovers(real_node)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
