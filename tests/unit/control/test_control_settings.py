"""The manager's settings and what it does before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_manager.leadership import retire_predecessor
from swarmlet_manager.settings import read_settings
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.memory import MemoryClient, MemoryEtcd
from swarmlet_manager.store.store import Store

ADDRESS = ["--advertise-addr", "192.0.2.1"]


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "manager.toml"
    file.write_text('port = 1\nadvertise_addr = "192.0.2.1"\nlog_level = "error"\n')
    environ = {"SWARMLET_PORT": "2", "SWARMLET_LOG_LEVEL": "debug"}
    settings, only_stop = read_settings(["--config", str(file), "--port", "3"], environ)
    assert (settings.port, settings.log_level, settings.advertised) == (3, "debug", "192.0.2.1:3")
    assert not only_stop


def test_an_ipv6_address_is_advertised_in_brackets() -> None:
    settings, _ = read_settings(["--advertise-addr", "2001:db8::1"], {})
    assert settings.advertised == "[2001:db8::1]:2377"


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "manager.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(InvalidArgument, match="prot"):
        read_settings(["--config", str(file), *ADDRESS], {})


@pytest.mark.parametrize(
    ("argv", "says"),
    [([], "advertise_addr"), ([*ADDRESS, "--port", "0"], "port"), ([*ADDRESS, "--etcd", "https://e:2379"], "etcd-ca")],
)
def test_settings_that_cannot_work_are_refused(argv: list[str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        read_settings(argv, {})


@pytest.mark.looptime
async def test_a_restarted_manager_does_not_wait_for_its_own_dead_lease() -> None:
    etcd = MemoryEtcd()
    dead = MemoryClient(etcd)
    lease = await dead.lease_grant(3600)
    keys = Keys(b"/swarmlet/")
    first = Store(dead, Candidate(id="m1"), ttl_s=3600)
    await first.start()
    await first.wait_for_leadership()
    first._running.cancel()  # type: ignore[union-attr]  # as kill -9 does: nothing is resigned
    first._election._give_back = _nothing  # type: ignore[method-assign]
    assert lease
    other = MemoryClient(etcd)
    assert not await retire_predecessor(other, keys, "m2")
    assert await retire_predecessor(other, keys, "m1")
    assert not (await other.read(keys.leader)).kvs
    await first.stop()
    etcd.close()


async def _nothing(_lease: int) -> None:
    """A dead process gives nothing back."""
