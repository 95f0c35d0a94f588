"""The playbooks on booted hosts, in the order of a cluster's life: the tests of this file build on each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted_hosts import RELEASES, SUITE, eventually, run
from booted_kinds import CHOSEN, chosen_kind
from booted_site import ANSIBLE, ANSIBLE_PROGRAMS, IMAGE, ROOT, Site, open_site

from swarmlet.release import RELEASE

REPLICAS = 6
#: This machine's kernel may have no WireGuard, which encrypted networks need; that of virtual machines has.
SETTINGS = {} if CHOSEN == "virtual" else {"wireguard_program": RELEASES[SUITE].wireguard}
#: Those of the playbooks (ansible/README.md).
TAGS = ("preflight", "packages", "firewall", "common", "install", "config", "agent", "etcd", "cluster")
#: Of the secret that services of these tests get.
SECRET = "told to nobody but tasks"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with open_site(chosen_kind(), {"managers": [1], "workers": [2, 3]}, settings=SETTINGS) as site:
        yield site


@pytest.fixture(scope="module")
def fresh(site: Site) -> Site:
    """A check of what is to be done, on hosts that have nothing; then it is done."""
    site.lose_unfit_etcd()
    checked = site.play("site.yml", "--check", "--diff")
    assert checked.changed() > 0
    assert site.play("site.yml", "--tags", "preflight").changed() == 0
    assert site.hosts[0].ssh("ls /opt /etc/swarmlet 2>/dev/null || true").strip() in ("", "/opt:")
    site.play("site.yml")
    return site


@pytest.fixture(scope="module")
def cluster(fresh: Site) -> Site:
    """With an image on every node, and a service over them all that has a secret."""
    fresh.load_image()
    fresh.keep_secret("word", SECRET)
    fresh.serve("web", REPLICAS, "--publish", "8080:80", "--secret", "word")
    settle(fresh)
    return fresh


def settle(site: Site, names: int = 3) -> None:
    """All replicas run, and on so many hosts."""
    def settled() -> bool:
        running = site.running_on("web")
        return len(running) == REPLICAS and len(set(running)) == names

    eventually(settled, 180, f"{REPLICAS} replicas run on {names} hosts")


@pytest.mark.skipif(RELEASES[SUITE].etcd, reason="is of a release whose etcd the playbooks refuse")
def test_an_etcd_that_is_too_old_is_refused_before_anything_is_done(site: Site) -> None:
    refused = site.try_play("site.yml", "-e", "swarmlet_etcd_programs=")
    told = " ".join(refused.output.split())
    assert refused.status != 0 and "cannot keep a cluster's state" in told and "set swarmlet_etcd_programs" in told
    assert refused.changed() == 0
    assert [site.traces(number) for number in (1, 2, 3)] == [[], [], []]


def test_a_fresh_install_is_a_cluster_and_the_second_run_changes_nothing(fresh: Site) -> None:
    assert fresh.nodes() == {"host-1": "Ready", "host-2": "Ready", "host-3": "Ready"}
    token = fresh.docker("swarm", "join-token", "-q", "worker").strip()
    for options in (("--diff",), ("--check", "--diff")):
        again = fresh.play("site.yml", *options)
        assert again.changed() == 0, again.output[-6000:]
        assert token and token not in again.output


def test_hosts_are_fit_and_say_so(fresh: Site) -> None:
    for host in fresh.hosts:
        findings = json.loads(host.ssh("swarmlet doctor --json"))
        assert [finding for finding in findings if finding["verdict"] == "problem"] == []
        assert host.ssh("swarmlet version").strip() == RELEASE
        assert host.ssh("systemctl is-active swarmlet-agent").strip() == "active"


def test_every_tag_is_good_by_itself(fresh: Site) -> None:
    for tag in TAGS:
        again = fresh.play("site.yml", "--tags", tag)
        assert again.changed() == 0, again.output[-6000:]


def test_a_service_runs_over_all_hosts_and_each_answers_for_it(cluster: Site) -> None:
    for host in cluster.hosts:
        for seen_from in cluster.hosts:
            answer = seen_from.ssh(f"python3 -c \"{FETCH.format(host.address)}\"")
            assert answer.strip() == "served"


@pytest.mark.parametrize("options", [(), ("--opt", "encrypted")], ids=["in_clear", "encrypted"])
def test_containers_of_all_hosts_meet_on_one_network(cluster: Site, options: tuple[str, ...]) -> None:
    cluster.docker("network", "create", "-d", "overlay", "--attachable", *options, "between")
    own = {"socket": "agent.sock"}
    for number in (1, 2, 3):
        serve = ("httpd", "-f", "-p", "80", "-h", "/var/www")
        cluster.docker("run", "-d", "--name", f"at-{number}", "--network", "between", IMAGE, *serve, on=number, **own)
    for number, other in itertools.permutations((1, 2, 3), 2):
        def answers(number: int = number, other: int = other) -> bool:
            ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 at-{other} 80"
            with contextlib.suppress(AssertionError):
                return cluster.docker("exec", f"at-{number}", "sh", "-c", ask, on=number, **own).endswith("served\n")
            return False

        eventually(answers, 60, f"host-{number} is answered by a container of host-{other}")
    secured = ["swlwg" in host.ssh("ip -brief link") for host in cluster.hosts]
    assert secured == [bool(options)] * 3
    for number in (1, 2, 3):
        cluster.docker("rm", "-f", f"at-{number}", on=number, **own)
    cluster.docker("network", "rm", "between")
    eventually(lambda: not any("swlwg" in host.ssh("ip -brief link") for host in cluster.hosts), 60, "no ways are left")


FETCH = "import urllib.request as r; print(r.urlopen('http://{}:8080/', timeout=10).read().decode())"


def test_the_examples_deploy_and_maintain(cluster: Site) -> None:
    """community.docker's modules and our own, from the controller, through a socket that SSH carries."""
    with cluster.lab.socket_of(cluster.hosts[0], "manager.sock") as url:
        wishes = {
            "deploy_docker_host": url, "deploy_image": IMAGE, "deploy_labels": {"host-2": {"disk": "ssd"}},
            "deploy_args": ["httpd", "-f", "-p", "80", "-h", "/var/www"],
        }
        options = ("-e", json.dumps(wishes))
        deployed = cluster.play("examples/deploy.yml", *options)
        assert deployed.changed() == 3 and "host-1 host-2 host-3" in deployed.output
        eventually(lambda: len(cluster.running_on("deployed")) == REPLICAS, 120, "all replicas run")
        again = cluster.play("examples/deploy.yml", *options)
        assert again.changed() == 0, again.output[-3000:]
        assert cluster.docker("node", "inspect", "-f", "{{.Spec.Labels.disk}}", "host-2").strip() == "ssd"
        assert inventory_of(cluster, url) == {
            "managers": ["host-1"], "workers": ["host-2", "host-3"], "label_disk_ssd": ["host-2"],
            "state_ready": ["host-1", "host-2", "host-3"], "availability_active": ["host-1", "host-2", "host-3"],
        }
    cluster.play("examples/maintenance.yml", "--limit", "host-3", "-e", "maintenance_upgrade=false")
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 120, "three nodes")
    cluster.docker("service", "rm", "deployed")


def inventory_of(site: Site, url: str) -> dict[str, list[str]]:
    """The groups that the inventory plugin makes of the cluster."""
    file = site.lab.folder / "cluster.swarmlet.yml"
    file.write_text(json.dumps({"plugin": "swarmlet.cluster.nodes", "docker_host": url}))
    listed = json.loads(run(
        str(ANSIBLE_PROGRAMS / "ansible-inventory"), "-i", str(file), "--list", cwd=ANSIBLE,
        env=os.environ | {"ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
    ))
    skipped = ("_meta", "all", "ungrouped")
    return {name: sorted(group["hosts"]) for name, group in listed.items() if name not in skipped}


def test_a_worker_that_reboots_comes_back(cluster: Site) -> None:
    # The host's own end would not send that signal: the agent ends its containers before.
    ended = 'trap "echo well > /kept/ended; exit" USR1; while :; do sleep 0.1; done'
    cluster.docker(
        "run", "-d", "--name", "tidy", "--restart", "always", "--stop-signal", "USR1", "-v", "kept:/kept", IMAGE, "sh",
        "-c", ended, on=2, socket="agent.sock",
    )  # fmt: skip
    cluster.hosts[1].reboot()

    def told() -> bool:
        try:
            return cluster.docker("exec", "tidy", "cat", "/kept/ended", on=2, socket="agent.sock").strip() == "well"
        except AssertionError:  # the agent, or the container, is not there yet
            return False

    eventually(told, 60, "its container has ended in order, and is back")
    cluster.docker("rm", "-f", "-v", "tidy", on=2, socket="agent.sock")
    cluster.docker("volume", "rm", "kept", on=2, socket="agent.sock")
    eventually(lambda: cluster.nodes() == {"host-1": "Ready", "host-2": "Ready", "host-3": "Ready"}, 120, "three nodes")
    eventually(lambda: len(cluster.running_on("web")) == REPLICAS, 120, "all replicas run")


def test_the_manager_reboots_and_services_run_on(cluster: Site) -> None:
    cluster.hosts[0].reboot()
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 180, "three nodes")
    eventually(lambda: len(cluster.running_on("web")) == REPLICAS, 180, "all replicas run")


def ready(site: Site) -> list[str]:
    """Names of ready nodes; none while the manager does not answer."""
    try:
        return [name for name, state in site.nodes().items() if state == "Ready"]
    except AssertionError:
        return []


def test_a_worker_that_loses_power_is_replaced(cluster: Site) -> None:
    cluster.hosts[2].power_off()
    eventually(lambda: "host-3" not in cluster.running_on("web"), 60, "its tasks do not count as running")
    eventually(lambda: len(cluster.running_on("web")) == REPLICAS, 60, "all replicas run")
    cluster.hosts[2].power_on()
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 120, "three nodes")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of another release."""
    source = tmp_path_factory.mktemp("newer") / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "__pycache__"))
    release = source / "swarmlet/release.py"
    release.write_text(release.read_text().replace(RELEASE, "0.1.1"))
    return source


def test_a_check_of_any_playbook_changes_nothing(cluster: Site, newer: Path) -> None:
    before = in_order(cluster)
    backups = cluster.lab.folder / "backups-of-checks"
    backups.mkdir()
    with tarfile.open(backups / "swarmlet-20260101T000000Z.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("etcd.snapshot"))
    where, really = ("-e", f"swarmlet_backup_dir={backups}"), ("-e", "swarmlet_really=true")
    check, third = ("--check", "--diff"), ("-e", "swarmlet_host=host-3")
    assert cluster.play("upgrade.yml", *check, source=newer).changed() > 0
    assert cluster.play("add_node.yml", *check, *third).changed() == 0
    assert cluster.play("remove_node.yml", *check, *third).changed() > 0
    cluster.play("backup.yml", *check, *where)
    cluster.play("restore.yml", *check, *where, *really)
    assert cluster.play("reset.yml", *check, *really).changed() > 0
    assert len(list(backups.iterdir())) == 1
    assert cluster.nodes() == {"host-1": "Ready", "host-2": "Ready", "host-3": "Ready"}
    assert in_order(cluster) == before
    assert {host.ssh("swarmlet version").strip() for host in cluster.hosts} == {RELEASE}


def test_an_upgrade_is_not_noticed_by_clients(cluster: Site, newer: Path) -> None:
    """One host after the other; requests to a host that is being upgraded are answered like all others."""
    before = in_order(cluster)
    failed: list[str] = []
    stop = threading.Event()
    asking = threading.Thread(target=ask_until, args=(cluster, stop, failed))
    asking.start()
    try:
        recap = cluster.play("upgrade.yml", source=newer)
    finally:
        stop.set()
        asking.join(60)
    assert recap.changed() > 0 and failed == []
    assert {host.ssh("swarmlet version").strip() for host in cluster.hosts} == {"0.1.1"}
    assert in_order(cluster) == before


def containers(site: Site, number: int) -> set[str]:
    return set(site.docker("ps", "-q", "--no-trunc", on=number, socket="agent.sock").split())


def in_order(site: Site) -> dict[str, set[str]]:
    """The containers of each host, once they are those of the cluster's tasks and no more: what was removed, or is of a
    host that was away, stops for a while."""
    def as_wanted() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {host.name: set() for host in site.hosts}
        form = "{{.NodeID}} {{.Status.State}} {{with .Status.ContainerStatus}}{{.ContainerID}}{{end}}"
        nodes = site.docker("node", "ls", "--format", "{{.ID}} {{.Hostname}}").splitlines()
        names = dict(line.split() for line in nodes)
        tasks = site.docker("service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", "web").split()
        for line in site.docker("inspect", "--type", "task", "--format", form, *tasks).splitlines():
            node, state, *container = line.split()
            if state == "running":
                found[names[node]].update(container)
        return found

    def is_so() -> bool:
        wanted = as_wanted()
        return sum(map(len, wanted.values())) == REPLICAS and wanted == {
            host.name: containers(site, number) for number, host in enumerate(site.hosts, 1)
        }

    eventually(is_so, 120, f"{REPLICAS} containers run, and they are the tasks'")
    return as_wanted()


def ask_until(site: Site, stop: threading.Event, failed: list[str]) -> None:
    """A new connection each time, to each host in turn."""
    asked = 0
    while not stop.is_set():
        host = site.hosts[asked % len(site.hosts)]
        argv = [*site.lab.inside(), sys.executable, "-c", FETCH.format(host.address)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.stdout.strip() != "served":
            failed.append(f"request {asked} to {host.name}: {done.stderr.strip() or done.stdout}")
        asked += 1
        stop.wait(0.1)
    if asked < 20:
        failed.append(f"only {asked} requests were made")


def test_a_node_is_removed_and_added_again(cluster: Site) -> None:
    cluster.play("remove_node.yml", "-e", "swarmlet_host=host-3")
    assert cluster.nodes() == {"host-1": "Ready", "host-2": "Ready"}
    settle(cluster, 2)
    assert cluster.traces(3) == []
    cluster.play("add_node.yml", "-e", "swarmlet_host=host-3")
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 60, "three nodes")


def test_a_destroyed_manager_is_restored_from_a_backup(cluster: Site) -> None:
    backups = cluster.lab.folder / "backups"
    where = ("-e", f"swarmlet_backup_dir={backups}")
    cluster.play("backup.yml", *where)
    (file,) = backups.iterdir()
    assert (file.stat().st_mode & 0o777, backups.stat().st_mode & 0o777) == (0o600, 0o700)
    key = cluster.hosts[0].ssh("sha256sum < /var/lib/swarmlet/manager/data-key")
    # Who is elected after the backup has a term that nodes remember.
    cluster.hosts[0].ssh("kill $(cut -d' ' -f1 /var/lib/swarmlet/manager/manager.pid | head -1)")
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 120, "three nodes")
    cluster.hosts[0].ssh("systemctl stop swarmlet-agent && swarmlet uninstall --yes")
    refused = cluster.try_play("restore.yml", *where)
    assert refused.status != 0 and "swarmlet_really" in refused.output
    restored = cluster.play("restore.yml", *where, "-e", "swarmlet_really=true")
    eventually(lambda: set(ready(cluster)) == {"host-1", "host-2", "host-3"}, 120, "three nodes")
    cluster.load_image()
    eventually(lambda: len(cluster.running_on("web")) == REPLICAS, 120, "all replicas run")
    assert cluster.docker("secret", "ls", "--format", "{{.Name}}").split() == ["word"]
    assert SECRET not in restored.output
    assert cluster.hosts[0].ssh("sha256sum < /var/lib/swarmlet/manager/data-key") == key
    modes = cluster.hosts[0].ssh("stat -c %a /var/lib/swarmlet/manager /var/lib/swarmlet/manager/data-key").split()
    assert modes == ["700", "600"]
    assert cluster.read_secret("word") == {"host-1": SECRET, "host-2": SECRET, "host-3": SECRET}


def test_limits_are_the_kernels(cluster: Site) -> None:
    """Memory, processes and processor time, as the host's cgroups apply them."""
    def docker(*args: str) -> str:
        return cluster.docker(*args, on=2, socket="agent.sock").strip()

    killed = docker("run", "-d", "-m", "32m", IMAGE, "sh", "-c", "x=a; while :; do x=$x$x; done")
    eventually(
        lambda: docker("inspect", "-f", "{{.State.Status}} {{.State.OOMKilled}}", killed)
        == "exited true", 60, "the kernel ends what takes too much memory",
    )
    docker("rm", killed)
    told = docker(
        "run", "--rm", "--pids-limit", "5", IMAGE, "sh", "-c",
        "(for i in 1 2 3 4 5 6 7 8; do sleep 5 & done) 2>&1 || true",
    )
    assert "can't fork" in told
    ident = docker("run", "-d", "--cpus", "0.2", IMAGE, "sh", "-c", "while :; do :; done")
    pid = docker("inspect", "-f", "{{.State.Pid}}", ident)
    used = cluster.hosts[1].ssh(f"cut -d' ' -f14 /proc/{pid}/stat; sleep 5; cut -d' ' -f14 /proc/{pid}/stat").split()
    docker("rm", "-f", ident)
    assert 0 < int(used[1]) - int(used[0]) < 5 * 100 * 0.3


def test_a_host_that_is_lost_is_struck_off(cluster: Site) -> None:
    cluster.hosts[2].power_off()
    lost = ("-e", "swarmlet_host=host-3", "-e", "swarmlet_host_lost=true")
    # As of an inventory that says which of a host's cards is meant: nobody can look.
    card = ("-e", "{swarmlet_address: '{{ ansible_facts.eth0.ipv4.address }}'}")
    assert cluster.play("remove_node.yml", *lost, *card).changed() > 0
    assert cluster.nodes() == {"host-1": "Ready", "host-2": "Ready"}
    settle(cluster, 2)
    assert cluster.play("remove_node.yml", *lost, *card).changed() == 0
    cluster.hosts[2].power_on()


def test_a_reset_leaves_nothing(cluster: Site) -> None:
    refused = cluster.try_play("reset.yml")
    assert refused.status != 0 and "swarmlet_really" in refused.output
    cluster.play("reset.yml", "-e", "swarmlet_really=true")
    assert [cluster.traces(number) for number in (1, 2, 3)] == [[], [], []]
    again = cluster.play("reset.yml", "-e", "swarmlet_really=true")
    assert again.changed() == 0
