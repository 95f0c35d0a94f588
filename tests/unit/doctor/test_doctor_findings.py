"""What `swarmlet doctor` says of hosts that lack something."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.doctor import findings
from swarmlet_agent.doctor.findings import GIB, Host, Verdict, examine

WELL = Host(
    is_root=True,
    kernel="6.1.0-18-amd64",
    namespaces=frozenset(findings.NEEDED_NAMESPACES),
    overlay_error="",
    cgroup_version=2,
    controllers=frozenset(findings.NEEDED_CONTROLLERS),
    seccomp=True,
    seccomp_profile="",
    selinux=True,
    selinux_error="",
    nftables_error="",
    services_error="",
    dropping_chains=(),
    links=frozenset([*findings.NEEDED_LINKS, *findings.WANTED_LINKS]),
    programs=frozenset(findings.PACKAGES),
    runtimes=("crun",),
    init_program="/usr/bin/tini-static",
    etcd="/usr/bin/etcd 3.5.16",
    etcd_error="",
    taken_ports=(),
    address="192.0.2.10",
    mtu=1500,
    clock_synchronised=True,
    data_dir="/var/lib/swarmlet",
    free_bytes=50 * GIB,
    total_bytes=100 * GIB,
    forwarding=True,
    open_files=1048576,
)


def test_a_host_that_has_all_it_needs_is_well() -> None:
    assert {finding.verdict for finding in examine(WELL)} == {Verdict.OK}


@pytest.mark.parametrize(
    ("change", "verdict", "what", "remedy"),
    [
        ({"is_root": False}, Verdict.PROBLEM, "user", "run it as root"),
        ({"kernel": "4.19.0-26-amd64"}, Verdict.PROBLEM, "kernel", "Linux 5.3 or newer"),
        ({"kernel": "strange"}, Verdict.PROBLEM, "kernel", "Linux 5.3 or newer"),
        ({"namespaces": frozenset({"mnt"})}, Verdict.PROBLEM, "namespaces", "pid namespaces"),
        ({"seccomp": False}, Verdict.WARNING, "seccomp", "not filtered"),
        ({"seccomp_profile": "/x.json"}, Verdict.WARNING, "seccomp profile", "golang-github-containers-common"),
        ({"selinux_error": "not on"}, Verdict.PROBLEM, "SELinux", "selinux-policy-default"),
        ({"cgroup_version": 0}, Verdict.PROBLEM, "cgroups", "/sys/fs/cgroup"),
        ({"controllers": frozenset({"cpu", "cpuset", "pids"})}, Verdict.WARNING, "cgroups", "cgroup_enable=memory"),
        ({"overlay_error": "mount: wrong fs type"}, Verdict.PROBLEM, "overlayfs", "modprobe overlay"),
        ({"free_bytes": 1 * GIB}, Verdict.WARNING, "disk", "at least 5.0 GiB"),
        ({"programs": frozenset({"ip", "mount"})}, Verdict.PROBLEM, "programs", "apt install conmon nftables"),
        ({"runtimes": ()}, Verdict.PROBLEM, "programs", "apt install crun"),
        ({"init_program": ""}, Verdict.WARNING, "init for containers", "apt install tini"),
        ({"etcd": "", "etcd_error": "3.3 is too old"}, Verdict.WARNING, "etcd", "apt install etcd-server"),
        ({"open_files": 1024}, Verdict.WARNING, "open files", "LimitNOFILE"),
        ({"nftables_error": "cannot"}, Verdict.PROBLEM, "nftables", "modprobe nf_tables"),
        ({"services_error": "too old"}, Verdict.PROBLEM, "services", "newer nftables: 1.0.2"),
        ({"nftables_error": "cannot", "services_error": "cannot"}, Verdict.PROBLEM, "nftables", "modprobe nf_tables"),
        ({"links": WELL.links - {"veth"}}, Verdict.PROBLEM, "network: veth", "modprobe veth"),
        ({"links": WELL.links - {"vxlan"}}, Verdict.WARNING, "network: vxlan", "across hosts"),
        ({"dropping_chains": ("ip filter FORWARD",)}, Verdict.WARNING, "firewall", "DOCKER-USER"),
        ({"forwarding": False}, Verdict.WARNING, "forwarding", "ip_forward"),
        ({"address": ""}, Verdict.PROBLEM, "address", "advertise_addr"),
        ({"mtu": 1280}, Verdict.WARNING, "MTU", "1350"),
        ({"taken_ports": (("tcp", 2377, "manager_port"),)}, Verdict.PROBLEM, "port 2377/tcp", "manager_port"),
        ({"clock_synchronised": False}, Verdict.WARNING, "clock", "timesyncd"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    change: dict[str, Any], verdict: Verdict, what: str, remedy: str
) -> None:
    found = [finding for finding in examine(replace(WELL, **change)) if finding.verdict is not Verdict.OK]
    assert {finding.what for finding in found} == {what}
    assert all(finding.verdict is verdict for finding in found)
    assert any(remedy in finding.remedy for finding in found), found


def test_a_host_that_is_to_have_no_selinux_is_not_asked_for_it() -> None:
    host = replace(WELL, selinux=False, selinux_error="not on")
    assert "SELinux" not in {finding.what for finding in examine(host)}
    assert "SELinux" in {finding.what for finding in examine(WELL)}


_POOR = replace(
    WELL, selinux_error="no", is_root=False, kernel="3.2", namespaces=frozenset(), overlay_error="no",
    cgroup_version=0, controllers=frozenset(), seccomp=False, nftables_error="no", dropping_chains=("ip a b",),
    links=frozenset(), programs=frozenset(), runtimes=(), init_program="", etcd="", etcd_error="no",
    taken_ports=(("udp", 4789, "x"),), address="", mtu=0, clock_synchronised=False, free_bytes=0, forwarding=False,
    open_files=10,
)  # fmt: skip


@given(st.sets(st.sampled_from([field.name for field in fields(Host)])))
def test_there_is_a_remedy_for_all_that_is_not_well_and_for_nothing_else(poor: set[str]) -> None:
    host = replace(WELL, **{name: getattr(_POOR, name) for name in poor})
    found = examine(host)
    assert all((finding.verdict is Verdict.OK) == (finding.remedy == "") for finding in found)
    assert len({(finding.what, finding.found) for finding in found}) == len(found)
