"""Three managers on an etcd cluster of its own, with TLS, all by the playbooks: members and managers may go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from booted_hosts import eventually
from booted_kinds import chosen_kind
from booted_site import IMAGE, Site, open_site

NODES = {"host-1": "Ready", "host-2": "Ready", "host-3": "Ready"}
#: Of the secret that a service of these tests gets.
SECRET = "told to nobody but tasks"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with open_site(chosen_kind(), {"managers": [1, 2, 3], "etcd": [1, 2, 3]}) as site:
        yield site


@pytest.fixture(scope="module")
def cluster(site: Site) -> Site:
    """With an image on every node, and a service over them all."""
    site.lose_unfit_etcd()
    checked = site.play("site.yml", "--check", "--diff")
    assert checked.changed() > 0
    site.play("site.yml")
    site.load_image()
    site.serve("web", replicas=3)
    return site


def test_the_second_run_changes_nothing(cluster: Site) -> None:
    assert cluster.nodes() == NODES
    for options in (("--diff",), ("--check", "--diff")):
        again = cluster.play("site.yml", *options)
        assert again.changed() == 0, again.output[-6000:]
        assert "PRIVATE KEY" not in again.output


def test_an_install_starts_each_service_once(cluster: Site) -> None:
    for host in cluster.hosts:
        for unit in ("swarmlet-etcd", "swarmlet-agent"):
            told = host.ssh(f"journalctl --unit={unit}.service --output=cat").splitlines()
            assert len([line for line in told if line.startswith("Starting ")]) == 1, told


def test_all_hosts_are_managers_on_the_etcd_of_the_inventory(cluster: Site) -> None:
    roles = cluster.docker("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}").splitlines()
    assert sorted(role.split()[1] for role in roles) == ["Leader", "Reachable", "Reachable"]
    for number, host in enumerate(cluster.hosts, 1):
        assert cluster.nodes(on=number) == NODES
        assert len(host.ssh("pgrep -x etcd").split()) == 1  # the unit's: no manager has an embedded one


def test_etcd_wants_certificates(cluster: Site) -> None:
    """Clients without one are turned away; the CA, keys and data are for their users alone."""
    host = cluster.hosts[0]
    folder = "/etc/swarmlet/etcd"
    etcdctl = f"ETCDCTL_API=3 etcdctl --endpoints=https://{host.address}:2379 --cacert={folder}/ca.pem"
    refused = host.try_ssh(f"{etcdctl} --command-timeout=3s get /swarmlet/ --prefix --keys-only")
    assert refused.returncode != 0 and refused.stdout == ""
    own = f"--cert={folder}/client.pem --key={folder}/client.key"
    listed = host.ssh(f"{etcdctl} {own} member list -w simple").splitlines()
    assert [line.split(", ")[1] for line in listed] == ["started"] * 3
    modes = host.ssh(f"stat -c '%a %U %n' {folder}/*.key /var/lib/swarmlet-etcd").splitlines()
    assert modes == [
        f"600 root {folder}/client.key", f"600 etcd {folder}/member.key", "700 etcd /var/lib/swarmlet-etcd",
    ]


def test_the_cluster_goes_on_while_a_member_of_etcd_is_stopped(cluster: Site) -> None:
    member = cluster.hosts[1]
    member.ssh("systemctl stop swarmlet-etcd")
    try:
        cluster.docker("service", "scale", "--detach", "web=4")
        eventually(lambda: len(cluster.running_on("web")) == 4, 60, "the fourth replica runs")
        # Also through the manager on the host whose member is stopped: it asks the others.
        eventually(lambda: ready(cluster, 2) == set(NODES), 60, "the second manager answers")
    finally:
        member.ssh("systemctl start swarmlet-etcd")
    cluster.docker("service", "scale", "--detach", "web=3")
    eventually(lambda: len(cluster.running_on("web")) == 3, 60, "three replicas run")


def test_the_first_manager_loses_power_and_the_api_goes_on_through_another(cluster: Site) -> None:
    """With it goes a member of etcd."""
    cluster.hosts[0].power_off()
    try:
        eventually(lambda: ready(cluster, 2) == {"host-2", "host-3"}, 60, "its node is down")
        eventually(lambda: set(cluster.running_on("web", on=3)) == {"host-2", "host-3"}, 60, "its tasks run elsewhere")
        cluster.docker("service", "scale", "--detach", "web=5", on=2)
        eventually(lambda: len(cluster.running_on("web", on=3)) == 5, 60, "all replicas run")
    finally:
        cluster.hosts[0].power_on()
    eventually(lambda: ready(cluster, 1) == set(NODES), 120, "it is back, and its manager answers")


def ready(site: Site, number: int) -> set[str]:
    """Names of ready nodes as that host's manager says; none while it does not answer."""
    with contextlib.suppress(AssertionError):
        return {name for name, state in site.nodes(on=number).items() if state == "Ready"}
    return set()


def test_what_a_backup_has_is_restored_into_every_member(cluster: Site) -> None:
    where = ("-e", f"swarmlet_backup_dir={cluster.lab.folder / 'backups'}")
    running = sorted(cluster.running_on("web"))
    cluster.keep_secret("word", SECRET)
    cluster.play("backup.yml", *where)
    cluster.docker("secret", "rm", "word")
    cluster.docker("service", "create", "--detach", "--name=later", IMAGE, "sleep", "1000")
    restored = cluster.play("restore.yml", *where, "-e", "swarmlet_really=true")
    assert SECRET not in restored.output and "PRIVATE KEY" not in restored.output
    for number in (1, 2, 3):
        eventually(lambda number=number: ready(cluster, number) == set(NODES), 120, f"manager {number} sees all nodes")
    assert cluster.docker("service", "ls", "--format", "{{.Name}}").split() == ["web"]
    eventually(lambda: len(cluster.running_on("web")) == len(running), 60, "all replicas run")
    assert cluster.read_secret("word") == {"host-1": SECRET, "host-2": SECRET, "host-3": SECRET}


def test_a_reset_leaves_nothing_and_a_cluster_can_be_made_again(cluster: Site) -> None:
    cluster.play("reset.yml", "-e", "swarmlet_really=true")
    assert [cluster.traces(number) for number in (1, 2, 3)] == [[], [], []]
    cluster.play("site.yml")
    assert cluster.nodes() == NODES
    assert cluster.docker("service", "ls", "-q").strip() == ""
