"""docker-py's APIClient, call by call: containers, execs, attach and logs. Objects: test_e2e_clients.py."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import pytest
import requests.exceptions
from docker.utils.proxy import ProxyConfig
from docker.utils.socket import next_frame_header, read_exactly
from e2e_cluster import View, eventually, hang_up
from registry_fill import tar_of
from relays import relay

#: docker-py leaves the sockets of hijacked connections to the garbage collector, which is run while this holds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:Unclosed response:ResourceWarning"
)
SECOND = 10**9
CTRL_P, CTRL_Q, CTRL_X = b"\x10", b"\x11", b"\x18"


def started(api: docker.APIClient, command: Any = ("sleep", "600"), **options: Any) -> str:
    ident = str(api.create_container("busybox", command, **options)["Id"])
    api.start(ident)
    return ident


def said(api: docker.APIClient, command: Any, **options: Any) -> str:
    """What a container writes that succeeds."""
    ident = started(api, command, **options)
    assert api.wait(ident)["StatusCode"] == 0
    return str(api.logs(ident).decode())


# --- what a container is made of


def test_a_list_shows_a_container_as_it_was_asked_for(api: docker.APIClient) -> None:
    ident = started(api, "true", name="listed", labels=["a", "b"], environment={"No": None, "One": "1", "Empty": ""})
    api.wait(ident)
    (row,) = api.containers(all=True, filters={"name": "listed"})
    assert row["Id"] == ident and row["Command"] == "true" and row["Image"] == "busybox"
    assert row["Names"][0].endswith("/listed") and row["State"] == "exited" and row["Status"].startswith("Exited (0)")
    assert row["Labels"] == {"a": "", "b": ""}
    assert api.containers(all=True, trunc=True)[0]["Id"] == ident[:12]
    assert api.containers(all=True, quiet=True) == [{"Id": ident}]
    assert api.containers() == [] and api.containers(all=True, limit=1)[0]["Id"] == ident
    assert sorted(api.inspect_container(ident)["Config"]["Env"])[:3] == ["Empty=", "No", "One=1"]
    assert api.containers(all=True, size=True)[0]["SizeRootFs"] > 0
    assert api.containers(latest=True)[0]["Id"] == ident
    other = api.create_container("busybox", "true", name="other")["Id"]
    assert [each["Id"] for each in api.containers(all=True, filters={"since": ident})] == [other]
    assert [each["Id"] for each in api.containers(all=True, filters={"before": other})] == [ident]


def test_commands_are_split_as_a_shell_would(api: docker.APIClient) -> None:
    assert said(api, 'echo "one  two" three') == "one  two three\n"
    assert said(api, "/bin/sh -c 'echo \"Hello World\"'") == "Hello World\n"
    assert said(api, ["id", "-u"], user=1000) == "1000\n"
    assert said(api, "-c 'exit 0'", entrypoint=["sh"]) == ""
    api._proxy_configs = ProxyConfig(http="c", https="b")
    assert "HTTP_PROXY=c\n" in said(api, "env")
    assert "https_proxy=x\n" in said(api, "env", environment={"https_proxy": "x"})
    assert said(api, "pwd", working_dir="/etc") == "/etc\n" and said(api, "hostname", hostname="mine") == "mine\n"


def test_host_config_comes_back_as_it_was_given(api: docker.APIClient) -> None:
    asked = api.create_host_config(
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2}, network_mode="none", mem_limit="700M",
        memswap_limit="1G", cap_add=["NET_ADMIN"], cap_drop=["MKNOD"], extra_hosts={"here": "10.0.0.1"},
        dns=["9.9.9.9"], dns_search=["example.org"], dns_opt=["ndots:2"], tmpfs={"/tmp1": "size=3M"},
        isolation="default", shm_size="1M", group_add=["1000", 1001],
        ulimits=[docker.types.Ulimit(name="nofile", soft=512, hard=1024)],
        sysctls={"net.core.somaxconn": "300"}, pids_limit=50, init=True, ipc_mode="shareable", oom_score_adj=100,
        security_opt=["no-new-privileges"], read_only=True, cpu_shares=300, cpu_period=50000, cpu_quota=25000,
        cpuset_cpus="0", device_cgroup_rules=["c 7:128 rwm"], devices=["/dev/null:/dev/nothing:rw"],
        volume_driver="local", userns_mode="host", runtime="crun",
        log_config=docker.types.LogConfig(type="json-file", config={"max-file": "100"}),
        uts_mode="host", pid_mode="host", publish_all_ports=True, port_bindings={"80/tcp": None},
    )  # fmt: skip
    ident = api.create_container(
        "busybox", ["sh", "-c", "id -G; ls -l /dev/nothing; df /tmp1 | tail -1; cat /etc/resolv.conf"],
        host_config=asked, ports=[(90, "udp"), 91], stop_signal="SIGINT", stop_timeout=25,
        healthcheck={"test": "echo well", "interval": SECOND},
    )["Id"]  # fmt: skip
    shown = api.inspect_container(ident)
    host = shown["HostConfig"]
    unlike = {key: (value, host.get(key)) for key, value in asked.items() if host.get(key) != value}
    # What Docker, too, shows in another form.
    assert unlike.pop("PortBindings", None) in (None, ({"80/tcp": [{"HostIp": "", "HostPort": ""}]}, None))
    assert unlike.pop("SecurityOpt") == (["no-new-privileges"], ["no-new-privileges", "label=disable"])  # pid: host
    assert unlike.pop("Devices", None) is None and unlike == {}
    config = shown["Config"]
    assert config["StopSignal"] == "SIGINT" and config["StopTimeout"] == 25
    assert set(config["ExposedPorts"]) >= {"90/udp", "91/tcp"}
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "echo well"], "Interval": SECOND}
    api.start(ident)
    assert api.wait(ident)["StatusCode"] == 0
    lines = api.logs(ident).decode().splitlines()
    assert {"1000", "1001"} <= set(lines[0].split()) and "/dev/nothing" in lines[1] and "3072" in lines[2]
    assert lines[-3:] == ["nameserver 9.9.9.9", "search example.org", "options ndots:2"]


def test_mounts_are_shown_and_hold(node_api: docker.APIClient, tmp_path: Path) -> None:
    api = node_api
    (tmp_path / "shared.txt").write_text("x")
    for read_only in (False, True):
        by_bind = api.create_host_config(binds={str(tmp_path): {"bind": "/mnt", "ro": read_only}}, network_mode="none")
        by_mount = api.create_host_config(mounts=[
            docker.types.Mount(target="/mnt", source=str(tmp_path), type="bind", read_only=read_only)
        ])  # fmt: skip
        for config in (by_bind, by_mount):
            ident = started(api, ["sh", "-c", "ls /mnt; touch /mnt/new"], host_config=config, volumes={"/mnt": {}})
            assert (api.wait(ident)["StatusCode"] != 0) is read_only
            assert "shared.txt" in api.logs(ident).decode()
            (mount,) = api.inspect_container(ident)["Mounts"]
            assert (mount["Source"], mount["Destination"], mount["RW"]) == (str(tmp_path), "/mnt", not read_only)
    ident = api.create_container("busybox", "true", host_config=api.create_host_config(mounts=[
        docker.types.Mount("/data", "py-mount", labels={"by": "py"}, no_copy=True),
        docker.types.Mount("/ram", None, type="tmpfs", tmpfs_size="1m", tmpfs_mode=0o700),
    ]))["Id"]  # fmt: skip
    try:
        mounts = {mount["Destination"]: mount for mount in api.inspect_container(ident)["Mounts"]}
        assert mounts["/data"]["Name"] == "py-mount" and mounts["/data"]["RW"] and mounts["/ram"]["Type"] == "tmpfs"
        assert api.inspect_volume("py-mount")["Labels"] == {"by": "py"}
    finally:
        api.remove_container(ident)
        api.remove_volume("py-mount")


def test_links_and_volumes_of_others(node_api: docker.APIClient) -> None:
    api = node_api
    first = started(api, "cat", name="first", stdin_open=True, environment={"FOO": "1"}, volumes=["/shared"])
    config = api.create_host_config(links={"first": "mylink"}, volumes_from=["first"], network_mode="bridge")
    text = said(api, ["sh", "-c", "env; ls -d /shared; cat /etc/hosts"], host_config=config)
    assert "MYLINK_NAME=" in text and "MYLINK_ENV_FOO=1" in text and "/shared\n" in text
    assert f"\tmylink {first[:12]} first\n" in text
    api.remove_container(first, force=True, v=True)


def test_what_cannot_be_is_refused_in_dockers_words(api: docker.APIClient) -> None:
    for options, status, words in (
        ({"log_config": docker.types.LogConfig(type="asdf-nope", config={})}, 400,
         'error looking up logging plugin asdf-nope: plugin "asdf-nope" not found'),
        ({"network_mode": "nowhere"}, 404, "network nowhere not found"),
        ({"mem_limit": 1000}, 400, "Minimum memory limit allowed is 6MB"),
        ({"cap_add": ["WINGS"]}, 400, "WINGS"),
        ({"binds": ["relative/path:/x:zz"]}, 400, "zz"),
        ({"sysctls": {"kernel.hostname": "x"}}, 500, "kernel.hostname"),
    ):
        with pytest.raises(docker.errors.APIError) as refused:
            # Some of it Docker finds out at the start only.
            started(api, "true", host_config=api.create_host_config(**options))
        assert refused.value.status_code == status and words in refused.value.explanation, (options, refused.value)
    with pytest.raises(docker.errors.ImageNotFound):
        api.create_container("nothing:here", "true")
    api.create_container("busybox", "true", name="taken")
    with pytest.raises(docker.errors.APIError, match='The container name "/taken" is already in use') as conflict:
        api.create_container("busybox", "true", name="taken")
    assert conflict.value.status_code == 409


# --- its life


def test_a_container_is_stopped_killed_paused_restarted_and_removed(api: docker.APIClient) -> None:
    ident = started(api, ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"])
    state = api.inspect_container(ident)["State"]
    assert state["Running"] and state["ExitCode"] == 0 and not state["Paused"]
    api.pause(ident)
    assert api.inspect_container(ident)["State"]["Paused"] and api.inspect_container(ident)["State"]["Running"]
    with pytest.raises(docker.errors.APIError, match="is already paused"):
        api.pause(ident)
    api.unpause(ident)
    with pytest.raises(docker.errors.APIError, match="is not paused"):
        api.unpause(ident)
    began = api.inspect_container(ident)["State"]["StartedAt"]
    api.restart(ident, timeout=3)
    assert api.inspect_container(ident)["State"]["StartedAt"] != began
    with pytest.raises(docker.errors.APIError, match="container is running: stop the container before removing"):
        api.remove_container(ident)
    api.stop(ident, timeout=3)
    assert api.inspect_container(ident)["State"]["Running"] is False
    with pytest.raises(docker.errors.APIError, match="is not running") as stopped:
        api.kill(ident)
    assert stopped.value.status_code == 409
    for signal in (9, "SIGKILL", "KILL", None):
        api.start(ident)
        api.kill(ident, signal)
        assert api.wait(ident)["StatusCode"] == 137
    with pytest.raises(docker.errors.APIError, match=r"(?i)invalid signal"):
        api.kill(ident, "SIGNOTHING")
    api.rename(ident, "renamed")
    assert api.inspect_container("renamed")["Name"].endswith("/renamed")
    api.remove_container("renamed")
    with pytest.raises(docker.errors.NotFound):
        api.start(ident)


def test_waiting_answers_at_once_and_ends_when_the_condition_is_met(api: docker.APIClient) -> None:
    made = api.create_container("busybox", "true")["Id"]
    # The answer's head is there at once: it is its body that the client waits for in vain.
    with pytest.raises(requests.exceptions.ConnectionError, match="Read timed out"):
        api.wait(made, condition="removed", timeout=1)
    assert api.wait(made)["StatusCode"] == 0  # not running
    removing = api.create_host_config(auto_remove=True)
    ident = api.create_container("busybox", "sh -c 'exit 3'", host_config=removing)["Id"]
    # As api.wait asks, but for the body: with the head of the answer the wait has begun.
    waiting = [
        api._post(api._url("/containers/{0}/wait", ident), params={"condition": condition}, stream=True, timeout=60)
        for condition in ("next-exit", "removed")
    ]
    api.start(ident)
    assert [each.json()["StatusCode"] for each in waiting] == [3, 3]
    with pytest.raises(docker.errors.APIError, match=r"(?i)invalid condition"):
        api.wait(made, condition="sometime")


def test_top_stats_ports_and_changes(api: docker.APIClient) -> None:
    config = api.create_host_config(port_bindings={"1111": ("127.0.0.1", 14567), "2222/udp": 14568})
    ident = started(api, ["sh", "-c", "touch /made; exec sleep 600"], ports=["1111", (2222, "udp")], host_config=config)
    eventually(lambda: len(api.diff(ident) or ()) > 0)
    assert api.diff(ident) == [{"Path": "/made", "Kind": 1}]
    top = api.top(ident)
    assert top["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [process[-1] for process in top["Processes"]] == ["sleep 600"]
    top = api.top(ident, "waux")
    assert top["Titles"] == [
        "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND",
    ]
    assert top["Processes"][0][10] == "sleep 600"
    with pytest.raises(docker.errors.APIError):
        api.top(ident, "--nothing-such")
    (bound,) = api.port(ident, 1111)
    assert bound["HostPort"] == "14567" and api.port(ident, "2222/udp")[0]["HostPort"] == "14568"
    assert api.port(ident, 3333) is None
    stats = api.stats(ident, stream=False)
    wanted = {"read", "preread", "pids_stats", "cpu_stats", "precpu_stats", "memory_stats", "blkio_stats", "networks",
              "id", "name", "num_procs", "storage_stats"}  # fmt: skip
    assert wanted <= set(stats) and stats["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    once = api.stats(ident, stream=False, one_shot=True)
    assert once["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    samples = api.stats(ident, decode=True)
    assert next(samples)["id"] == ident == next(samples)["id"]
    samples.close()


def test_limits_are_changed_while_it_runs(api: docker.APIClient) -> None:
    ident = started(api)
    answer = api.update_container(
        ident, mem_limit="64m", memswap_limit="128m", cpu_shares=512, cpuset_cpus="0", cpu_period=100000,
        cpu_quota=50000, mem_reservation="32m", restart_policy={"Name": "on-failure", "MaximumRetryCount": 3},
    )
    assert answer.get("Warnings") in ([], None)
    shown = api.inspect_container(ident)["HostConfig"]
    assert (shown["Memory"], shown["MemorySwap"], shown["CpuShares"]) == (64 << 20, 128 << 20, 512)
    assert shown["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    with pytest.raises(docker.errors.APIError, match=r"(?i)memory"):
        api.update_container(ident, mem_limit="1k")


def test_health_is_watched(api: docker.APIClient) -> None:
    for test, wanted in (("true", "healthy"), ("false", "unhealthy")):
        check = {"test": test, "interval": SECOND // 5, "timeout": SECOND, "retries": 1}
        ident = started(api, healthcheck=check)

        def health(ident: str = ident) -> dict[str, Any]:
            return dict(api.inspect_container(ident)["State"]["Health"])

        eventually(lambda health=health, wanted=wanted: health()["Status"] == wanted)
        assert health()["Log"] and (health()["FailingStreak"] > 0) is (wanted == "unhealthy")


def test_pruning_takes_what_has_ended(node_api: docker.APIClient) -> None:
    api = node_api
    ended = started(api, ["sh", "-c", "echo hello > /data.txt"])
    api.wait(ended)
    running = started(api)
    result = api.prune_containers()
    assert ended in result["ContainersDeleted"] and running not in result["ContainersDeleted"]
    assert result["SpaceReclaimed"] > 0
    assert api.prune_containers({"label": ["nobody=has"]}) == {"ContainersDeleted": None, "SpaceReclaimed": 0}


# --- files


def test_archives_go_in_and_come_out(api: docker.APIClient) -> None:
    ident = api.create_container("busybox", "cat /vol1/data.txt", volumes=["/vol1"])["Id"]
    assert api.put_archive(ident, "/vol1", tar_of({"data.txt": b"inside"}))
    api.start(ident)
    api.wait(ident)
    assert api.logs(ident) == b"inside"
    chunks, stat = api.get_archive(ident, "/vol1/data.txt", encode_stream=True)
    assert (stat["name"], stat["size"], stat["linkTarget"]) == ("data.txt", 6, "")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        extracted = archive.extractfile("data.txt")
        assert extracted is not None and extracted.read() == b"inside"
    with pytest.raises(docker.errors.NotFound):
        api.get_archive(ident, "/nothing")
    with pytest.raises(docker.errors.NotFound):
        api.put_archive(ident, "/nothing", tar_of({"a": b"b"}))
    with pytest.raises(docker.errors.APIError):
        api.put_archive(ident, "/vol1/data.txt", tar_of({"a": b"b"}))
    with tarfile.open(fileobj=io.BytesIO(b"".join(api.export(ident)))) as archive:
        assert "bin/busybox" in archive.getnames() and "vol1" in archive.getnames()
    api.remove_container(ident, v=True)


# --- logs


def test_logs_by_every_option(api: docker.APIClient) -> None:
    ident = started(api, ["sh", "-c", "echo one; echo two >&2; echo three"])
    api.wait(ident)
    assert sorted(api.logs(ident).splitlines()) == [b"one", b"three", b"two"]
    assert api.logs(ident, stderr=False) == b"one\nthree\n" and api.logs(ident, stdout=False) == b"two\n"
    assert api.logs(ident, tail=0) == b"" and len(api.logs(ident, tail=2).splitlines()) == 2
    assert api.logs(ident, tail="all", timestamps=True).count(b"Z ") == 3
    assert b"".join(api.logs(ident, stream=True, follow=True)) == api.logs(ident)
    assert api.logs(ident, until=1) == b""
    assert api.logs(ident, since=datetime.now(UTC) + timedelta(seconds=2)) == b""
    assert api.logs(ident, since=1, until=time.time() + 5) == api.logs(ident)
    quiet = started(api, ["echo", "x"], host_config=api.create_host_config(log_config={"type": "none"}))
    api.wait(quiet)
    with pytest.raises(docker.errors.APIError, match="configured logging driver does not support reading"):
        api.logs(quiet)


def test_a_log_that_is_followed_can_be_closed(node_api: docker.APIClient) -> None:
    ident = started(node_api, ["sh", "-c", "echo one; sleep 600"])
    stream = node_api.logs(ident, stream=True, follow=True)
    assert next(stream) == b"one\n"
    stream.close()
    assert list(stream) == []


# --- attach


def test_attach_reads_what_is_said(api: docker.APIClient) -> None:
    ident = started(api, "echo hello")
    api.wait(ident)
    assert api.attach(ident, stream=False, logs=True) == b"hello\n"
    both = api.create_container("busybox", ["sh", "-c", "echo out; echo err >&2"])["Id"]
    stream = api.attach(both, stream=True, logs=True, demux=True)
    api.start(both)
    assert sorted(stream, key=str) == [(None, b"err\n"), (b"out\n", None)]


def test_attach_by_socket_has_frames(api: docker.APIClient) -> None:
    line = b"hi there and stuff and things, words!"
    ident = api.create_container("busybox", ["printf", line.decode()])["Id"]
    socket = api.attach_socket(ident, {"stdout": 1, "stream": 1, "logs": 1})
    api.start(ident)
    assert next_frame_header(socket) == (1, len(line)) and read_exactly(socket, len(line)) == line
    hang_up(socket)


@pytest.fixture
def over_tcp(view: View) -> Iterator[docker.APIClient]:
    """docker-py opens WebSockets over TCP only: a relay leads from a port on loopback to the view's socket."""
    with relay(view.socket) as port:
        client = docker.APIClient(base_url=f"tcp://127.0.0.1:{port}", timeout=60)
        yield client
        client.close()


def test_attach_by_websocket_carries_both_ways(over_tcp: docker.APIClient) -> None:
    api = over_tcp
    ident = started(api, "cat", stdin_open=True, detach=True)  # detach: its stdin outlives the first who attaches
    socket = api.attach_socket(ident, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}, ws=True)
    socket.send("typed\n")
    assert socket.recv() == b"typed\n"
    socket.close()
    assert api.inspect_container(ident)["State"]["Running"]


@pytest.mark.parametrize(("keys", "typed"), [("", CTRL_P + CTRL_Q), ("ctrl-p", CTRL_P), ("ctrl-x", CTRL_X)])
def test_detach_keys_leave_attach_and_exec(api: docker.APIClient, keys: str, typed: bytes) -> None:
    ident = started(api, "cat", stdin_open=True, tty=True)
    asked = {"stdin": True, "stdout": True, "stream": True} | ({"detachKeys": keys} if keys else {})
    attached = api.attach_socket(ident, asked)
    execution = api.exec_create(ident, "cat", stdin=True, tty=True, detach_keys=keys or None)
    inside = api.exec_start(execution, tty=True, socket=True)
    for socket in (attached, inside):
        socket._sock.sendall(b"make sure the socket is open\n")
        read = b""
        while b"is open\r\n" not in read:
            read += socket._sock.recv(4096)
        socket._sock.sendall(typed)
        while chunk := socket._sock.recv(4096):  # the end comes
            read += chunk
        hang_up(socket)
    state = api.inspect_container(ident)["State"]
    assert state["Running"] and state["ExitCode"] == 0


# --- exec


def test_exec_gives_output_in_every_form(api: docker.APIClient) -> None:
    ident = started(api, "cat", stdin_open=True)
    command = 'sh -c "echo hello out; sleep 0.3; echo hello err >&2"'

    def run(*, tty: bool = False, **options: Any) -> Any:
        return api.exec_start(api.exec_create(ident, command, tty=tty), **options)

    assert run() == b"hello out\nhello err\n"
    assert list(run(stream=True)) == [b"hello out\n", b"hello err\n"]
    assert run(demux=True) == (b"hello out\n", b"hello err\n")
    assert list(run(stream=True, demux=True)) == [(b"hello out\n", None), (None, b"hello err\n")]
    assert run(tty=True) == b"hello out\r\nhello err\r\n"
    assert list(run(tty=True, stream=True)) == [b"hello out\r\n", b"hello err\r\n"]
    assert run(tty=True, demux=True) == (b"hello out\r\nhello err\r\n", None)
    assert run(detach=True) == ""


def test_exec_by_every_option(api: docker.APIClient) -> None:
    ident = started(api, "cat", stdin_open=True)

    def run(command: Any, **options: Any) -> str:
        return str(api.exec_start(api.exec_create(ident, command, **options)).decode())

    assert run("echo hello world") == "hello world\n" and run("whoami") == "root\n"
    assert run("whoami", user="nobody") == "nobody\n" and run("id -u", user="1234") == "1234\n"
    assert "X=Y\n" in run("env", environment=["X=Y"]) and "A=B\n" in run("env", environment={"A": "B"})
    assert run("pwd", workdir="/var") == "/var\n"
    assert "chdir to cwd" in run("pwd", workdir="/not/there")
    assert run(["sh", "-c", "echo out; echo err >&2"], stderr=False) == "out\n"
    capabilities = "grep CapEff /proc/self/status"
    assert run(capabilities, privileged=True) > run(capabilities)


def test_exec_by_socket_and_what_became_of_it(api: docker.APIClient) -> None:
    ident = started(api, "cat", stdin_open=True)
    line = b"yay, interactive exec!"
    execution = api.exec_create(ident, ["printf", line.decode()])
    socket = api.exec_start(execution, socket=True)
    stream, size = next_frame_header(socket)
    assert (stream, size) == (1, len(line)) and read_exactly(socket, size) == line
    hang_up(socket)

    execution = api.exec_create(ident, ["sh", "-c", "read x; stty size; exit 6"], stdin=True, tty=True)
    assert api.exec_inspect(execution)["Running"] is False and api.exec_inspect(execution)["ExitCode"] is None
    socket = api.exec_start(execution, tty=True, socket=True)
    eventually(lambda: api.exec_inspect(execution)["Pid"] > 0)
    api.exec_resize(execution, height=31, width=91)
    socket._sock.sendall(b"\n")
    read = b""
    while chunk := socket._sock.recv(4096):
        read += chunk
    assert b"31 91" in read
    hang_up(socket)
    shown = api.exec_inspect(execution["Id"])
    assert (shown["ExitCode"], shown["Running"], shown["ContainerID"]) == (6, False, ident)
    assert shown["ProcessConfig"]["entrypoint"] == "sh" and shown["ProcessConfig"]["tty"] is True

    missing = api.exec_create(ident, "docker ps")
    assert b"executable file not found" in api.exec_start(missing)
    assert api.exec_inspect(missing)["ExitCode"] == 127
    failed = api.exec_create(ident, ["mkdir", "/does/not/exist"])
    api.exec_start(failed)
    assert api.exec_inspect(failed)["ExitCode"] == 1
    with pytest.raises(docker.errors.APIError, match="No exec command specified"):
        api.exec_create(ident, [])
    with pytest.raises(docker.errors.NotFound):
        api.exec_inspect("nothing")
    api.resize(started(api, "sh", tty=True, stdin_open=True), height=20, width=80)
