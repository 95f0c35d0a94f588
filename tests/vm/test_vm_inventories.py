"""What makes no cluster is refused before a host is touched: inventories, variables, hosts that are named."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from booted_site import ANSIBLE, ANSIBLE_PROGRAMS

#: The hosts of an inventory that makes a cluster. Nothing answers to their names.
GROUPS = {"managers": ["one.invalid"], "workers": ["two.invalid"]}
#: What ansible-playbook says of a host that it has tried to reach.
REACHED = "UNREACHABLE"


def refusal(folder: Path, playbook: str, groups: dict[str, list[str]], *options: str, **variables: object) -> str:
    """What the playbook says; no host is asked for anything. variables: of all hosts, by the inventory."""
    inventory = folder / "hosts.json"
    children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    inventory.write_text(json.dumps({"all": {"children": children, "vars": variables}}))
    done = subprocess.run(
        [str(ANSIBLE_PROGRAMS / "ansible-playbook"), "-i", str(inventory), *options, str(ANSIBLE / playbook)],
        capture_output=True, text=True, timeout=120, cwd=ANSIBLE,
        env=os.environ | {
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home")
        },
    )
    assert done.returncode != 0 and REACHED not in done.stdout, done.stdout
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"workers": ["one.invalid"]}, "the group managers is empty"),
        ({"managers": ["one.invalid", "two.invalid"]}, "2 managers need an etcd of their own"),
        (
            {"managers": ["one.invalid"], "etcd": ["one.invalid", "two.invalid"]},
            "the group etcd has 2 hosts: it takes 1, 3 or 5",
        ),
        ({"managers": ["one.invalid"], "workers": ["one.invalid"]}, "one.invalid: a manager runs tasks too"),
    ],
    ids=["no manager", "several managers on an embedded etcd", "an even etcd", "a host in both groups"],
)
def test_an_inventory_that_makes_no_cluster_is_refused(
    groups: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, "site.yml", groups)


@pytest.mark.parametrize("playbook", ["add_node.yml", "remove_node.yml", "upgrade.yml", "backup.yml", "restore.yml"])
def test_every_playbook_begins_with_that(playbook: str, tmp_path: Path) -> None:
    assert "the group managers is empty" in refusal(tmp_path, playbook, {"workers": ["one.invalid"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "say which host of the inventory, by -e swarmlet_host=NAME"),
        (("-e", "swarmlet_host=three.invalid"), "the inventory has no host three.invalid"),
        (("-e", "swarmlet_host=workers"), "the inventory has no host workers"),
        (("-e", "swarmlet_host=four.invalid"), "four.invalid is neither in the group managers nor in the group"),
    ],
    ids=["none", "unknown", "a group", "of no group"],
)
def test_a_host_that_can_be_no_node_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, "add_node.yml", GROUPS | {"others": ["four.invalid"]}, *options)


@pytest.mark.parametrize("playbook", ["restore.yml", "reset.yml"])
def test_what_destroys_must_be_meant(playbook: str, tmp_path: Path) -> None:
    assert "say -e swarmlet_really=true if you mean it" in refusal(tmp_path, playbook, GROUPS)


def test_a_variable_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "site.yml", GROUPS, "-e", "swarmlet_manager_prot=1", swarmlet_grup="x")
    assert "there is no variable swarmlet_grup, swarmlet_manager_prot" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("swarmlet_manager_port", "many"),
        ("swarmlet_settings", ["registry_mirrors"]),
        ("swarmlet_firewall", "perhaps"),
    ],
    ids=["a port", "settings", "a switch"],
)
def test_a_variable_of_another_type_is_refused_at_once(name: str, value: object, tmp_path: Path) -> None:
    """Here, since it takes a host's facts to know its variables; in a check, should it not be refused."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": str(ANSIBLE_PROGRAMS / "python"), name: value}
    said = refusal(tmp_path, "site.yml", {"managers": ["one.invalid"]}, "--check", **here)
    assert f"argument '{name}' is of type" in said and "Refuse what is no Linux with systemd" not in said
