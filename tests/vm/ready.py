"""Makes what hosts are made from, so that it is there when the tests begin: `./dev ready-vm` runs it."""

from __future__ import annotations

from booted_hosts import RELEASES, SUITE, HostLab, base_folder, etcd_programs
from kernel_hosts import KernelHost
from selinux_hosts import SelinuxHost

if __name__ == "__main__":
    base_folder()
    if not RELEASES[SUITE].etcd:
        etcd_programs()
    for kind in (KernelHost, SelinuxHost):
        for host in HostLab(1, kind).hosts:
            host.prepare()
