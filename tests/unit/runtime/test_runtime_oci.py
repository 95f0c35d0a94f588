"""From what the engine plans to the OCI runtime's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmlet.errors import InvalidArgument, NotSupported, SwarmletError
from swarmlet.model.common import Ulimit
from swarmlet.model.container import (
    ContainerConfig,
    DeviceRequest,
    HostConfig,
    ThrottleDevice,
    WeightDevice,
)
from swarmlet_agent.decide.selinux import Labels
from swarmlet_agent.runtime import caps, oci, resources, security
from swarmlet_agent.runtime.devices import DeviceNode, Devices
from swarmlet_agent.runtime.facts import HostFacts
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, MountPlan

PROFILE = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
FACTS = HostFacts(
    cgroup_version=1,
    machine="x86_64",
    kernel=(6, 1),
    available_caps=frozenset(caps.NAMES),
    default_profile=PROFILE,
    cpus=2,
)
PLAN = ContainerPlan(
    id="c" * 64,
    config=ContainerConfig(),
    host=HostConfig(),
    rootfs=Path("/roots/c"),
    args=("sh", "-c", "true"),
    env=("A=1",),
    cwd="/work",
    uid=0,
    gid=0,
    groups=(),
    hostname="box",
    cgroup_path="/swarmlet/c",
    netns_path="/run/netns/c",
)


def build(facts: HostFacts = FACTS, found: Devices | None = None, **changes: Any) -> dict[str, Any]:
    return oci.build(replace(PLAN, **changes), facts, found or Devices())


def mount_at(config: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = (mount for mount in config["mounts"] if mount["destination"] == target)
    return found


def namespaces(config: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry.get("path", "") for entry in config["linux"]["namespaces"]}


def test_a_plain_container() -> None:
    config = build()

    assert config["process"]["args"] == ["sh", "-c", "true"]
    assert (config["process"]["cwd"], config["hostname"]) == ("/work", "box")
    assert config["root"] == {"path": "/roots/c", "readonly": False}
    assert config["linux"]["cgroupsPath"] == "/swarmlet/c"
    assert namespaces(config) == {"mount": "", "network": "/run/netns/c", "pid": "", "ipc": "", "uts": ""}
    assert set(config["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    assert config["linux"]["seccomp"]["syscalls"] == PROFILE["syscalls"]
    assert "/proc/kcore" in config["linux"]["maskedPaths"]
    assert "/sys/devices/system/cpu/cpu1/thermal_throttle" in config["linux"]["maskedPaths"]
    assert "/proc/sys" in config["linux"]["readonlyPaths"]
    assert mount_at(config, "/sys/fs/cgroup")["options"][0] == "ro"
    assert config["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }


def test_on_version_2_the_cgroup_namespace_is_private() -> None:
    facts = replace(FACTS, cgroup_version=2)

    assert "cgroup" in namespaces(build(facts))
    assert "cgroup" not in namespaces(build(facts, host=HostConfig(cgroupns_mode="host")))
    assert "cgroup" in namespaces(build(host=HostConfig(cgroupns_mode="private")))


def test_namespaces_of_the_host_and_of_others_are_joined() -> None:
    config = build(joined={"pid": "", "ipc": "/proc/7/ns/ipc", "uts": ""}, netns_path=None)

    assert namespaces(config) == {"mount": "", "ipc": "/proc/7/ns/ipc"}
    assert "hostname" not in config
    assert "sysctl" not in config["linux"]


def test_another_user_has_capabilities_in_the_bounding_set_only() -> None:
    assert set(build(uid=1000)["process"]["capabilities"]) == {"bounding"}
    assert build(uid=1000, gid=5, groups=(6, 7))["process"]["user"] == {
        "uid": 1000,
        "gid": 5,
        "additionalGids": [6, 7],
    }


def test_privileged_lifts_every_confinement() -> None:
    config = build(host=HostConfig(privileged=True))

    assert set(config["process"]["capabilities"]["bounding"]) == set(caps.NAMES)
    assert config["linux"]["maskedPaths"] == config["linux"]["readonlyPaths"] == []
    assert "seccomp" not in config["linux"]
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "ro" not in mount_at(config, "/sys")["options"]
    assert "ro" not in mount_at(config, "/sys/fs/cgroup")["options"]


def test_explicit_paths_replace_docker_s_also_if_empty() -> None:
    config = build(host=HostConfig(masked_paths=(), readonly_paths=("/x",)))

    assert (config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]) == ([], ["/x"])


def test_what_the_user_mounts_replaces_docker_s_mounts_and_files() -> None:
    mounts = (
        MountPlan("/dev/shm", "", "tmpfs", ("size=1m", "exec")),
        MountPlan("/etc/hosts", "/mine", "bind", ("ro",)),
        MountPlan("/data", "/srv", "bind", ("bind", "rslave")),
    )
    config = build(mounts=mounts, files={"/etc/hosts": Path("/engine/hosts"), "/etc/hostname": Path("/engine/name")})

    assert mount_at(config, "/dev/shm")["options"] == ["size=1m", "exec", "nosuid", "nodev"]
    assert mount_at(config, "/etc/hosts")["source"] == "/mine"
    assert mount_at(config, "/etc/hosts")["options"] == ["rbind", "ro", "rprivate"]
    assert mount_at(config, "/etc/hostname")["source"] == "/engine/name"
    assert mount_at(config, "/data")["options"] == ["bind", "rslave"]
    assert config["linux"]["rootfsPropagation"] == "slave"


def test_the_engine_s_files_are_on_what_the_user_mounts_around_them() -> None:
    mounts = (MountPlan("/etc", "/volume", "bind", ("rbind",)),)
    config = build(mounts=mounts, files={"/etc/hosts": Path("/engine/hosts")})

    targets = [mount["destination"] for mount in config["mounts"]]
    assert targets.index("/etc") < targets.index("/etc/hosts")


def test_a_dev_of_one_s_own_has_none_of_docker_s_mounts_below() -> None:
    config = build(mounts=(MountPlan("/dev", "/dev", "bind"),))

    assert [m["destination"] for m in config["mounts"] if m["destination"].startswith("/dev")] == ["/dev"]


def test_a_read_only_root_leaves_the_usual_places_writable() -> None:
    config = build(host=HostConfig(readonly_rootfs=True), files={"/etc/hosts": Path("/engine/hosts")})

    assert config["root"]["readonly"]
    assert "ro" in mount_at(config, "/etc/hosts")["options"]
    assert "ro" not in mount_at(config, "/dev/shm")["options"]


def test_dev_shm_has_a_size_is_shared_or_is_not_there() -> None:
    assert "size=67108864" in mount_at(build(), "/dev/shm")["options"]
    assert "size=1024" in mount_at(build(host=HostConfig(shm_size=1024)), "/dev/shm")["options"]
    assert all(m["destination"] != "/dev/shm" for m in build(host=HostConfig(ipc_mode="none"))["mounts"])
    shared = oci.build(PLAN, FACTS, Devices(), shm_source="/run/shm")
    assert mount_at(shared, "/dev/shm")["source"] == "/run/shm"


def test_an_init_program_is_put_before_the_user_s() -> None:
    facts = replace(FACTS, init_path="/usr/bin/tini-static")
    config = build(facts, host=HostConfig(init=True))

    assert config["process"]["args"] == ["/sbin/docker-init", "--", "sh", "-c", "true"]
    assert mount_at(config, "/sbin/docker-init")["source"] == "/usr/bin/tini-static"
    with pytest.raises(NotSupported, match="no static init program"):
        build(host=HostConfig(init=True))


def test_a_terminal_has_its_size_from_the_start() -> None:
    config = build(config=ContainerConfig(tty=True), host=HostConfig(console_size=(40, 120)))

    assert config["process"]["terminal"]
    assert config["process"]["consoleSize"] == {"height": 40, "width": 120}


def test_the_oom_score_is_written_only_where_it_differs() -> None:
    assert "oomScoreAdj" not in build()["process"]
    assert build(host=HostConfig(oom_score_adj=500))["process"]["oomScoreAdj"] == 500
    assert build(replace(FACTS, oom_score_adj=-500))["process"]["oomScoreAdj"] == 0


def test_resources_are_docker_s_numbers() -> None:
    host = HostConfig(
        memory=64 << 20,
        memory_reservation=32 << 20,
        nano_cpus=1_500_000_000,
        cpu_shares=512,
        cpuset_cpus="0-1",
        pids_limit=10,
        blkio_weight=300,
        blkio_weight_device=(WeightDevice(path="/dev/a", weight=200),),
        blkio_device_read_bps=(ThrottleDevice(path="/dev/a", rate=1000),),
    )
    found = resources.resources(host, {"/dev/a": (8, 0)}, swap_accounting=True, cgroup_version=1)

    assert found == {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20},
        "cpu": {"shares": 512, "period": 100_000, "quota": 150_000, "cpus": "0-1"},
        "pids": {"limit": 10},
        "blockIO": {
            "weight": 300,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 200}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        },
    }


@pytest.mark.parametrize(("memory", "swap", "result"), [(10, 0, 20), (10, -1, -1), (10, 30, 30), (0, 0, None)])
def test_swap_counts_memory_too_and_is_as_much_again_by_default(memory: int, swap: int, result: int | None) -> None:
    host = HostConfig(memory=memory, memory_swap=swap)
    with_swap = resources.resources(host, {}, swap_accounting=True, cgroup_version=1)
    without = resources.resources(host, {}, swap_accounting=False, cgroup_version=1)

    assert with_swap.get("memory", {}).get("swap") == result
    assert "swap" not in without.get("memory", {})


def test_no_limit_asks_for_nothing() -> None:
    host = HostConfig(pids_limit=-1, memory_swappiness=-1, cpu_quota=-1)

    assert resources.resources(host, {}, swap_accounting=True, cgroup_version=2) == {}


def test_ulimits() -> None:
    assert resources.rlimits([Ulimit(name="nofile", soft=1, hard=2), Ulimit(name="core", soft=-1, hard=-1)]) == [
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    with pytest.raises(InvalidArgument, match="invalid ulimit type: files"):
        resources.rlimits([Ulimit(name="files")])
    with pytest.raises(InvalidArgument, match="less than or equal to hard limit: 3 > 2"):
        resources.rlimits([Ulimit(name="nofile", soft=3, hard=2)])


def test_the_agents_raised_limit_of_open_files_is_not_passed_on_unless_asked_for() -> None:
    facts = replace(FACTS, open_files=(1024, -1))
    assert build(facts)["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2**64 - 1}]
    asked = build(facts, host=HostConfig(ulimits=(Ulimit(name="nofile", soft=5, hard=6),)))
    assert asked["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    assert "rlimits" not in build()["process"]


def test_devices_are_shown_and_allowed_after_the_default_denial() -> None:
    node = DeviceNode("/dev/mine", "b", 8, 3, 0o660, 0, 6, "rw")
    config = build(found=Devices((node,)), host=HostConfig(device_cgroup_rules=("c 42:* rmw", "a *:* r")))
    rules = config["linux"]["resources"]["devices"]

    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-3:] == [
        {"allow": True, "type": "b", "major": 8, "minor": 3, "access": "rw"},
        {"allow": True, "type": "c", "access": "rmw", "major": 42},
        {"allow": True, "type": "a", "access": "r"},
    ]
    assert config["linux"]["devices"][0]["path"] == "/dev/mine"
    with pytest.raises(InvalidArgument, match="invalid device cgroup rule format: 'x 1:2 r'"):
        build(host=HostConfig(device_cgroup_rules=("x 1:2 r",)))


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostConfig(userns_mode="private"), "userns mode"),
        (HostConfig(isolation="hyperv"), 'Invalid isolation: "hyperv" - linux only supports'),
        (HostConfig(storage_opt={"size": "1g"}), "--storage-opt"),
        (HostConfig(device_requests=(DeviceRequest(count=-1),)), "could not select device driver"),
        (HostConfig(cgroup="container:x"), "cgroup"),
        (HostConfig(cgroupns_mode="odd"), "cgroup namespace mode"),
        (HostConfig(oom_score_adj=2000), "range for oom score adj is"),
        (HostConfig(security_opt=("nonsense",)), 'invalid --security-opt 1: "nonsense"'),
        (HostConfig(security_opt=("non=sense",)), 'invalid --security-opt 2: "non=sense"'),
        (HostConfig(security_opt=("seccomp={",)), "Decoding seccomp profile failed"),
        (HostConfig(cap_add=("NOPE",)), "unknown capability"),
        (HostConfig(sysctls={"net.core.somaxconn": "1"}), "not allowed in host network namespace"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(host: HostConfig, text: str) -> None:
    with pytest.raises(SwarmletError, match=text):
        build(host=host, netns_path=None)


def test_security_words_are_read_with_either_separator() -> None:
    assert security.read_options(("no-new-privileges", "seccomp=unconfined", "apparmor:x", "label=disable")) == (
        security.SecurityOptions(
            no_new_privileges=True, seccomp="unconfined", apparmor="x", labels=("disable",)
        )
    )
    assert not security.read_options(("no-new-privileges=false",)).no_new_privileges
    assert security.read_options(('seccomp={"a":"b=c"}',)).seccomp == '{"a":"b=c"}'


def test_apparmor_is_used_where_the_host_has_a_profile_for_it() -> None:
    facts = replace(FACTS, apparmor=True, apparmor_profile="docker-default")

    assert build(facts)["process"]["apparmorProfile"] == "docker-default"
    assert build(facts, host=HostConfig(security_opt=("apparmor=mine",)))["process"]["apparmorProfile"] == "mine"
    assert build(facts, host=HostConfig(privileged=True))["process"]["apparmorProfile"] == "unconfined"


def test_selinux_labels_are_the_plans_and_an_exec_has_its_containers() -> None:
    labels = Labels(process="u:r:container_t:s0:c1,c2", mount="u:o:container_file_t:s0:c1,c2")
    config = build(labels=labels)

    assert (config["process"]["selinuxLabel"], config["linux"]["mountLabel"]) == (labels.process, labels.mount)
    plain = build()
    assert "selinuxLabel" not in plain["process"] and "mountLabel" not in plain["linux"]
    plan = ExecPlan(args=("ls",), env=(), cwd="", uid=0, gid=0, groups=())
    for privileged in (False, True):
        given = replace(plan, privileged=privileged)
        process = oci.exec_process(given, config["process"], FACTS.available_caps)
        assert process["selinuxLabel"] == labels.process
    assert "selinuxLabel" not in oci.exec_process(plan, plain["process"], FACTS.available_caps)


def test_an_exec_is_confined_as_its_container() -> None:
    container = build(host=HostConfig(cap_drop=("ALL",), cap_add=("NET_RAW",), security_opt=("no-new-privileges",)))
    plan = ExecPlan(args=("ls",), env=(), cwd="", uid=0, gid=0, groups=(), tty=True, console_size=(3, 4))

    process = oci.exec_process(plan, container["process"], FACTS.available_caps)

    assert process["capabilities"]["effective"] == ["CAP_NET_RAW"]
    assert (process["noNewPrivileges"], process["cwd"]) == (True, "/")
    assert process["consoleSize"] == {"height": 3, "width": 4}
    privileged = oci.exec_process(replace(plan, privileged=True), container["process"], FACTS.available_caps)
    assert set(privileged["capabilities"]["effective"]) == set(caps.NAMES)
    facts = replace(FACTS, apparmor=True, apparmor_profile="docker-default")
    for given in (plan, replace(plan, privileged=True)):
        process = oci.exec_process(given, build(facts)["process"], FACTS.available_caps)
        assert process["apparmorProfile"] == "docker-default"


def test_labels_and_profiles_without_effect_are_told_of() -> None:
    words = ("label=type:x", "label:disable", "apparmor=mine", "apparmor=unconfined", "no-new-privileges")
    told = security.lacking(words, apparmor=False, selinux=False)
    assert [text.rsplit('"', 2)[1] for text in told] == ["label=type:x", "apparmor=mine"]
    assert len(security.lacking(words, apparmor=True, selinux=False)) == 1
    assert security.lacking(words, apparmor=True, selinux=True) == []
    assert security.read_options(words).apparmor == "unconfined"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        (HostConfig(), ()),
        (HostConfig(privileged=True), ("label=disable",)),
        (HostConfig(pid_mode="host"), ("label=disable",)),
        (HostConfig(ipc_mode="host", security_opt=("no-new-privileges",)), ("no-new-privileges", "label=disable")),
        (HostConfig(privileged=True, security_opt=("label=type:t",)), ("label=type:t",)),
    ],
)
def test_who_shares_with_the_host_is_shown_to_have_no_label(host: HostConfig, shown: tuple[str, ...]) -> None:
    assert security.with_labels(host).security_opt == shown


A_LABEL = "u:r:t:s0:c1,c2"


@pytest.mark.parametrize(
    ("host", "joined", "shown"),
    [
        (HostConfig(), (A_LABEL,), ("label=user:u", "label=role:r", "label=type:t", "label=level:s0:c1,c2")),
        (HostConfig(), (A_LABEL, A_LABEL), ("label=user:u", "label=role:r", "label=type:t", "label=level:s0:c1,c2")),
        (HostConfig(), ("u:r:t",), ("label=user:u", "label=role:r", "label=type:t")),
        (HostConfig(), ("",), ()),
        (HostConfig(), (A_LABEL, ""), ()),
        (HostConfig(security_opt=("label=type:x",)), (A_LABEL,), ("label=type:x",)),
        (HostConfig(privileged=True), (A_LABEL,), ("label=disable",)),
    ],
)
def test_who_shares_with_a_container_has_its_label(
    host: HostConfig, joined: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    assert security.with_labels(host, joined).security_opt == shown


def test_who_shares_with_two_containers_of_different_labels_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="aren't the same"):
        security.with_labels(HostConfig(), (A_LABEL, "u:r:t:s0:c1,c3"))
