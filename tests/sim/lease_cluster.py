"""The cluster of `decide_cluster` with networks: the real allocator and lease decisions, agents whose plain containers
ask for addresses, and lines between them that lose everything behind some point when they break."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from ipaddress import ip_interface

from decide_cluster import MS, Cluster

from swarmlet.errors import SwarmletError
from swarmlet.model.network import Ipam, IpamConfig, Lease, Network, NetworkCreate
from swarmlet.wire.leasing import LeaseAnswer, LeaseAsk, LeasesHeld, LeasesLost
from swarmlet_manager.decide.addresses import Allocator
from swarmlet_manager.decide.leases import plan_ask, plan_held
from swarmlet_manager.decide.plan import Plan
from swarmlet_manager.decide.reaper import is_gone
from swarmlet_manager.state import Change, Put

NETWORK = "wide"
#: 13 addresses beside the network's own: few enough that it is full now and then.
SUBNET = "10.1.0.0/28"


@dataclass
class Boxes:
    """An agent's plain containers. held: interfaces that exist, by endpoint id; asking: starts that wait."""

    held: dict[str, Lease] = field(default_factory=dict)
    asking: dict[str, LeaseAsk] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    #: Of the running session, 0 for none; and when its last message arrives: a line keeps the order.
    session: int = 0
    arrival: int = 0


class LeaseCluster(Cluster):
    def __init__(self, seed: int, hosts: int = 3) -> None:
        self.boxes: dict[str, Boxes] = defaultdict(Boxes)
        self.allocator: Allocator | None = None
        #: What has reached the leader: (node, session, message).
        self.desk: deque[tuple[str, int, LeaseAsk | LeasesHeld]] = deque()
        self._sessions = 0
        #: As the leader knows them.
        self._served: dict[str, int] = {}
        super().__init__(seed, hosts)
        spec = NetworkCreate(
            name=NETWORK, driver="overlay", attachable=True, ipam=Ipam(config=(IpamConfig(subnet=SUBNET),))
        )
        self.commit([Put(Network(id=NETWORK, spec=spec, subnet=SUBNET, gateway="10.1.0.1", vni=4097))])
        for name in self.agents:
            self.dial(name)

    # What plain containers do

    def start_box(self, name: str, address: str = "") -> str:
        ident = self.new_id()
        ask = LeaseAsk(
            id=ident, network=NETWORK, container_id=f"c{ident}", container_name=f"box-{ident}", address=address
        )
        self.boxes[name].asking[ident] = ask
        self._say(name, ask)
        return ident

    def stop_box(self, name: str, ident: str) -> None:
        if self.boxes[name].held.pop(ident, None) is not None:
            self._say(name, LeasesHeld(released=(ident,)))

    def give_up(self, name: str, ident: str) -> None:
        """Whoever waits for a start goes away."""
        if self.boxes[name].asking.pop(ident, None) is not None:
            self._say(name, LeasesHeld(released=(ident,)))

    def restate(self, name: str) -> None:
        boxes = self.boxes[name]
        self._say(name, LeasesHeld(full=True, held=tuple(boxes.held.values()), asking=tuple(boxes.asking)))

    # Sessions

    def dial(self, name: str) -> None:
        agent, boxes = self.agents.get(name), self.boxes[name]
        if agent is None or not (agent.up and agent.linked):
            return
        self._sessions += 1
        boxes.session = number = self._sessions
        boxes.arrival = self.now
        self._served[name] = number
        if self.random.random() < 0.5:  # the old session's questions are dropped, or are answered before
            self.desk = deque(work for work in self.desk if work[0] != name)
        self.restate(name)
        for ask in list(boxes.asking.values()):
            self._say(name, ask)

    def kill_agent(self, name: str) -> None:
        """-9: nobody waits for a start any more, and some containers end before the next agent looks."""
        boxes = self.boxes[name]
        boxes.session = 0
        boxes.asking.clear()
        for ident in list(boxes.held):
            if self.random.random() < 0.4:
                del boxes.held[ident]
        self.after(self.random.randrange(1, 2000) * MS, lambda: self.dial(name))

    def power_off(self, name: str) -> None:
        super().power_off(name)
        self.boxes[name].held.clear()
        self.boxes[name].asking.clear()

    def remove_host(self, name: str) -> None:
        super().remove_host(name)
        del self.boxes[name]

    def new_leader(self) -> None:
        super().new_leader()
        self.allocator = None
        self.desk.clear()
        for name in sorted(self.agents):
            self.boxes[name].session = 0
            self.after(self.random.randrange(1, 500) * MS, lambda name=name: self.dial(name))

    def _lost(self, name: str) -> None:
        super()._lost(name)
        self.boxes[name].session = 0

    def _found(self, name: str) -> None:
        super()._found(name)
        self.dial(name)

    def _say(self, name: str, said: LeaseAsk | LeasesHeld) -> None:
        """Without a session nothing is said: the next one begins with all of it."""
        boxes = self.boxes[name]
        if number := boxes.session:
            boxes.arrival = max(boxes.arrival, self.now + self.random.randrange(1, 40) * MS)
            self.after(boxes.arrival - self.now, lambda: self._arrived(name, number, said))

    def _arrived(self, name: str, number: int, said: LeaseAsk | LeasesHeld) -> None:
        # A session that has ended at the agent's side may bring more, until there is a newer one.
        agent = self.agents.get(name)
        if self._served.get(name) == number and agent is not None and agent.linked:
            self.desk.append((name, number, said))

    # The leader

    def _plans(self) -> list[Plan]:
        plans = []
        while self.desk:
            plans.append(self._answer(*self.desk.popleft()))
        plans += super()._plans()
        plans.append(self._carry_out(self._books().plan(self.now), set, set))
        return plans

    def _books(self) -> Allocator:
        if self.allocator is None:
            self.allocator = Allocator(self.state)
        return self.allocator

    def _answer(self, name: str, number: int, said: LeaseAsk | LeasesHeld) -> Plan:
        answer: LeaseAnswer | LeasesLost | None = None
        if isinstance(said, LeasesHeld):
            stated = plan_held(
                self.state, self._books(), name, said.held, full=said.full, asking=said.asking, released=said.released
            )
            ops = stated.ops
            answer = LeasesLost(ids=stated.lost) if stated.lost else None
        else:
            wanted = Lease(
                id=said.id, network_id="", node_id=name, container_id=said.container_id,
                container_name=said.container_name, address=said.address, created_at=self.now,
            )
            try:
                granted = plan_ask(self.state, self._books(), said.network, wanted)
            except SwarmletError as err:
                ops, answer = (), LeaseAnswer(id=said.id, status=500, message=str(err))
            else:
                ops, answer = granted.ops, LeaseAnswer(id=said.id, lease=granted.lease)
        if ops:
            self.commit(ops)
        if answer is not None:
            self.after(self.random.randrange(1, 40) * MS, lambda: self._heard(name, number, answer))
        return Plan(ops=ops)

    def _heard(self, name: str, number: int, answer: LeaseAnswer | LeasesLost) -> None:
        boxes = self.boxes.get(name)
        if boxes is None or boxes.session != number:
            return
        if isinstance(answer, LeasesLost):
            for ident in answer.ids:
                self.stop_box(name, ident)
        elif boxes.asking.pop(answer.id, None) is not None:
            if answer.lease is None:
                boxes.refused.append(answer.message)
            else:
                boxes.held[answer.id] = answer.lease
        self.check_interfaces()

    def _mark(self, change: Change) -> None:
        super()._mark(change)
        if self.allocator is not None:
            self.allocator.apply([change])
        if isinstance(change.record, Lease):
            self._dirty_nodes.add(change.record.node_id)

    # What must hold

    def _check_safety(self) -> None:
        super()._check_safety()
        taken = self.taken()
        assert len(set(taken)) == len(taken), f"an address is given twice: {taken}"

    def taken(self) -> list[str]:
        """Every address that somebody has by the records."""
        tasks = [task for task in self.state.tasks_on_network(NETWORK) if not is_gone(task)]
        places = [place for task in tasks for place in task.networks]
        places += [vip for service in self.state.services.values() for vip in service.vips]
        found = [place.address for place in places if place.network_id == NETWORK]
        return [*found, *(lease.address for lease in self.state.leases_on_network(NETWORK))]

    def check_interfaces(self) -> None:
        """No two nodes that the leader hears of have one address."""
        heard = [name for name, agent in self.agents.items() if agent.up and agent.linked and self.boxes[name].session]
        live = [
            (lease.address, name) for name in heard for ident, lease in self.boxes[name].held.items()
            if ident in self.state.leases  # else the node is about to be told that it is not its own
        ]
        addresses = [address for address, _ in live]
        assert len(set(addresses)) == len(addresses), live

    def check_leases(self) -> None:
        """Everything has come to rest: records are what the nodes hold, and the books are what the records are."""
        assert not self.desk
        for name, agent in self.agents.items():
            if agent.up and agent.linked:
                own = {lease.id: lease.address for lease in self.state.leases_on_node(name)}
                assert own == {ident: lease.address for ident, lease in self.boxes[name].held.items()}, name
                assert not self.boxes[name].asking
        assert {lease.node_id for lease in self.state.leases.values()} <= set(self.state.nodes)
        pool = self._books().pool(NETWORK)
        assert pool is not None and pool.taken == len(self.taken())
        assert all(ip_interface(address) for address in self.taken())
