"""Encrypted ways between nodes: a WireGuard device over which the VXLAN of encrypted networks runs (docs/adr/0016).

Each node has an inner address that exists on its WireGuard devices only. An encrypted network's VXLAN has that address
as its `local`, and its endpoints' node address is the other node's inner address.

For the net thread, in the agent's own network namespace; `net/overlay/ways.py` holds the keys and says what is to be:

* `Wireguard` beside the other devices of `KernelNet`; `lacking` when the node says what it can.
* `ensure(WireguardState)` at start and at every change; the state is everything. Sessions of peers that stay are not
  touched, also when an agent comes back.
* A new generation of keys is a device of its own beside the old one, on a port of its own: what comes by either is
  taken, and `active` says by which packets go.
* `remove()` when the node leaves the cluster.
"""
