"""Load balancing of services inside each container's network namespace, without IPVS and without a proxy.

A service's virtual address (VIP) is translated where the connection begins: an nftables rule at the OUTPUT hook of the
client's own namespace. Its rules never change; services are elements of its maps (`plan.py`), so a packet's cost does
not grow with the number of services, and a change of one costs some 0.02 ms. See docs/adr/0010.

How to wire it (all of it is for the net thread):

* One `Balancers(netns_folder)` beside `KernelNet`.
* `apply(container_id, {vip address: (backend addresses,)})` whenever the services of a container's networks change,
  with *all* VIPs of that container (those of every network it is on). The first call loads the rules of each address
  family that is needed; a call that changes nothing sends nothing. A service without backends stays in the mapping with
  `()`: it is refused at once. A task that is about to stop leaves first and is stopped afterwards: its open connections
  go on, new ones go elsewhere.
* `change(container_id, {vip: backends or None})` for an increment, after the first `apply`: its cost is those VIPs'.
* `cut(container_ids, addresses)` once tasks are really gone: UDP flows that still lead there are forgotten.
* `forget(container_id)` before the namespace is destroyed: the open socket would keep it alive.

An agent that comes back calls `apply` for each living container: the maps' content is replaced in one transaction, and
no connection is touched, for a connection keeps the translation it began with.
"""
