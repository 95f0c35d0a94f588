"""Inventories that make no cluster are refused before a host is touched."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from booted_site import ANSIBLE, ANSIBLE_PROGRAMS


def refusal(folder: Path, groups: dict[str, list[str]]) -> str:
    """What `site.yml` says to it. The hosts have names that nothing answers to."""
    inventory = folder / "hosts.json"
    children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    inventory.write_text(json.dumps({"all": {"children": children}}))
    done = subprocess.run(
        [str(ANSIBLE_PROGRAMS / "ansible-playbook"), "-i", str(inventory), str(ANSIBLE / "site.yml")],
        capture_output=True, text=True, timeout=120, cwd=ANSIBLE,
        env=os.environ | {
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home")
        },
    )
    assert done.returncode != 0 and "Prepare the hosts" not in done.stdout, done.stdout
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
    assert message in refusal(tmp_path, groups)
