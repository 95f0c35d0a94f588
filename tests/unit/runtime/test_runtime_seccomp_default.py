"""The distribution's profile is held to what Docker's lets through."""

from __future__ import annotations

from typing import Any

import pytest

from swarmlet_agent.runtime import caps, seccomp
from swarmlet_agent.runtime.seccomp_default import DEFAULT_PROFILE, held_to_docker

HOST = seccomp.Host("x86_64", (6, 1))


def resolved(*granted: str, host: seccomp.Host = HOST) -> dict[str, list[dict[str, Any]]]:
    """The rules of each system call, for a container with these capabilities."""
    profile = held_to_docker(seccomp.parse(DEFAULT_PROFILE.read_bytes()))
    rules: dict[str, list[dict[str, Any]]] = {}
    for rule in seccomp.resolve(profile, granted, host)["syscalls"]:
        for name in rule["names"]:
            rules.setdefault(name, []).append({key: value for key, value in rule.items() if key != "names"})
    return rules


@pytest.mark.parametrize("name", ["mount", "umount2", "unshare", "setns", "bpf", "syslog", "reboot", "sethostname"])
def test_without_the_capability_a_gated_call_is_not_permitted(name: str) -> None:
    assert resolved(*caps.DEFAULT)[name] == [{"action": "SCMP_ACT_ERRNO", "errnoRet": 1}]


@pytest.mark.parametrize(
    ("cap", "names"),
    [
        ("CAP_SYS_ADMIN", ["mount", "unshare", "setns", "bpf", "syslog", "perf_event_open", "clone", "clone3"]),
        ("CAP_BPF", ["bpf"]),
        ("CAP_SYSLOG", ["syslog"]),
        ("CAP_PERFMON", ["perf_event_open"]),
        ("CAP_SYS_BOOT", ["reboot"]),
    ],
)
def test_with_the_capability_it_is_let_through_by_one_rule(cap: str, names: list[str]) -> None:
    rules = resolved(cap)
    assert [rules[name] for name in names] == [[{"action": "SCMP_ACT_ALLOW"}]] * len(names)
    everything = resolved("CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYSLOG", "CAP_PERFMON", "CAP_SYS_BOOT")
    assert [everything[name] for name in names] == [[{"action": "SCMP_ACT_ALLOW"}]] * len(names)


@pytest.mark.parametrize(("machine", "index"), [("x86_64", 0), ("aarch64", 0), ("s390x", 1)])
def test_clone_makes_threads_and_processes_but_no_namespaces(machine: str, index: int) -> None:
    rules = resolved(host=seccomp.Host(machine, (6, 1)))
    (clone,) = rules["clone"]
    (flags,) = clone["args"]
    assert flags["index"] == index and flags["op"] == "SCMP_CMP_MASKED_EQ" and flags["valueTwo"] == 0
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert flags["value"] & namespace
    assert not flags["value"] & 0x3D0F00  # what pthread_create asks for
    assert rules["clone3"] == [{"action": "SCMP_ACT_ERRNO", "errnoRet": 38}]


def test_keyrings_and_io_uring_are_nobodys() -> None:
    rules = resolved(*caps.NAMES)
    for name in ("keyctl", "add_key", "request_key", "pivot_root", "io_uring_setup"):
        assert rules[name] == [{"action": "SCMP_ACT_ERRNO", "errnoRet": 1}]


def test_the_rest_of_the_profile_stays_as_it_is() -> None:
    rules = resolved(*caps.DEFAULT)
    for name in ("read", "openat", "execve", "chown", "chroot", "ptrace"):
        assert {"action": "SCMP_ACT_ALLOW"} in rules[name]
    assert len(rules["personality"]) == 5


def test_a_second_time_changes_nothing_more() -> None:
    once = held_to_docker(seccomp.parse(DEFAULT_PROFILE.read_bytes()))
    assert held_to_docker(once) == once
