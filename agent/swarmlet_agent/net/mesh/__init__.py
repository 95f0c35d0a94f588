"""The routing mesh: every node answers on every published port, and the backend sees the client's own address.

The entry node translates the destination to a backend and keeps the source. If the backend is on another node, a mark
routes the packet over `ing0`, a VXLAN device that each node has beside its networks; the backend's node remembers which
node the connection came from, and routes the answers back there. Published ports are elements of maps, so their number
costs nothing. See docs/adr/0011.

How to wire it (for the net thread, in the agent's own network namespace):

* One `Mesh()` beside `KernelNet`; `ensure(MeshState)` at start and at every change. It is level-triggered: the state is
  everything, a call that changes nothing sends nothing, the first call of an agent takes over what is there.
* From the manager: each node's number (allocated once, 1 to 65,534, never given to another node while any node still
  knows the old one) and address, and for each published port its backends with their node's number. This must reach
  every node, not only those on the services' networks. A task that is about to stop becomes `serving=False` before it
  is stopped (its open connections keep their way) and leaves the state when it is gone; then, or once it is
  lost (it answers no more), `cut(addresses)` ends its UDP flows. A node that is down stays in `peers` until it leaves
  the cluster.
* From the node: `containers`, the subnets of its local and cluster networks, and the MTU.
* A bridge of containers must let in what comes over `ing0` (`net/plan_rules.py` does). A host firewall that drops
  forwarded packets is told by `net/firewall_check.py`.
* `remove()` when the node leaves the cluster or everything of Swarmlet is removed: not at the agent's end, for the mesh
  goes on while an agent is away (`close()` does that).
* Subnets of the services' networks must be unique in the cluster: the entry node routes by the backend's address alone.
"""
