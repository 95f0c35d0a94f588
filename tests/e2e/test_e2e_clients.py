"""The Python clients, docker-py and aiodocker, against a node's engine and against the cluster."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import aiodocker
import docker
import docker.errors
import docker.types
import pytest
from docker import DockerClient
from e2e_cluster import Cluster, View, eventually
from registry_fill import busybox_image, push

#: Both clients leave the sockets of hijacked connections (exec, attach) to the garbage collector, which is run while
#: these tests' own filter holds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:Unclosed (connection|response):ResourceWarning"
)


@pytest.fixture
def sync(view: View) -> Iterator[DockerClient]:
    """docker-py on each view in turn."""
    client = DockerClient(base_url=view.url, timeout=60)
    yield client
    client.close()
    del client
    gc.collect()


@pytest.fixture
def manager(cluster: Cluster) -> Iterator[DockerClient]:
    """docker-py on the cluster view."""
    client = DockerClient(base_url=cluster.view.url, timeout=60)
    yield client
    client.close()
    del client
    gc.collect()


@pytest.fixture
async def aio(view: View) -> AsyncIterator[aiodocker.Docker]:
    """aiodocker on each view in turn."""
    client = aiodocker.Docker(url=view.url)
    yield client
    await client.close()
    del client
    gc.collect()


@pytest.fixture
async def aio_manager(cluster: Cluster) -> AsyncIterator[aiodocker.Docker]:
    client = aiodocker.Docker(url=cluster.view.url)
    yield client
    await client.close()
    del client
    gc.collect()


# --- docker-py


def test_docker_py_knows_whom_it_talks_to(sync: DockerClient) -> None:
    assert sync.ping()
    version, info = sync.version(), sync.info()
    assert version["ApiVersion"] == "1.50" and version["MinAPIVersion"] == "1.24" and version["Os"] == "linux"
    assert info["OSType"] == "linux" and info["NCPU"] >= 1 and info["Swarm"]["LocalNodeState"] == "active"
    assert sync.df()["LayersSize"] > 0


@pytest.mark.parametrize("api", ["1.24", "1.30", "1.40", "1.44", "1.50"])
def test_docker_py_speaks_every_version(cluster: Cluster, api: str) -> None:
    for view in (cluster.node(1), cluster.view):
        client = DockerClient(base_url=view.url, version=api)
        try:
            assert client.containers.run("busybox", "echo hello", remove=True) == b"hello\n"
            assert any("busybox:latest" in image.tags for image in client.images.list())
            assert client.networks.list(names=["bridge"])
        finally:
            client.close()


def test_docker_py_runs_containers(sync: DockerClient) -> None:
    assert sync.containers.run("busybox", ["sh", "-c", "echo out; echo err >&2"], remove=True) == b"out\n"
    both = sync.containers.run("busybox", ["sh", "-c", "echo out; echo err >&2"], remove=True, stderr=True)
    assert sorted(both.splitlines()) == [b"err", b"out"]
    with pytest.raises(docker.errors.ContainerError) as failed:
        sync.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    assert failed.value.exit_status == 3 and failed.value.stderr == b"bad\n"
    with pytest.raises(docker.errors.NotFound, match="No such container: nothing"):
        sync.containers.get("nothing")
    with pytest.raises(docker.errors.APIError) as refused:
        sync.containers.run("busybox", "true", mem_limit="1k")
    assert refused.value.status_code == 400


def test_docker_py_follows_a_containers_life(sync: DockerClient) -> None:
    box = sync.containers.run(
        "busybox", ["sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"], name="life", detach=True,
        environment={"A": "1"}, labels={"team": "a"}, mem_limit="64m", tmpfs={"/scratch": "size=1m"},
    )  # fmt: skip
    eventually(lambda: box.logs() == b"up\n")
    assert box.status in ("created", "running")
    box.reload()
    assert box.status == "running" and box.attrs["HostConfig"]["Memory"] == 64 << 20
    assert [each.name for each in sync.containers.list(filters={"label": "team=a"})] == ["life"]
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    assert "sh" in str(box.top()["Processes"])
    box.rename("lives")
    box.stop(timeout=5)
    assert box.wait()["StatusCode"] == 4
    box.start()
    box.restart(timeout=1)
    box.kill()
    assert box.wait()["StatusCode"] == 137
    box.remove()
    with pytest.raises(docker.errors.NotFound):
        sync.containers.get("lives")


def test_docker_py_execs_streams_and_counts(sync: DockerClient) -> None:
    box = sync.containers.run("busybox", "sleep 600", detach=True)
    code, output = box.exec_run(["sh", "-c", "echo $A; id -u; exit 6"], environment={"A": "b"}, user="nobody")
    assert (code, output) == (6, b"b\n65534\n")
    code, (out, err) = box.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
    assert (code, out, err) == (0, b"out\n", b"err\n")
    _, stream = box.exec_run(["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], stream=True)
    assert b"".join(stream).split() == [b"1", b"2", b"3"]

    stats = box.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0 and stats["pids_stats"]["current"] >= 1
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0 and "eth0" in stats["networks"]


def test_docker_py_attaches_and_follows_logs(sync: DockerClient) -> None:
    box = sync.containers.create("busybox", ["sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.2; done"])
    attached = box.attach(stream=True, logs=True)
    box.start()
    assert b"".join(attached) == b"line 1\nline 2\nline 3\n"
    assert b"".join(box.logs(stream=True, follow=True)) == b"line 1\nline 2\nline 3\n"
    assert box.logs(tail=1) == b"line 3\n"
    assert box.logs(timestamps=True, tail=1).split()[0].endswith(b"Z")


def test_docker_py_hears_events(sync: DockerClient) -> None:
    heard: list[dict[str, Any]] = []
    events = sync.events(decode=True, filters={"type": "container", "label": "heard=yes"})
    listener = threading.Thread(target=lambda: heard.extend(events))
    listener.start()
    since = int(time.time()) - 1
    sync.containers.run("busybox", "true", labels={"heard": "yes"}, remove=True)
    wanted = ["create", "start", "die", "destroy"]
    eventually(lambda: [event["Action"] for event in heard if event["Action"] in wanted] == wanted)
    events.close()
    listener.join(10)
    assert not listener.is_alive()
    past = sync.events(since=since, until=int(time.time()) + 1, decode=True, filters={"label": "heard=yes"})
    assert {"create", "start", "die", "destroy"} <= {event["Action"] for event in past}
    past.close()


def test_docker_py_handles_images(sync: DockerClient, registry: str) -> None:
    image = busybox_image().on({"from": b"docker-py"}, Labels={"by": "docker-py"})
    packed = push(registry, "py/image", "1", image)
    pulled = sync.images.pull(f"{registry}/py/image", tag="1")
    assert pulled.id == image.id and pulled.labels == {"by": "docker-py"}
    assert pulled.attrs["RepoDigests"] == [f"{registry}/py/image@{packed.digest}"]
    assert sync.images.get_registry_data(f"{registry}/py/image:1").id == packed.digest
    assert pulled.tag("py", "again") and sync.images.get("py:again").id == image.id
    assert pulled.history()[0]["CreatedBy"] == "ADD files in /"
    pulled.reload()
    archive = b"".join(pulled.save(named="py:again"))
    sync.images.remove("py:again")
    sync.images.remove(f"{registry}/py/image:1")
    with pytest.raises(docker.errors.ImageNotFound):
        sync.images.get("py:again")
    assert sync.images.load(archive)[0].tags == ["py:again"]
    assert sync.containers.run("py:again", "cat /from", remove=True) == b"docker-py"
    sync.images.remove("py:again")
    with pytest.raises(docker.errors.NotFound):
        sync.images.pull(f"{registry}/py/nowhere", tag="1")
    with pytest.raises(docker.errors.ImageLoadError, match="invalid"):
        sync.images.load(io.BytesIO(b"no archive" * 1000))


def test_docker_py_handles_volumes_and_networks(sync: DockerClient) -> None:
    volume = sync.volumes.create("py-data", labels={"a": "b"})
    network = sync.networks.create("py-net", labels={"a": "b"}, internal=True)
    try:
        assert [each.name for each in sync.volumes.list(filters={"label": "a=b"})] == ["py-data"]
        box = sync.containers.run(
            "busybox", "sleep 600", detach=True, network="py-net", volumes={"py-data": {"bind": "/data", "mode": "rw"}}
        )
        assert box.exec_run("touch /data/x").exit_code == 0
        assert set(box.attrs["NetworkSettings"]["Networks"]) == {"py-net"}
        network.disconnect(box)
        network.connect(box, aliases=["friend"])
        box.reload()
        assert "friend" in box.attrs["NetworkSettings"]["Networks"]["py-net"]["Aliases"]
        with pytest.raises(docker.errors.APIError, match="has active endpoints"):
            network.remove()
        with pytest.raises(docker.errors.APIError, match="in use"):
            volume.remove()
        box.remove(force=True)
    finally:
        for each in sync.containers.list(all=True):
            each.remove(force=True)
        network.remove()
        volume.remove()
    with pytest.raises(docker.errors.NotFound):
        sync.networks.get("py-net")
    with pytest.raises(docker.errors.NotFound):
        sync.volumes.get("py-data")


def test_docker_py_handles_services_and_nodes(manager: DockerClient, cluster: Cluster) -> None:
    assert {node.attrs["Description"]["Hostname"] for node in manager.nodes.list()} == {"node-1", "node-2", "node-3"}
    service = manager.services.create(
        "busybox", ["sh", "-c", "echo up; sleep 600"], name="py", env=["A=1"], labels={"team": "a"},
        mode=docker.types.ServiceMode("replicated", replicas=2), constraints=["node.hostname!=node-3"],
        resources=docker.types.Resources(mem_limit=64 << 20),
        restart_policy=docker.types.RestartPolicy("on-failure", max_attempts=2),
    )  # fmt: skip
    cluster.wait_running("py", 2)
    tasks = service.tasks(filters={"desired-state": "running"})
    assert [task["Status"]["State"] for task in tasks] == ["running"] * 2
    assert [each.name for each in manager.services.list(filters={"label": "team=a"})] == ["py"]
    eventually(lambda: b"".join(service.logs(stdout=True)).count(b"up\n") == 2)
    assert service.scale(3)
    cluster.wait_running("py", 3)
    service.reload()
    service.update(env=["A=2"])
    eventually(lambda: _environments(service) == ["A=2"] * 3)
    service.reload()
    assert service.attrs["PreviousSpec"] and service.version > 0
    with pytest.raises(docker.errors.APIError, match="update out of sequence"):
        manager.api.update_service(service.id, 1, service.attrs["Spec"]["TaskTemplate"], name="py")
    with pytest.raises(docker.errors.APIError) as taken:
        manager.services.create("busybox", "true", name="py")
    assert taken.value.status_code == 409
    assert service.remove()
    with pytest.raises(docker.errors.NotFound):
        manager.services.get("py")


def _environments(service: Any) -> list[str]:
    return [
        task["Spec"]["ContainerSpec"]["Env"][0]
        for task in service.tasks(filters={"desired-state": "running"})
        if task["Status"]["State"] == "running"
    ]


# --- aiodocker


async def test_aiodocker_runs_containers_and_reads_them(aio: aiodocker.Docker) -> None:
    assert (await aio.version())["ApiVersion"] == "1.50"
    assert (await aio.system.info())["OSType"] == "linux"
    box = await aio.containers.run(
        {"Image": "busybox", "Cmd": ["sh", "-c", "echo out; echo err >&2; exit 5"], "Labels": {"by": "aio"}}, name="aio"
    )
    assert (await box.wait())["StatusCode"] == 5
    assert await box.log(stdout=True) == ["out\n"] and await box.log(stderr=True) == ["err\n"]
    assert (await box.show())["State"]["ExitCode"] == 5
    listed = await aio.containers.list(all=True, filters={"label": ["by=aio"]})
    assert [each.id for each in listed] == [box.id]
    await box.delete()
    with pytest.raises(aiodocker.DockerError) as missing:
        await aio.containers.get("aio")
    assert missing.value.status == 404 and "No such container: aio" in str(missing.value.message)


async def test_aiodocker_execs_attaches_and_counts(aio: aiodocker.Docker) -> None:
    box = await aio.containers.run({"Image": "busybox", "Cmd": ["cat"], "OpenStdin": True, "AttachStdin": True})
    execution = await box.exec(["sh", "-c", "read x; echo got $x; exit 7"], stdin=True)
    async with execution.start() as stream:
        await stream.write_in(b"this\n")
        message = await stream.read_out()
        assert message is not None and message.data == b"got this\n"
        assert await stream.read_out() is None
    assert (await execution.inspect())["ExitCode"] == 7

    async with box.attach(stdin=True, stdout=True, stderr=True) as stream:
        await stream.write_in(b"typed\n")
        message = await stream.read_out()
        assert message is not None and message.data == b"typed\n"
    stats = await box.stats(stream=False)
    assert stats[0]["pids_stats"]["current"] == 1
    read = []
    async with aclosing(box.stats(stream=True)) as samples:
        async for sample in samples:
            read.append(sample["read"])
            if len(read) == 2:
                break
    assert read[0] < read[1]
    await box.kill()
    await box.delete(force=True)


async def test_aiodocker_hears_events(aio: aiodocker.Docker) -> None:
    subscriber = aio.events.subscribe()
    # The client connects in the background: a sign of life tells when it listens.
    first = asyncio.create_task(subscriber.get())
    try:
        for number in range(100):
            await (await aio.volumes.create({"Name": f"aio-sign-{number}"})).delete()
            if (await asyncio.wait([first], timeout=0.1))[0]:
                break
        assert first.done()
    finally:
        first.cancel()
    box = await aio.containers.run({"Image": "busybox", "Cmd": ["true"]}, name="heard")
    await box.wait()
    seen: list[str] = []
    while "die" not in seen:
        event = await subscriber.get()
        assert event is not None
        if event["Type"] == "container" and event["Actor"]["ID"] == box.id:
            seen.append(event["Action"])
    assert [action for action in seen if action in ("create", "start", "die")] == ["create", "start", "die"]
    await box.delete(force=True)


async def test_aiodocker_handles_images_volumes_and_networks(aio: aiodocker.Docker, registry: str) -> None:
    image = busybox_image().on({"from": b"aiodocker"})
    push(registry, "aio/image", "1", image)
    name = f"{registry}/aio/image:1"
    lines = await aio.images.pull(name)
    assert any("Downloaded newer image" in line.get("status", "") for line in lines)
    assert (await aio.images.inspect(name))["Id"] == image.id
    assert await aio.images.tag(name, "aio", tag="2")
    assert any("aio:2" in (entry["RepoTags"] or ()) for entry in await aio.images.list())
    deleted = [entry for ref in ("aio:2", name) for entry in await aio.images.delete(ref)]
    assert {"Deleted": image.id} in deleted

    volume = await aio.volumes.create({"Name": "aio-data", "Labels": {"a": "b"}})
    assert (await volume.show())["Driver"] == "local"
    await volume.delete()
    network = await aio.networks.create({"Name": "aio-net", "CheckDuplicate": True})
    try:
        box = await aio.containers.run({"Image": "busybox", "Cmd": ["sleep", "600"]}, name="aio")
        await network.connect({"Container": "aio"})
        assert "aio-net" in (await box.show())["NetworkSettings"]["Networks"]
        await network.disconnect({"Container": "aio"})
        await box.delete(force=True)
    finally:
        await network.delete()


async def test_aiodocker_handles_services(aio_manager: aiodocker.Docker, cluster: Cluster) -> None:
    made = await aio_manager.services.create(
        task_template={"ContainerSpec": {"Image": "busybox", "Command": ["sleep", "600"]}}, name="aio",
        mode={"Replicated": {"Replicas": 2}}, labels={"by": "aio"},
    )  # fmt: skip
    cluster.wait_running("aio", 2)
    shown = await aio_manager.services.inspect("aio")
    assert shown["ID"] == made["ID"] and shown["Spec"]["Labels"] == {"by": "aio"}
    assert len(await aio_manager.tasks.list(filters={"service": "aio"})) == 2
    assert [each["Spec"]["Name"] for each in await aio_manager.services.list()] == ["aio"]
    assert await aio_manager.services.update("aio", shown["Version"]["Index"], image="busybox:latest")
    assert len(await aio_manager.nodes.list()) == 3
    assert await aio_manager.services.delete("aio")
    assert await aio_manager.services.list() == []
