"""What containers are to a kernel that has SELinux: their processes' and files' labels, as the kernel tells them.

The tests of this file share the machine; each takes away what it makes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted_hosts import SUITE
from booted_site import IMAGE
from kernel_hosts import PATIENCE_S, Guest, open_guests
from selinux_hosts import SelinuxHost
from virtual_hosts import needs_virtual_hosts

pytestmark = [
    needs_virtual_hosts, pytest.mark.skipif(SUITE != "bookworm", reason="is of the policy that Debian 12 has"),
]

OWN = re.compile(r"s0:c\d+,c\d+")
SLEEP = (IMAGE, "sleep", "3000")


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    with open_guests(1, SelinuxHost) as (guest,):
        yield guest


@pytest.fixture
def guest(machine: Guest) -> Iterator[Guest]:
    yield machine
    if left := machine.docker("ps", "-aq").split():
        machine.docker("rm", "-f", "-v", *left)
    machine.docker("volume", "prune", "-f", "-a")


def inspect(guest: Guest, ident: str, form: str) -> str:
    return guest.docker("inspect", "-f", form, ident)


def process_label(guest: Guest, ident: str) -> str:
    """As the kernel has it."""
    pid = inspect(guest, ident, "{{.State.Pid}}")
    return guest.ssh(f"cat /proc/{pid}/attr/current").strip("\0\n")


def labels(guest: Guest, *paths: str) -> list[str]:
    """Of files, as the kernel has them."""
    return guest.ssh(f"stat -c %C {' '.join(paths)}").split()


def inside(guest: Guest, ident: str, *paths: str) -> list[str]:
    """Of files as the container sees them."""
    pid = inspect(guest, ident, "{{.State.Pid}}")
    return labels(guest, *(f"/proc/{pid}/root{path}" for path in paths))


def said(guest: Guest, *args: str) -> str:
    """What a program writes of its label, which ends with a zero byte."""
    return guest.docker(*args).strip("\0\r\n")


def level(label: str) -> str:
    return label.split(":", 3)[3]


def test_the_host_has_selinux_and_the_agent_says_so(guest: Guest) -> None:
    assert guest.ssh("getenforce").strip() == "Permissive"
    assert "name=selinux" in guest.docker("info", "-f", "{{json .SecurityOptions}}")
    told = guest.ssh("/opt/swarmlet/current/bin/swarmlet doctor || true")
    assert re.search(r"ok +SELinux +containers have labels", told)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_containers_have_labels_of_their_own(guest: Guest, runtime: str) -> None:
    options = ("-d", "--runtime", runtime, "--tmpfs", "/mine", "--ipc", "shareable", "-v", "data:/data")
    one, two = (guest.docker("run", *options, *SLEEP) for _ in range(2))
    shown = [inspect(guest, ident, "{{.ProcessLabel}} {{.MountLabel}}").split() for ident in (one, two)]
    own = level(shown[0][0])
    assert OWN.fullmatch(own)
    assert shown[0] == [f"system_u:system_r:container_t:{own}", f"system_u:object_r:container_file_t:{own}"]
    assert [process_label(guest, ident) for ident in (one, two)] == [process for process, _ in shown]
    assert own != level(shown[1][0])

    made = ("/", "/bin", "/bin/sh", "/mine", "/dev", "/dev/shm", "/dev/mqueue", "/etc/hosts", "/etc/resolv.conf",
            "/etc/hostname")
    for ident, (_, mount) in zip((one, two), shown, strict=True):
        guest.docker("exec", ident, "touch", "/new")
        assert dict(zip(made, inside(guest, ident, *made), strict=True)) == dict.fromkeys(made, mount)
        assert inside(guest, ident, "/new", "/data") == [mount, "system_u:object_r:container_file_t:s0"]

    for option in ("-i", "-t", "--privileged"):
        assert said(guest, "exec", option, one, "cat", "/proc/self/attr/current") == shown[0][0]
    guest.docker("restart", "-t", "0", one)
    assert process_label(guest, one) == shown[0][0]
    assert inside(guest, one, "/new") == [shown[0][1]]


def test_a_terminal_and_a_private_ipc_have_it_too(guest: Guest) -> None:
    ident = guest.docker("run", "-dt", *SLEEP)
    process, mount = inspect(guest, ident, "{{.ProcessLabel}} {{.MountLabel}}").split()
    assert process_label(guest, ident) == process
    assert inside(guest, ident, "/dev/shm", "/dev/mqueue") == [mount] * 2


def test_options_choose_labels(guest: Guest) -> None:
    options = ("label=type:spc_t", "label=level:s0:c5,c6", "label=filetype:container_ro_file_t")
    words = [word for option in options for word in ("--security-opt", option)]
    ident = guest.docker("run", "-d", *words, *SLEEP)
    assert process_label(guest, ident) == "system_u:system_r:spc_t:s0:c5,c6"
    assert inside(guest, ident, "/bin") == ["system_u:object_r:container_ro_file_t:s0:c5,c6"]
    assert inspect(guest, ident, "{{.HostConfig.SecurityOpt}}") == f"[{' '.join(options)}]"

    refused = guest.try_docker("create", "--security-opt", "label=typ:x", IMAGE)
    assert refused.returncode != 0 and 'bad label option "typ:x"' in refused.stderr
    unknown = guest.try_docker("run", "--rm", "--security-opt", "label=type:no_such_t", IMAGE, "true")
    assert unknown.returncode != 0


def test_who_is_not_confined_has_no_label_but_its_files_have(guest: Guest) -> None:
    agent = guest.ssh("cat /proc/$(systemctl show -p MainPID --value swarmlet-agent)/attr/current").strip("\0\n")
    for option in (("--security-opt", "label=disable"), ("--privileged",), ("--pid", "host")):
        ident = guest.docker("run", "-d", *option, *SLEEP)
        assert inspect(guest, ident, "<{{.ProcessLabel}}> {{.HostConfig.SecurityOpt}}") == "<> [label=disable]"
        assert "container_t" not in process_label(guest, ident) and ":c" not in agent
        assert inside(guest, ident, "/bin") == ["system_u:object_r:container_file_t:s0:c1022,c1023"]


def test_who_has_anothers_processes_has_its_label(guest: Guest) -> None:
    owner = guest.docker("run", "-d", "--ipc", "shareable", *SLEEP)
    ident = guest.docker("run", "-d", "--pid", f"container:{owner}", "--ipc", f"container:{owner}", *SLEEP)
    assert process_label(guest, ident) == process_label(guest, owner)
    assert inside(guest, ident, "/dev/shm") == inside(guest, owner, "/dev/shm") == inside(guest, owner, "/bin")


def test_binds_are_relabelled_as_they_ask(guest: Guest) -> None:
    guest.ssh("mkdir -p /srv/binds/{shared,private,plain}/below && touch /srv/binds/{shared,private,plain}/below/file")
    before = labels(guest, "/srv/binds/plain", "/srv/binds/plain/below/file")
    binds = ("-v", "/srv/binds/shared:/a:z", "-v", "/srv/binds/private:/b:ro,Z", "-v", "/srv/binds/plain:/c")
    ident = guest.docker("run", "-d", *binds, *SLEEP)
    own = inspect(guest, ident, "{{.MountLabel}}")
    assert labels(guest, "/srv/binds/plain", "/srv/binds/plain/below/file") == before
    assert labels(guest, "/srv/binds/private", "/srv/binds/private/below/file") == [own] * 2
    assert inside(guest, ident, "/a/below/file", "/b/below/file") == ["system_u:object_r:container_file_t:s0", own]
    for forbidden in ("/etc", "/usr", "/"):
        refused = guest.try_docker("run", "--rm", "-v", f"{forbidden}:/x:z", IMAGE, "true")
        assert f"SELinux relabeling of {forbidden} is not allowed" in refused.stderr
    assert "container" not in labels(guest, "/etc")[0]
    guest.ssh("rm -r /srv/binds")


def test_a_build_runs_labelled_and_its_layers_have_no_labels(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "from-context").write_text("x\n")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nCOPY from-context /copied\nRUN cat /proc/self/attr/current > /label; touch /made\n"
    )
    argv = ["docker", "-H", guest.url("agent.sock"), "build", "-t", "labelled", str(tmp_path)]
    done = subprocess.run(
        argv, env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    ident = guest.docker("run", "-d", "labelled", "sleep", "3000")
    built_as = said(guest, "exec", ident, "cat", "/label")
    assert built_as.startswith("system_u:system_r:container_t:s0:c")
    assert built_as != inspect(guest, ident, "{{.ProcessLabel}}")
    assert set(inside(guest, ident, "/copied", "/made")) == {inspect(guest, ident, "{{.MountLabel}}")}
    guest.docker("rmi", "-f", "labelled")
