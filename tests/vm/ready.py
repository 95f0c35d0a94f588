"""Makes what hosts are made from, so that it is there when the tests begin: `./dev ready-vm` runs it."""

from __future__ import annotations

from booted_hosts import HostLab, base_folder
from kernel_hosts import KernelHost
from selinux_hosts import SelinuxHost

if __name__ == "__main__":
    base_folder()
    for kind in (KernelHost, SelinuxHost):
        for host in HostLab(1, kind).hosts:
            host.prepare()
