"""Plain containers on a network of the cluster in virtual time: whatever breaks, no address is given twice, none leaks.

A failing seed is in the test's id; `pytest -k "seed-17"` repeats it exactly.
"""

from __future__ import annotations

import random

import pytest
from lease_cluster import NETWORK, LeaseCluster
from test_sim_decide import spec

from swarmlet.model.defaults import NODE_DOWN_ORPHAN_NS
from swarmlet.model.service import NetworkAttachmentConfig
from swarmlet.model.times import NS

SEEDS = range(60)
DAY_S = NODE_DOWN_ORPHAN_NS / NS


def something_happens(cluster: LeaseCluster, rng: random.Random, step: int) -> None:
    """One thing that users or fate may do."""
    here = sorted(name for name, agent in cluster.agents.items() if agent.up)
    linked = [name for name in here if cluster.agents[name].linked]
    gone = sorted(set(cluster.agents) - set(linked))
    name = rng.choice(here)
    held, asking = sorted(cluster.boxes[name].held), sorted(cluster.boxes[name].asking)
    services = sorted(ident for ident, one in cluster.state.services.items() if not one.pending_delete)
    match rng.randrange(16):
        case 0 | 1 | 2:
            cluster.start_box(name)
        case 3:
            cluster.start_box(name, address=f"10.1.0.{rng.randrange(16)}")
        case 4 | 5 if held:
            cluster.stop_box(name, rng.choice(held))
        case 6 if asking:
            cluster.give_up(name, rng.choice(asking))
        case 7:
            cluster.kill_agent(name)
        case 8:
            cluster.restate(name)
        case 9 if len(linked) > 1:
            rng.choice((cluster.power_off, cluster.cut))(rng.choice(linked))
        case 10 | 11 if gone:
            back = rng.choice(gone)
            cluster.power_on(back) if not cluster.agents[back].up else cluster.heal(back)
        case 12:
            cluster.new_leader()
        case 13 if len(linked) > 2:
            cluster.remove_host(rng.choice(linked))
            cluster.add_host(f"m{step}")
            cluster.dial(f"m{step}")
        case 14 if len(services) < 2:
            networks = (NetworkAttachmentConfig(target=NETWORK),)
            cluster.create(spec(f"svc{step}", count=rng.randrange(1, 4), networks=networks))
        case 15 if services:
            cluster.remove(rng.choice(services))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_no_address_is_given_twice_and_none_leaks(seed: int) -> None:
    cluster, rng = LeaseCluster(seed), random.Random(seed)
    for step in range(60):
        something_happens(cluster, rng, step)
        cluster.run(rng.choice((0.005, 0.05, 0.5, 3)))
    for name, agent in cluster.agents.items():
        if not agent.up:
            cluster.power_on(name)
        if not agent.linked:
            cluster.heal(name)
    cluster.run(120)

    cluster.check_leases()


def test_a_node_that_was_away_for_too_long_has_its_addresses_again_if_nobody_got_them() -> None:
    cluster = LeaseCluster(1)
    first, second = (cluster.start_box("n0", address=f"10.1.0.{number}") for number in (5, 6))
    cluster.run(2)
    assert set(cluster.boxes["n0"].held) == {first, second}
    cluster.cut("n0")
    cluster.run(DAY_S - 10)
    assert set(cluster.state.leases) == {first, second}
    cluster.run(20)
    assert not cluster.state.leases
    taker = cluster.start_box("n1", address="10.1.0.6")
    cluster.run(2)
    cluster.heal("n0")
    cluster.run(2)

    assert {ident: lease.address for ident, lease in cluster.state.leases.items()} == {
        first: "10.1.0.5/28", taker: "10.1.0.6/28",
    }
    assert set(cluster.boxes["n0"].held) == {first}
    cluster.check_leases()


def test_tasks_and_containers_share_what_there_is() -> None:
    cluster = LeaseCluster(2)
    networks = (NetworkAttachmentConfig(target=NETWORK),)
    service = cluster.create(spec("web", count=8, networks=networks))
    cluster.run(10)
    for name in ("n0", "n1", "n2") * 2:
        cluster.start_box(name)
    cluster.run(2)
    held = sum(len(cluster.boxes[name].held) for name in cluster.agents)
    refused = [text for name in cluster.agents for text in cluster.boxes[name].refused]
    # Eight tasks and a virtual address leave four.
    assert held == 4 and len(refused) == 2
    assert all("no address is free in network wide (10.1.0.0/28, 13 in use)" in text for text in refused)
    cluster.remove(service)
    cluster.run(30)
    cluster.start_box("n0")
    cluster.run(2)
    assert sum(len(cluster.boxes[name].held) for name in cluster.agents) == 5
    cluster.check_leases()
