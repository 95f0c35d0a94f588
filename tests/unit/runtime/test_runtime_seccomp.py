"""Conditional seccomp profiles become the plain form that OCI runtimes take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.runtime import caps, seccomp

HOST = seccomp.Host("x86_64", (6, 1))

conditions = st.fixed_dictionaries(
    {},
    optional={
        "caps": st.lists(st.sampled_from(["CAP_SYS_ADMIN", "CAP_BPF", "CAP_CHOWN"]), max_size=2),
        "arches": st.lists(st.sampled_from(["amd64", "arm64", "s390x"]), max_size=2),
        "minKernel": st.sampled_from(["4.8", "6.1", "6.2", "99.0"]),
    },
)
rules = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(["read", "mount", "bpf"]), min_size=1, max_size=3),
        "action": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]),
        "includes": conditions,
        "excludes": conditions,
    },
)
profiles = st.fixed_dictionaries({"defaultAction": st.just("SCMP_ACT_ERRNO"), "syscalls": st.lists(rules, max_size=6)})
some_caps = st.sets(st.sampled_from(["CAP_SYS_ADMIN", "CAP_BPF", "CAP_CHOWN"])).map(sorted)


def profile(*syscalls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(syscalls), **more}


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **more}


def allowed(given_profile: dict[str, Any], *granted: str) -> list[str]:
    resolved = seccomp.resolve(given_profile, granted, HOST)
    return [name for entry in resolved.get("syscalls", []) for name in entry["names"]]


def test_a_rule_for_a_capability_is_there_only_with_it() -> None:
    conditional = profile(rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}), rule("read"))

    assert allowed(conditional) == ["read"]
    assert allowed(conditional, "CAP_SYS_ADMIN") == ["mount", "read"]


def test_an_exclusion_takes_a_rule_away() -> None:
    assert allowed(profile(rule("mount", excludes={"caps": ["CAP_SYS_ADMIN"]})), "CAP_SYS_ADMIN") == []
    assert allowed(profile(rule("mount", excludes={"caps": ["CAP_SYS_ADMIN"]}))) == ["mount"]


def test_rules_for_other_machines_and_newer_kernels_are_left_out() -> None:
    assert allowed(
        profile(
            rule("arch_prctl", includes={"arches": ["amd64"]}),
            rule("sync_file_range2", includes={"arches": ["arm"]}),
            rule("ptrace", includes={"minKernel": "4.8"}),
            rule("later", includes={"minKernel": "6.2"}),
        )
    ) == ["arch_prctl", "ptrace"]


def test_the_host_s_architectures_are_chosen_from_the_map() -> None:
    with_map = profile(
        archMap=[
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        ]
    )

    assert seccomp.resolve(with_map, (), HOST)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


@given(profiles, some_caps)
def test_only_keys_of_the_oci_remain_and_order_is_kept(given_profile: dict[str, Any], granted: list[str]) -> None:
    resolved = seccomp.resolve(given_profile, granted, HOST)

    entries = resolved.get("syscalls", [])
    assert all(set(entry) <= {"names", "action", "errnoRet", "args"} for entry in entries)
    remaining = iter(given_profile["syscalls"])
    assert all(any(source["names"] == entry["names"] for source in remaining) for entry in entries)


@given(profiles, some_caps)
def test_a_resolved_profile_has_no_conditions_left(given_profile: dict[str, Any], granted: list[str]) -> None:
    resolved = seccomp.resolve(given_profile, granted, HOST)

    for others in ([], list(caps.NAMES)):
        assert seccomp.resolve(resolved, others, HOST) == resolved


def test_the_key_of_a_compiled_filter_covers_profile_and_runtime() -> None:
    first = seccomp.resolve(profile(rule("read")), (), HOST)
    second = seccomp.resolve(profile(rule("write")), (), HOST)

    keys = {
        seccomp.cache_key(first, "crun 1.8.1"),
        seccomp.cache_key(second, "crun 1.8.1"),
        seccomp.cache_key(first, "crun 1.9"),
    }
    assert len(keys) == 3
    assert seccomp.cache_key(dict(reversed(first.items())), "crun 1.9") in keys


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"defaultAction": 5}',
        '{"defaultAction": "X", "syscalls": {}}',
        '{"defaultAction": "X", "syscalls": [1]}',
        '{"defaultAction": "X", "archMap": ["x"]}',
        b"\xff",
    ],
)
def test_what_is_no_profile_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match="Decoding seccomp profile failed"):
        seccomp.parse(text)


def test_contradictions_in_a_profile_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="use either"):
        seccomp.resolve(profile(architectures=["X"], archMap=[{"architecture": "X"}]), (), HOST)
    with pytest.raises(InvalidArgument, match="names and an action"):
        seccomp.resolve(profile({"action": "SCMP_ACT_ALLOW"}), (), HOST)
    with pytest.raises(InvalidArgument, match="not a version"):
        seccomp.resolve(profile(rule("x", includes={"minKernel": "new"})), (), HOST)
