"""Limits that not every kernel has, and changes that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.common import Ulimit
from swarmlet.model.container import HostConfig, WeightDevice
from swarmlet_agent.decide.kernel import KernelLimits, asks_much, drop_foreign, fit_limits
from swarmlet_agent.decide.update import apply_update
from swarmlet_agent.runtime.facts import kernel_limits


def test_weights_a_kernel_lacks_are_left_out_with_a_warning() -> None:
    host = HostConfig(blkio_weight=300, blkio_weight_device=(WeightDevice(path="/dev/x", weight=20),), memory=1)
    assert asks_much(host)
    fitted, warnings = fit_limits(host, KernelLimits(io_weight=False, io_weight_device=False))
    assert fitted == HostConfig(memory=1)
    assert [text.rsplit(". ", 1)[-1] for text in warnings] == ["Weight discarded.", "Weight-device discarded."]
    assert fit_limits(host, KernelLimits()) == (host, [])


def test_real_time_is_refused_where_there_is_none_and_where_it_cannot_be() -> None:
    with pytest.raises(NotSupported, match="Your kernel does not support CPU real-time scheduler"):
        fit_limits(HostConfig(cpu_realtime_runtime=1000), KernelLimits(realtime=False))
    with pytest.raises(InvalidArgument, match="runtime cannot be higher than cpu real-time period"):
        fit_limits(HostConfig(cpu_realtime_runtime=2000, cpu_realtime_period=1000), KernelLimits())
    with pytest.raises(InvalidArgument, match="Range of blkio weight"):
        fit_limits(HostConfig(blkio_weight_device=(WeightDevice(path="/dev/x", weight=5),)), KernelLimits())


def test_what_the_cgroups_can_do_is_read_from_them(tmp_path: Path) -> None:
    first = tmp_path / "one"
    (first / "cpu").mkdir(parents=True)
    (first / "cpu" / "cpu.rt_runtime_us").touch()
    (first / "blkio" / "x").mkdir(parents=True)
    (first / "blkio" / "x" / "cgroup.procs").touch()
    nodes = kernel_limits(first).memory_nodes  # of this machine
    assert kernel_limits(first) == KernelLimits(
        realtime=True, io_weight=False, io_weight_device=False, memory_nodes=nodes
    )
    (first / "blkio" / "x" / "blkio.bfq.weight").touch()
    assert not kernel_limits(first).io_weight
    (first / "blkio" / "x" / "blkio.weight").touch()
    assert kernel_limits(first).io_weight

    second = tmp_path / "two"
    (second / "x").mkdir(parents=True)
    for name in ("cgroup.controllers", "x/io.stat", "x/io.weight"):
        (second / name).touch()
    assert kernel_limits(second) == KernelLimits(
        realtime=False, swappiness=False, oom_kill_disable=False, memory_nodes=nodes
    )


def test_memory_nodes_must_be_there_and_version_2_has_neither_swappiness_nor_a_way_to_spare_the_killer() -> None:
    with pytest.raises(InvalidArgument, match="Requested memory nodes are not available - requested 2, available: 0-1"):
        fit_limits(HostConfig(cpuset_mems="2"), KernelLimits(memory_nodes="0-1"))
    host = HostConfig(memory_swappiness=20, oom_kill_disable=True, memory=1 << 30)
    assert asks_much(host)
    fitted, warnings = fit_limits(host, KernelLimits(swappiness=False, oom_kill_disable=False))
    assert fitted == HostConfig(memory=1 << 30)
    assert [text.rsplit(". ", 1)[-1] for text in warnings] == [
        "Memory swappiness discarded.", "OomKillDisable discarded.",
    ]  # fmt: skip


def test_what_linux_does_not_have_is_told_of_and_not_kept() -> None:
    fitted, warnings = drop_foreign(HostConfig(kernel_memory=1 << 26, cpu_percent=50, cpu_count=2, memory=1 << 30))
    assert fitted == HostConfig(memory=1 << 30) and len(warnings) == 3
    assert warnings[0].startswith("Your kernel does not support kernel memory limit capabilities")
    assert drop_foreign(HostConfig(memory=1 << 30)) == (HostConfig(memory=1 << 30), [])
    with pytest.raises(InvalidArgument, match="Invalid QoS settings"):
        drop_foreign(HostConfig(io_maximum_iops=1))


def test_an_update_refuses_what_it_cannot_change() -> None:
    for change in (
        HostConfig(ulimits=(Ulimit(name="nofile", soft=1, hard=1),)), HostConfig(memory_swappiness=5),
        HostConfig(oom_kill_disable=True), HostConfig(cgroup_parent="/x"),
    ):  # fmt: skip
        with pytest.raises(NotSupported, match="cannot be changed once a container is made"):
            apply_update(HostConfig(), change, cpus=2)
    # What clients send for "not given".
    harmless = HostConfig(memory_swappiness=-1, oom_kill_disable=False, cpu_shares=512)
    assert apply_update(HostConfig(), harmless, cpus=2).cpu_shares == 512
