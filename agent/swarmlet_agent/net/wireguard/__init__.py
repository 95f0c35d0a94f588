"""Encrypted ways between nodes: a WireGuard device over which the VXLAN of encrypted networks runs.

Each node has an inner address that exists on its WireGuard devices only. An encrypted network's VXLAN has that address
as its `local`, its endpoints' node address is the other node's inner address, and its MTU is 1420 - 50.

How to wire it (for the net thread, in the agent's own network namespace):

* `Wireguard()` beside `KernelNet`; `supported()` when the node describes itself, so that a network created with
  `encrypted` is refused, by name, where a kernel has no WireGuard. `ensure` says the same as `NotSupported`.
* `ensure(WireguardState)` at start and at every change; the state is everything. Sessions of peers that stay are not
  touched, also when an agent comes back.
* Keys: each node makes its own (`new_private_key`), keeps the private one with its other secrets and tells the cluster
  `public_key(...)`; cluster state has the public keys.
* Rotation without loss is a new `Generation` beside the old one, on a port of its own: (1) every node makes it, with a
  new key, and tells its public key; (2) once every node has every other's, `active` names the new one: packets go by
  it, and those that come by the old one are still taken; (3) once every node says so, the old one leaves the state.
* `remove()` when the node leaves the cluster.
"""
