"""The cluster the benchmarks run on, and the floor: the bare conmon and OCI runtime on the agent's own bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swarmlet.local import cluster as clusters
from swarmlet.local import hosts
from swarmlet.local.client import call
from swarmlet.local.images import ensure_images
from swarmlet.local.layout import ClusterLayout

NAME = os.environ.get("SWARMLET_E2E_NAME", "bench")
#: Where the floor's containers are counted.
CGROUP = "/swarmlet-floor"


@contextmanager
def cluster() -> Iterator[ClusterLayout]:
    """Three nodes, removed at the end."""
    if NAME in clusters.all_names():
        clusters.down(NAME)
    try:
        layout = clusters.up(NAME, 3, lambda line: None)
        ensure_images(layout)
        yield layout
    finally:
        if NAME in clusters.all_names():
            clusters.down(NAME)


def docker(socket: Path, *args: str, timeout: float = 120) -> str:
    """The stock docker command; its output, stripped."""
    environ = os.environ | {"DOCKER_HOST": f"unix://{socket}"}
    done = subprocess.run(
        ["docker", *args], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()


def agent_bundle(layout: ClusterLayout, *command: str, network: str = "none") -> dict[str, Any]:
    """The OCI configuration that the agent makes for busybox running this command."""
    host = layout.nodes[0]
    ident = docker(host.agent_socket, "run", "-d", "--network", network, "busybox", "sleep", "600")
    try:
        config = next(host.run_dir.rglob(f"{ident}/**/config.json"))
        spec: dict[str, Any] = json.loads(config.read_text())
    finally:
        docker(host.agent_socket, "rm", "-f", ident)
    spec["process"]["args"] = list(command)
    return spec


class Floor:
    """Runs bundles by conmon and the OCI runtime alone, in a private mount namespace as the agent's runtime has it."""

    def __init__(self, spec: dict[str, Any], rootfs_archive: Path | None = None) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="swarmlet-floor-"))
        self._spec = spec
        self._rootfs = self._dir / "rootfs"
        busybox = shutil.which("busybox") or "/bin/busybox"
        (self._rootfs / "bin").mkdir(parents=True)
        shutil.copy(busybox, self._rootfs / "bin/busybox")
        for applet in ("true", "sleep", "sh"):
            (self._rootfs / "bin" / applet).symlink_to("busybox")
        for folder in ("proc", "sys", "dev", "etc", "tmp"):
            (self._rootfs / folder).mkdir()

    def close(self) -> None:
        shutil.rmtree(self._dir)
        hosts.remove_cgroups(CGROUP)

    def measure(self, mode: str, count: int, parallel: int = 1) -> dict[str, list[float]]:
        """mode "run": create, start, wait, delete of each; "start": create and start of all, then delete.
        Returns seconds per run, and for "start" the seconds until all of them ran."""
        request = {
            "spec": self._spec, "dir": str(self._dir), "rootfs": str(self._rootfs), "mode": mode, "count": count,
            "parallel": parallel,
        }
        script = (
            "mount --make-rprivate / && { [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; } && "
            'exec "$0" -m benchmarks.lab'
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, sys.executable], input=json.dumps(request), text=True,
            capture_output=True, timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"floor: {done.stderr[-1000:]}")
        answer: dict[str, list[float]] = json.loads(done.stdout)
        return answer


def runtime_name() -> str:
    return shutil.which("crun") or shutil.which("runc") or "runc"


class _Bare:
    """The measuring side, inside the private mount namespace."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._dir = Path(request["dir"])
        self._runtime = runtime_name()
        self._options = ["--cgroup-manager=cgroupfs"] if self._runtime.endswith("crun") else []
        self._options += ["--root", str(self._dir / "state")]

    def bundle(self, ident: str) -> Path:
        spec = json.loads(json.dumps(self._request["spec"]))
        spec["root"] = {"path": self._request["rootfs"], "readonly": True}
        spec["linux"]["cgroupsPath"] = f"{CGROUP}/{ident}"
        for space in spec["linux"]["namespaces"]:
            if space["type"] == "network":
                space.pop("path", None)
        spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/etc/")]
        folder = self._dir / "bundles" / ident
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(spec))
        return folder

    def start(self, ident: str, bundle: Path) -> None:
        read, write = os.pipe()
        argv = [
            "conmon", "--api-version", "1", "-c", ident, "-u", ident, "-r", self._runtime, "-b", str(bundle),
            "-p", str(bundle / "pid"), "-P", str(bundle / "conmon.pid"), "-l", f"k8s-file:{bundle}/log",
            "--exit-dir", str(self._dir), "--socket-dir-path", str(bundle),
        ]
        argv += [word for option in self._options for word in ("--runtime-arg", option)]
        subprocess.run(
            argv, env={"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(write)}, pass_fds=(write,), check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read) as sync:
            answer = json.loads(sync.readline())
        if answer.get("data", -1) < 0:
            raise RuntimeError(f"conmon: {answer}")
        self.run("start", ident)

    def run(self, *argv: str) -> None:
        subprocess.run(
            [self._runtime, *self._options, *argv], check=True, capture_output=True, stdin=subprocess.DEVNULL
        )

    def wait(self, ident: str) -> None:
        while not (self._dir / ident).exists():
            time.sleep(0.0005)

    def runs(self, count: int) -> dict[str, list[float]]:
        times = []
        for turn in range(count):
            ident = f"swarmlet-floor-{os.getpid()}-{turn}"
            bundle = self.bundle(ident)
            began = time.perf_counter()
            self.start(ident, bundle)
            self.wait(ident)
            self.run("delete", ident)
            times.append(time.perf_counter() - began)
        return {"runs": times}

    def starts(self, count: int, parallel: int) -> dict[str, list[float]]:
        idents = [f"swarmlet-floor-{os.getpid()}-{turn}" for turn in range(count)]
        bundles = [self.bundle(ident) for ident in idents]
        with ThreadPoolExecutor(parallel) as pool:
            began = time.perf_counter()
            list(pool.map(self.start, idents, bundles))
            took = time.perf_counter() - began
            list(pool.map(lambda ident: self.run("delete", "--force", ident), idents))
        return {"all": [took]}


def _main() -> None:
    request = json.load(sys.stdin)
    bare = _Bare(request)
    count = request["count"]
    answer = bare.runs(count) if request["mode"] == "run" else bare.starts(count, request["parallel"])
    print(json.dumps(answer))


def api(socket: Path, method: str, url: str, body: Any = None) -> Any:
    return call(socket, method, url, body)


if __name__ == "__main__":
    _main()
