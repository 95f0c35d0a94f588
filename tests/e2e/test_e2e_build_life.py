"""A build from its first word to its end, or to its interruption; and the cache it leaves."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_builds import build, clean_node, tar_of, write
from e2e_cluster import Cluster, View, eventually


@pytest.fixture
def node(cluster: Cluster) -> Iterator[View]:
    """One node's engine, without images and cache of other tests."""
    with clean_node(cluster.node(2)) as view:
        yield view


def test_a_build_that_is_interrupted_leaves_nothing(view: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo be''gun; sleep 300\n"})
    process = view.popen("build", str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line == b"begun\n":
                break
        process.send_signal(2)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    eventually(lambda: view("ps", "-aq") == "")


def test_a_build_with_an_id_can_be_cancelled_by_it(view: View) -> None:
    packed = tar_of({"Dockerfile": b"FROM busybox\nRUN echo be''gun; sleep 300\n"})
    curl = ["curl", "-sN", "--unix-socket", str(view.socket), "-X", "POST"]
    process = subprocess.Popen(
        [*curl, "-H", "Content-Type: application/x-tar", "--data-binary", "@-", "http://d/v1.50/build?buildid=mine"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(packed)
        process.stdin.close()
        said = b""
        while b"begun" not in said and (line := process.stdout.readline()):
            said += line
        subprocess.run([*curl, "http://d/v1.50/build/cancel?id=mine"], check=True, timeout=30)
        rest = process.stdout.read()
        assert b"canceled" in rest and b"Successfully" not in rest
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    eventually(lambda: view("ps", "-aq") == "")


def test_an_agent_killed_in_the_middle_of_a_build_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.node(3)
    write(tmp_path, {
        "Dockerfile": "FROM busybox\nCOPY f /\nRUN echo one > /1\nRUN echo be''gun; sleep 300\n", "f": "same again",
    })
    layers = cluster.host(3).data_dir / "data" / "images" / "layers"
    before = set(layers.iterdir())
    process = node.popen("build", str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line == b"begun\n":
                break
        os.kill(cluster.pid(3, "swarmlet-agent"), 9)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    eventually(lambda: node.run("ps").returncode == 0)
    eventually(lambda: node("ps", "-aq") == "")
    assert not list((cluster.host(3).data_dir / "data" / "containers-rootfs").glob("build-*"))
    eventually(lambda: set(layers.iterdir()) == before)
    write(tmp_path, {"Dockerfile": "FROM busybox\nCOPY f /\nRUN echo one > /1\n"})
    assert "Successfully built" in build(node, tmp_path)
    os.kill(cluster.pid(3, "swarmlet-agent"), 9)
    eventually(lambda: node.run("ps").returncode == 0)
    assert build(node, tmp_path).count("Using cache") == 3
    node("builder", "prune", "-af")


def test_a_build_answers_as_it_goes(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo early; sleep 3; echo late\n"})
    process = node.popen("build", str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen: dict[bytes, float] = {}
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            seen[line] = time.monotonic()
    assert process.wait(30) == 0
    assert seen[b"late\n"] - seen[b"early\n"] > 2


def test_independent_stages_run_side_by_side(node: View, tmp_path: Path) -> None:
    def meet(mine: str, other: str) -> str:
        """Ends once the other has begun."""
        waits = f"touch /met/{mine}; while [ ! -e /met/{other} ]; do sleep 0.1; done; echo {mine} > /r"
        return f"FROM busybox AS {mine}\nRUN --mount=type=cache,target=/met,id={tmp_path.name} {waits}\n"

    last = "FROM busybox\nCOPY --from=a /r /a\nCOPY --from=b /r /b\n"
    write(tmp_path, {"Dockerfile": meet("a", "b") + meet("b", "a") + last})
    said = build(node, tmp_path)
    told = [line.split()[1] for line in said.splitlines() if line.startswith("Step ")]
    assert told == [f"{number}/8" for number in range(1, 9)]


def test_the_cache_is_shown_and_pruned_and_outlives_the_image(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN head -c 100000 /dev/zero > /big\n"})
    build(node, tmp_path, "-t", "pruned")
    node("rmi", "pruned")
    assert "Using cache" in build(node, tmp_path)
    usage = node.json("system", "df", "-v", "--format", "{{json .BuildCache}}")
    assert any("head -c 100000" in entry["Description"] for entry in usage)
    node("image", "prune", "-f")
    done = node("builder", "prune", "-af")
    assert "Total reclaimed space: 100kB" in done
    assert "Using cache" not in build(node, tmp_path)


def test_an_image_can_be_the_cache_of_a_later_build(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nENV A=1\nRUN echo slow > /slow\nCOPY f /f\n", "f": "1"})
    build(node, tmp_path, "-t", "source")
    archive = node.run("save", "source").stdout
    node("rmi", "source")
    node("builder", "prune", "-af")
    node("load", input=archive)
    assert "Using cache" not in build(node, tmp_path)
    node("builder", "prune", "-af")
    (tmp_path / "f").write_text("2")
    said = build(node, tmp_path, "--cache-from", "source")
    assert said.count("Using cache") == 2, said
