"""What a host's SELinux says of containers, and what is told where it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_agent.decide.selinux import parse_policy
from swarmlet_agent.runtime import selinux


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a policy that has nothing to say of containers, but knows every label."""
    for name in ("KERNEL", "CURRENT", "FOLDER", "CONTEXTS"):
        monkeypatch.setattr(selinux, name, tmp_path / name)
    (tmp_path / "KERNEL").mkdir()
    (tmp_path / "KERNEL/enforce").write_text("0")
    (tmp_path / "KERNEL/context").touch()
    (tmp_path / "CURRENT").write_text("system_u:system_r:initrc_t:s0\0")
    (tmp_path / "FOLDER/mine/contexts").mkdir(parents=True)
    (tmp_path / "FOLDER/config").write_text("# SELINUXTYPE= is this:\nSELINUX=permissive\nSELINUXTYPE=mine\n")
    return tmp_path


def test_the_policy_of_the_configured_kind_is_read(host: Path) -> None:
    assert selinux.read_policy(True) == parse_policy("")
    (host / "FOLDER/mine/contexts/lxc_contexts").write_text('process = "a:b:c:s0"\n')
    assert selinux.read_policy(True) == parse_policy('process = "a:b:c:s0"')
    (host / "CONTEXTS").write_text('process = "first:b:c:s0"\n')
    assert selinux.read_policy(True) == parse_policy('process = "first:b:c:s0"')


def test_without_a_configuration_it_is_the_usual_one(host: Path) -> None:
    (host / "FOLDER/config").unlink()
    (host / "FOLDER/targeted/contexts").mkdir(parents=True)
    (host / "FOLDER/targeted/contexts/lxc_contexts").write_text('file = "a:b:c:s0"\n')
    assert selinux.read_policy(True) == parse_policy('file = "a:b:c:s0"')


def test_a_host_without_it_is_told_what_to_do(host: Path) -> None:
    (host / "CURRENT").write_text("kernel\0")
    with pytest.raises(InvalidArgument, match="selinux_enabled: SELinux is not on"):
        selinux.read_policy(True)
    (host / "KERNEL/enforce").unlink()
    (host / "CURRENT").unlink()  # there need not be one
    with pytest.raises(InvalidArgument, match="security=selinux"):
        selinux.read_policy(True)
    assert selinux.read_policy(False) is None


def test_a_policy_that_has_no_containers_is_told_of(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "_is_known", lambda label: "container_file_t" not in label)
    with pytest.raises(InvalidArgument, match="does not know system_u:object_r:container_file_t:s0"):
        selinux.read_policy(True)


@pytest.mark.parametrize("source", ["/", "/etc", "/usr/", "/home", "/var/lib", "/etc/../usr"])
def test_the_hosts_own_folders_are_never_relabelled(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "_label_tree", lambda *_: pytest.fail("it was"))
    with pytest.raises(InvalidArgument, match="SELinux relabeling of /"):
        selinux.label_source(source, "u:o:f:s0")


def test_nor_by_a_link_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "_label_tree", lambda *_: pytest.fail("it was"))
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(InvalidArgument, match="SELinux relabeling of /etc is not allowed"):
        selinux.label_source(str(tmp_path / "link"), "u:o:f:s0")
