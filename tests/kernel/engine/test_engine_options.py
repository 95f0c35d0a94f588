"""Options of containers whose effect only the real kernel shows."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from engine_lab import Lab, on_the_kernel

from swarmlet.errors import Conflict, Internal, InvalidArgument, NotFound
from swarmlet.model.common import BindOptions, Mount, VolumeOptions
from swarmlet.model.container import ContainerCreate, DeviceRequest, HostConfig, LogConfig, RestartPolicy
from swarmlet_agent.runtime import cdi
from swarmlet_agent.runtime.facts import kernel_limits

pytestmark = pytest.mark.kernel


async def _write_and_die(lab: Lab) -> None:
    await lab.load_busybox()
    config = {"syslog-address": "tcp://127.0.0.1:5514", "tag": "web"}
    script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); usleep 50000; done"
    log_config = LogConfig(type="syslog", config=config)
    await lab.run("sh", "-c", script, name="web", host=HostConfig(log_config=log_config))
    await asyncio.sleep(0.5)


@on_the_kernel
async def test_syslog_gets_every_line_although_the_agent_is_killed(lab: Lab) -> None:
    arrived: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            arrived.append(line)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 5514)
    async with server:
        await asyncio.to_thread(lab.killed_agent, _write_and_die)
        async with lab.agent() as engine, asyncio.timeout(30):
            await engine.wait("web")
            while not any(line.endswith(b"line 39\n") for line in arrived):
                await asyncio.sleep(0.05)
            numbers = [int(line.rsplit(b" ", 1)[1]) for line in arrived]
            assert sorted(set(numbers)) == list(range(40))
            assert b" web[" in arrived[0] and arrived[0].startswith(b"<30>")
            assert "line 39" in Path(engine.get("web").log_path).read_text()


@on_the_kernel
async def test_a_link_gives_name_alias_and_variables_and_can_be_removed(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        await lab.run("sleep", "1000", name="db", exposed_ports={"5432/tcp": {}}, env=("USER=me",))
        await lab.run("sleep", "1000", name="web", host=HostConfig(links=("db:store",)), env=("STORE_NAME=own",))
        address = engine.get("db").endpoints["bridge"].ip_address
        assert engine.get("web").host.links == ("/db:/web/store",)

        code, _ = await lab.output("web", "ping", "-c", "1", "-W", "2", "store")
        assert code == 0
        _, hosts = await lab.output("web", "cat", "/etc/hosts")
        assert f"{address}\tstore {engine.get('db').id[:12]} db" in hosts
        _, told = await lab.output("web", "env")
        _, first = await lab.output("web", "cat", "/proc/1/environ")
        for text in (told, first.replace("\0", "\n")):
            assert f"STORE_PORT_5432_TCP=tcp://{address}:5432" in text
            assert "STORE_ENV_USER=me" in text and "STORE_NAME=own" in text  # one's own goes over what is told

        await engine.rename("db", "data")
        assert engine.get("web").host.links == ("/data:/web/store",)
        await engine.stop("data", 0)
        await engine.stop("web", 0)
        with pytest.raises(Conflict, match="Cannot link to a non running container: /data AS /web/store"):
            await engine.start_container("web")
        await engine.remove("web/store", link=True)
        await engine.start_container("web")
        with pytest.raises(NotFound, match="No such container: web/store"):
            await engine.remove("web/store", link=True)
        with pytest.raises(InvalidArgument, match="No such container: nobody"):
            await lab.run("true", host=HostConfig(links=("nobody",)))


@on_the_kernel
async def test_read_only_reaches_as_far_as_was_asked_for(lab: Lab) -> None:
    source = lab.folder / "source"
    (source / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(source / "below")], check=True)
    try:
        async with lab.agent() as engine:
            await lab.load_busybox()
            for name, options, writable in (
                ("default", BindOptions(), False),
                ("all", BindOptions(read_only_force_recursive=True), False),
                ("itself", BindOptions(read_only_non_recursive=True), True),
            ):
                mount = Mount(type="bind", source=str(source), target="/m", read_only=True, bind_options=options)
                ident = await lab.run("sleep", "1000", name=name, host=HostConfig(mounts=(mount,)))
                assert (await lab.output(ident, "touch", "/m/x"))[0] == 1, name
                assert ((await lab.output(ident, "touch", "/m/below/x"))[0] == 0) is writable, name
            mount = Mount(
                type="bind", source=str(source), target="/m", bind_options=BindOptions(non_recursive=True)
            )
            ident = await lab.run("sleep", "1000", name="alone", host=HostConfig(mounts=(mount,)))
            assert (await lab.output(ident, "ls", "/m/below"))[1] == ""  # the mount below stayed outside
            for record in engine.list():
                await engine.remove(record.id, force=True)
    finally:
        subprocess.run(["umount", str(source / "below")], check=True)


@on_the_kernel
async def test_a_part_of_a_volume_is_mounted_and_nothing_outside_it(lab: Lab) -> None:
    async with lab.agent():
        await lab.load_busybox()
        script = "mkdir -p /v/in/side; echo hello > /v/in/side/file; ln -s / /v/out; echo one > /v/single"
        await lab.run("sh", "-c", f"{script}; sleep 1000", name="writer", host=HostConfig(binds=("data:/v",)))
        for _ in range(100):
            if (await lab.output("writer", "cat", "/v/single"))[0] == 0:
                break
            await asyncio.sleep(0.05)

        def part(path: str, target: str = "/part") -> HostConfig:
            options = VolumeOptions(subpath=path)
            return HostConfig(mounts=(Mount(type="volume", source="data", target=target, volume_options=options),))

        reader = await lab.run("sleep", "1000", host=part("in/side"))
        assert await lab.output(reader, "cat", "/part/file") == (0, "hello\n")
        assert (await lab.output(reader, "ls", "/part"))[1] == "file\n"
        single = await lab.run("sleep", "1000", host=part("single", "/etc/one"))
        assert await lab.output(single, "cat", "/etc/one") == (0, "one\n")
        with pytest.raises(Internal, match="cannot access path"):
            await lab.run("true", host=part("nothing"))
        with pytest.raises(Internal, match="escapes the base directory"):
            await lab.run("true", host=part("out/usr"))


@on_the_kernel
async def test_a_cdi_device_is_there_with_its_variables_and_mounts(lab: Lab) -> None:
    folder = lab.folder / "cdi"
    folder.mkdir()
    (lab.folder / "driver").write_text("driver text")
    edits = {
        "env": ["ACME=yes"],
        "deviceNodes": [{"path": "/dev/acme0", "hostPath": "/dev/zero", "permissions": "r"}],
        "mounts": [{"hostPath": str(lab.folder / "driver"), "containerPath": "/lib/acme", "options": ["ro", "bind"]}],
    }
    spec = {"cdiVersion": "0.6.0", "kind": "acme.com/gpu", "devices": [{"name": "0", "containerEdits": edits}]}
    (folder / "acme.json").write_text(json.dumps(spec))
    cdi.FOLDERS = (folder,)
    async with lab.agent() as engine:
        await lab.load_busybox()
        gpu = DeviceRequest(count=-1, capabilities=(("gpu",),))
        ident = await lab.run("sleep", "1000", host=HostConfig(device_requests=(gpu,)))
        script = "grep -ao ACME=yes /proc/1/environ; cat /lib/acme; head -c 3 /dev/acme0 | wc -c"
        _, told = await lab.output(ident, "sh", "-c", script)
        assert told.split() == ["ACME=yes", "driver", "text3"], told
        nobody = DeviceRequest(driver="cdi", device_ids=("acme.com/gpu=9",))
        with pytest.raises(InvalidArgument, match=r"unresolvable CDI devices acme\.com/gpu=9"):
            await lab.run("true", host=HostConfig(device_requests=(nobody,)))
        assert engine.get(ident).state.status == "running"


@on_the_kernel
async def test_limits_and_policy_change_while_it_runs(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        ident = await lab.run("sleep", "1000", host=HostConfig(memory=64 << 20, device_cgroup_rules=("c 1:7 rw",)))
        change = HostConfig(
            memory=32 << 20, memory_swap=64 << 20, memory_reservation=16 << 20, pids_limit=20, cpu_shares=300,
            cpu_period=50_000, cpu_quota=25_000, cpuset_cpus="0", restart_policy=RestartPolicy(name="always"),
        )  # fmt: skip
        assert await engine.update(ident, change) == []
        usage, _ = await engine.usage(ident)
        assert (usage.memory_limit_bytes, usage.pids_limit) == (32 << 20, 20)
        _, told = await lab.output(ident, "grep", "Cpus_allowed_list", "/proc/self/status")
        assert told.split() == ["Cpus_allowed_list:", "0"]
        assert (await lab.output(ident, "sh", "-c", "mknod /tmp/full c 1 7 && cat /tmp/full | head -c 1"))[0] == 0

        await engine.kill(ident, "SIGKILL")  # by a user: the policy lets it be
        assert engine.get(ident).state.status == "exited"
        short = await lab.run("sleep", "1")
        await engine.update(short, HostConfig(restart_policy=RestartPolicy(name="always")))
        async with asyncio.timeout(20):
            while engine.get(short).restart_count < 1:
                await asyncio.sleep(0.05)


@on_the_kernel
async def test_a_weight_is_set_or_left_out_with_a_warning_but_never_in_the_way(lab: Lab) -> None:
    async with lab.agent() as engine:
        await lab.load_busybox()
        wanted = HostConfig(blkio_weight=300)
        record, warnings = await engine.create(
            "", ContainerCreate(image="busybox", cmd=("sleep", "1000"), host_config=wanted)
        )
        able = kernel_limits().io_weight
        assert [text.endswith("Weight discarded.") for text in warnings] == ([] if able else [True])
        await engine.start_container(record.id)
        assert engine.get(record.id).host.blkio_weight == (300 if able else 0)
