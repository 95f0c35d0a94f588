"""Stock client libraries, and streams under load, on a real agent."""

from __future__ import annotations

import gc
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import aiodocker
import docker
import pytest
from real_node import RealNode

# docker-py leaves the sockets of finished execs to the garbage collector.
pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(autouse=True)
def collect_sockets_of_docker_py() -> Iterator[None]:
    """Here and not in some later test, where the warning would be an error."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_docker_py_runs_reads_and_removes(real_node: RealNode) -> None:
    with real_node.client() as client:
        assert client.containers.run("busybox", "echo hello", remove=True) == b"hello\n"
        with pytest.raises(docker.errors.ContainerError) as error:
            client.containers.run("busybox", "sh -c 'echo bad >&2; exit 3'", remove=True)
        assert error.value.exit_status == 3
        assert error.value.stderr == b"bad\n"
        script = "for i in 1 2 3; do echo $i; sleep 0.05; done; sleep 100"
        container = client.containers.run("busybox", ["sh", "-c", script], detach=True, name="py", labels={"a": "b"})
        lines = container.logs(stream=True, follow=True)
        assert [next(lines) for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
        lines.close()
        assert [each.name for each in client.containers.list(filters={"label": "a=b"})] == ["py"]
        run = container.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True)
        assert (run.exit_code, run.output) == (4, (b"o\n", b"e\n"))
        stats = container.stats(stream=False)
        assert stats["memory_stats"]["usage"] > 0
        assert stats["cpu_stats"]["system_cpu_usage"] > stats["precpu_stats"]["system_cpu_usage"]
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        container.remove()
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("py")


async def test_aiodocker_attaches_execs_and_follows(real_node: RealNode) -> None:
    async with aiodocker.Docker(url=real_node.url) as client:
        body = {"Image": "busybox", "Cmd": ["sh", "-c", "echo begun; cat"], "OpenStdin": True}
        container = await client.containers.create_or_replace("aio", body)
        await container.start()
        run = await container.exec(["cat"], stdin=True)
        async with run.start(detach=False) as stream:
            await stream.write_in(b"ping")
            message = await stream.read_out()
            assert message is not None and message.data == b"ping"
        async with container.attach(stdin=True, stdout=True, stderr=True) as stream:
            await stream.write_in(b"typed\n")
            message = await stream.read_out()
            assert message is not None and message.data == b"typed\n"
        socket = await container.websocket(stdin=True, stdout=True, stream=True)
        await socket.send_str("through the web\n")
        assert (await socket.receive()).data == b"through the web\n"
        await socket.close()
        assert await container.log(stdout=True) == ["begun\n", "typed\n", "through the web\n"]
        await container.delete(force=True)


def test_a_client_that_does_not_read_costs_no_memory_and_gets_everything(real_node: RealNode) -> None:
    size = 200 << 20
    with real_node.client() as client:
        container = client.containers.run("busybox", "sleep 100", detach=True)
        command = ["dd", "if=/dev/zero", "bs=65536", f"count={size >> 16}"]
        ident = client.api.exec_create(container.id, command, stderr=False)
        stream = client.api.exec_start(ident["Id"], stream=True)
        time.sleep(1)
        assert real_node.process is not None
        status = Path(f"/proc/{real_node.process.pid}/status").read_text()
        peak_kb = int(status.split("VmHWM:")[1].split()[0])
        received = sum(len(part) for part in stream)
        assert client.api.exec_inspect(ident["Id"])["ExitCode"] == 0
        container.remove(force=True)

    assert received == size
    assert peak_kb < 150_000


def test_logs_exec_and_exit_codes_survive_the_agent(real_node: RealNode) -> None:
    script = "trap 'exit 9' TERM; i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done"
    with real_node.client() as client:
        ident = client.containers.run("busybox", ["sh", "-c", script], detach=True, name="survivor").id
    time.sleep(0.3)
    real_node.end(signal.SIGKILL)
    time.sleep(0.3)
    real_node.start()
    with real_node.client() as client:
        container = client.containers.get("survivor")
        assert container.id == ident
        assert container.exec_run("echo still here").output == b"still here\n"
        for _ in range(300):
            if len(container.logs().split()) > 10:
                break
            time.sleep(0.1)
        container.stop(timeout=30)
        assert container.wait()["StatusCode"] == 9
        numbers = [int(line) for line in container.logs().split()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 10
        container.remove()
