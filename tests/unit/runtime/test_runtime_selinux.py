"""What a host's SELinux says of containers, and what is told where it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmlet.errors import InvalidArgument
from swarmlet_agent.decide.selinux import parse_policy
from swarmlet_agent.images import rootfs
from swarmlet_agent.runtime import bundle, selinux


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


def test_a_shm_of_several_containers_is_mounted_with_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(bundle.linux, "mount", lambda *words: told.append(words[-1]))
    box = bundle.Bundle(tmp_path, "c")
    box.path.mkdir(parents=True)
    box.make_shm(4096, label="u:o:f:s0:c1,c2")
    assert told == ['mode=1777,size=4096,uid=0,gid=0,context="u:o:f:s0:c1,c2"']


class Kernel:
    """What is mounted with which options."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def mount(self, kind: bytes, target: bytes, source: bytes, flags: int, options: bytes) -> int:
        self.told.append(options.decode())
        return 0


async def test_roots_are_mounted_with_their_label_and_what_builds_look_into_with_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(rootfs, "_libc", kernel)
    store = rootfs.RootStore(tmp_path / "roots", lambda chain: tmp_path / chain, "u:o:f:s0")
    store.recover()
    for name, label in (("own", "u:o:f:s0:c1,c2"), ("none", ""), ("bench", None)):
        await store.ensure(name, (), label=label)
    assert [options.partition(",context=")[2] for options in kernel.told] == ['"u:o:f:s0:c1,c2"', "", '"u:o:f:s0"']
