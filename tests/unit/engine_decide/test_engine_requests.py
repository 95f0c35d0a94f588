"""Checking, merging and normalising what a client asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from swarmlet.errors import Conflict, InvalidArgument, NotFound, NotSupported
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import (
    ContainerCreate,
    HostConfig,
    ImageConfig,
    LogConfig,
    NetworkingConfig,
    PortBinding,
    RestartPolicy,
)
from swarmlet_agent.decide.log_options import parse_size
from swarmlet_agent.decide.merge import argv, merge_image, override_env, process_env
from swarmlet_agent.decide.names import check_name, random_name, resolve
from swarmlet_agent.decide.normalise import network_wishes, normalise
from swarmlet_agent.decide.ports import expand_ports, wanted_ports
from swarmlet_agent.decide.prune import parse_until
from swarmlet_agent.decide.restart import Again, after_boot, after_exit
from swarmlet_agent.decide.signals import parse_signal
from swarmlet_agent.decide.update import apply_update
from swarmlet_agent.decide.users import Identity, resolve_user
from swarmlet_agent.decide.validate import check_request, parse_set

IMAGE = ImageConfig(
    cmd=("serve",), entrypoint=("/entry",), env=("PATH=/bin", "A=image"), labels={"x": "image", "y": "image"},
    working_dir="/srv", user="web", exposed_ports={"80/tcp": {}}, stop_signal="SIGQUIT",
    healthcheck=HealthConfig(test=("CMD", "probe"), retries=5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("cmd", "entrypoint", "expected"),
    [
        (None, None, ("/entry", "serve")),
        (("own",), None, ("/entry", "own")),
        (None, ("/mine",), ("/mine",)),
        (("own",), ("/mine",), ("/mine", "own")),
        (("own",), ("",), ("own",)),
        ((), (), ("serve",)),
    ],
)
def test_command_lines(cmd, entrypoint, expected):
    request = ContainerCreate(cmd=cmd, entrypoint=entrypoint)
    assert argv(merge_image(request, IMAGE)) == expected


def test_nothing_to_run_is_refused():
    with pytest.raises(InvalidArgument, match="no command specified"):
        merge_image(ContainerCreate(), ImageConfig())


def test_the_request_goes_before_the_image():
    request = ContainerCreate(env=("A=own", "B=1"), labels={"x": "own"}, healthcheck=HealthConfig(interval=9))
    merged = merge_image(request, IMAGE)

    assert merged.env == ("A=own", "B=1", "PATH=/bin")
    assert merged.labels == {"x": "own", "y": "image"}
    assert (merged.user, merged.working_dir, merged.stop_signal) == ("web", "/srv", "SIGQUIT")
    assert merged.healthcheck == HealthConfig(test=("CMD", "probe"), interval=9, retries=5)


def test_a_variable_without_value_is_taken_away():
    assert process_env(("HOSTNAME", "A=1"), hostname="h", tty=True)[1:] == ("TERM=xterm", "A=1")
    assert override_env(("A=1", "B=2"), ("A=3", "C=4")) == ("A=3", "B=2", "C=4")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (HostConfig(memory=1), "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory=64 << 20, memory_swap=32 << 20), "Minimum memoryswap limit should be larger"),
        (HostConfig(memory_swap=1), "You should always set the Memory limit"),
        (HostConfig(memory=64 << 20, memory_reservation=128 << 20), "can not be less than memory reservation"),
        (HostConfig(nano_cpus=5_000_000_000), r"range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs"),
        (HostConfig(nano_cpus=1, cpu_quota=5000), "Nano CPUs and CPU Quota cannot both be set"),
        (HostConfig(cpu_period=1), "CPU cfs period can not be less than 1ms"),
        (HostConfig(cpuset_cpus="0-9"), "Requested CPUs are not available - requested 0-9, available: 0-3"),
        (HostConfig(cpuset_cpus="a"), "Invalid value a for cpuset cpus"),
        (HostConfig(restart_policy=RestartPolicy(name="sometimes")), "unknown policy 'sometimes'"),
        (HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=1)), "only be used with"),
        (HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")), "can't create 'AutoRemove'"),
        (HostConfig(pid_mode="weird"), "invalid PID mode: weird"),
        (HostConfig(ipc_mode="weird"), "invalid IPC mode: weird"),
        (HostConfig(extra_hosts=("x",)), "bad format for add-host"),
        (HostConfig(port_bindings={"80/tcp": (PortBinding(host_port="0x50"),)}), "invalid port specification"),
        (HostConfig(port_bindings={"80/icmp": ()}), "invalid proto: icmp"),
        (HostConfig(blkio_weight=5), "Range of blkio weight"),
        (HostConfig(log_config=LogConfig(type="json-file", config={"max-size": "x"})), "invalid size"),
        (HostConfig(network_mode="container:"), "invalid network mode"),
        (HostConfig(network_mode="container:a", dns=("1.1.1.1",)), "conflicting options: dns and the network mode"),
        (HostConfig(cgroup_parent="/../x"), "invalid cgroup parent"),
    ],
)
def test_impossible_host_options_are_refused_in_dockers_words(host, words):
    with pytest.raises(InvalidArgument, match=words):
        check_request(ContainerCreate(image="x", host_config=host), cpus=4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"working_dir": "rel"}, "the working directory 'rel' is invalid, it needs to be an absolute path"),
        ({"env": ("=x",)}, "invalid environment variable: =x"),
        ({"stop_signal": "SIGNOPE"}, "invalid signal: SIGNOPE"),
        ({"healthcheck": HealthConfig(interval=5)}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"hostname": "h" * 65}, "invalid hostname format"),
    ],
)
def test_impossible_configurations_are_refused(config, words):
    with pytest.raises(InvalidArgument, match=words):
        check_request(ContainerCreate(image="x", **config), cpus=4)


def test_options_known_but_not_built_are_refused_by_name():
    with pytest.raises(NotSupported, match="gelf"):
        check_request(ContainerCreate(image="x", host_config=HostConfig(log_config=LogConfig(type="gelf"))), cpus=4)


def test_a_harmless_request_gives_no_warning_and_a_risky_one_does():
    assert check_request(ContainerCreate(image="x"), cpus=1) == []
    assert "OOM killer" in check_request(ContainerCreate(host_config=HostConfig(oom_kill_disable=True)), cpus=1)[0]


def test_defaults_are_written_out():
    request = ContainerCreate(
        host_config=HostConfig(memory=64 << 20, pids_limit=-1),
        networking_config=NetworkingConfig(endpoints_config={"default": None}),
    )
    normal = normalise(request, default_runtime="runc")
    host = normal.host_config

    assert (host.network_mode, host.restart_policy.name, host.log_config.type) == ("bridge", "no", "json-file")
    assert (host.memory_swap, host.pids_limit, host.shm_size) == (128 << 20, None, 64 << 20)
    assert list(network_wishes(normal)) == ["bridge"]
    assert normalise(normal, default_runtime="runc") == normal
    shared = replace(normal, host_config=replace(host, network_mode="container:x"))
    assert network_wishes(shared) == {}


def test_a_working_folder_is_shown_without_what_changes_nothing():
    def shown(folder):
        return normalise(ContainerCreate(working_dir=folder), default_runtime="runc").working_dir

    assert list(map(shown, ("", "/", "/tmp/", "//tmp/./a/..", "/a/../.."))) == ["", "/", "/tmp", "/tmp", "/"]


def test_ports():
    request = ContainerCreate(
        exposed_ports={"80": {}, "90-91/udp": {}},
        host_config=HostConfig(port_bindings={"80/tcp": (PortBinding(host_port="8080"),), "443/tcp": None}),
    )
    assert wanted_ports(request) == {
        "80/tcp": (PortBinding(host_port="8080"),), "90/udp": (), "91/udp": (), "443/tcp": (PortBinding(),),
    }  # fmt: skip
    everything = replace(request, host_config=HostConfig(publish_all_ports=True))
    assert set(wanted_ports(everything).values()) == {(PortBinding(),)}
    for text in ("0", "70000", "9-8", "a", "", "1-"):
        with pytest.raises(InvalidArgument):
            expand_ports(text)


PASSWD = "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:34::/:\n7:x:8:9::/:\n"
GROUP = "root:x:0:\nwheel:x:10:root,web\nwww:x:34:web\n"


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", (), Identity(0, 0, (0, 10))),
        ("web", (), Identity(33, 34, (34, 10))),
        ("33", (), Identity(33, 34, (34, 10))),
        ("web:wheel", (), Identity(33, 10, (10,))),
        ("1000", (), Identity(1000, 0, (0,))),
        ("1000:2000", ("www", "77"), Identity(1000, 2000, (2000, 34, 77))),
        ("7", (), Identity(8, 9, (9,))),
        (":34", (), Identity(0, 34, (34,))),
    ],
)
def test_users(user, extra, expected):
    assert resolve_user(user, extra, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("ghost", "unable to find user ghost: no matching entries in passwd file"),
        ("web:ghosts", "unable to find group ghosts: no matching entries in group file"),
        ("9999999999", "uids and gids must be in range"),
    ],
)
def test_unknown_users_are_refused(user, words):
    with pytest.raises(InvalidArgument, match=words):
        resolve_user(user, (), PASSWD, GROUP)


def test_a_numeric_user_needs_no_files():
    assert resolve_user("5:6", (), "", "") == Identity(5, 6, (6,))


@pytest.mark.parametrize(
    ("text", "number"), [("KILL", 9), ("sigterm", 15), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
)
def test_signals(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGFOO", "9.5"])
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(InvalidArgument, match="invalid signal"):
        parse_signal(text)


def test_names_and_references():
    assert check_name("/a.b-c_1") == "a.b-c_1"
    for name in ("", "a", "-a", "a b", "//ab", "a/b"):
        with pytest.raises(InvalidArgument):
            check_name(name)
    ids = {"ab" * 32, "ac" * 32}
    assert resolve("ab", ids, {}) == "ab" * 32
    assert resolve("/ab", ids, {"ab": "ac" * 32}) == "ac" * 32
    for ref, error in (("a", InvalidArgument), ("zz", NotFound), ("", NotFound)):
        with pytest.raises(error):
            resolve(ref, ids, {})


@given(seed=st.integers())
def test_made_up_names_are_allowed_and_free(seed):
    from random import Random

    taken: set[str] = set()
    for _ in range(30):
        name = random_name(taken, Random(seed))
        assert check_name(name) == name
        assert name not in taken
        taken.add(name)


def test_updates_change_limits_only():
    host = HostConfig(memory=64 << 20, memory_swap=128 << 20, privileged=True, binds=("/a:/b",))
    after = apply_update(host, HostConfig(memory=100 << 20, cpu_shares=5, binds=("/x:/y",)), cpus=4)

    assert after == replace(host, memory=100 << 20, cpu_shares=5)
    with pytest.raises(Conflict, match="memoryswap"):
        apply_update(host, HostConfig(memory=200 << 20), cpus=4)
    with pytest.raises(Conflict, match="CPU Quota cannot be updated as NanoCPUs has already been set"):
        apply_update(HostConfig(nano_cpus=10**9), HostConfig(cpu_quota=5000), cpus=4)
    with pytest.raises(Conflict, match="CPU Period/Quota has already been set"):
        apply_update(HostConfig(cpu_quota=5000), HostConfig(nano_cpus=10**9), cpus=4)
    assert apply_update(HostConfig(cpu_quota=-1), HostConfig(nano_cpus=10**9), cpus=4).nano_cpus == 10**9
    with pytest.raises(Conflict, match="AutoRemove"):
        apply_update(HostConfig(auto_remove=True), HostConfig(restart_policy=RestartPolicy(name="always")), cpus=4)


def ended(name, code=1, *, count=0, restarts=0, ran_s=1.0, last=0.0, user=False):
    return after_exit(
        RestartPolicy(name=name, maximum_retry_count=count), exit_code=code, ran_s=ran_s, restarts=restarts,
        stopped_by_user=user, last_delay_s=last,
    )  # fmt: skip


def test_restart_policies():
    assert ended("no") is None
    assert ended("always", 0) == Again(0.1)
    assert ended("always", user=True) is None
    assert ended("on-failure", 0) is None
    assert ended("on-failure", 1, count=2, restarts=2) is None
    assert ended("unless-stopped", last=0.1) == Again(0.2)
    assert ended("always", last=50.0) == Again(60.0)
    assert ended("always", last=50.0, ran_s=10) == Again(0.1)


def test_after_a_boot_only_who_had_been_started_and_may_comes_back():
    def boot(name: str, **over: object) -> bool:
        values = {"exit_code": 1, "restarts": 0, "started": True, "manually_stopped": False, **over}
        return after_boot(RestartPolicy(name=name), **values)  # type: ignore[arg-type]

    assert boot("always", manually_stopped=True)
    assert not boot("unless-stopped", manually_stopped=True)
    assert boot("unless-stopped")
    assert not boot("always", started=False)
    assert not boot("on-failure", exit_code=0)


def test_sizes_sets_and_times():
    assert [parse_size(text) for text in ("10m", "1.5k", "7", "1gb", "-1")] == [10 << 20, 1536, 7, 1 << 30, 0]
    assert parse_set("0-2,5", "cpus") == {0, 1, 2, 5}
    now = 10**19
    assert parse_until("1h30m", now) == now - 5400 * 10**9
    assert parse_until("1700000000", now) == 1_700_000_000 * 10**9
    for text in ("soon", "", "5x"):
        with pytest.raises(InvalidArgument):
            parse_until(text, now)
