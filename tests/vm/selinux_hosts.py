"""Virtual machines whose kernel has SELinux, with Debian's policy in permissive mode: labels are set and shown, and
what the policy would forbid is only written down.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from booted_hosts import run
from kernel_hosts import KernelHost
from virtual_hosts import VirtualHost

#: Debian 12's policy names `container_t` in lxc_contexts, and knows no such type.
MODULE = Path(__file__).with_name("container.cil")
CONFIGURATION = "SELINUX=permissive\nSELINUXTYPE=default\n"
CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"


class SelinuxHost(KernelHost):
    packages = (*VirtualHost.packages, "selinux-policy-default", "policycoreutils", "selinux-utils")
    kernel_words = "security=selinux selinux=1 enforcing=0"
    on_demand = ()
    settings = "selinux_enabled = true\n"

    def release(self) -> str:
        return f"{super().release()}-{hashlib.sha256(MODULE.read_bytes()).hexdigest()[:6]}"

    def install(self, root: Path) -> None:
        super().install(root)
        (root / "etc/selinux/config").write_text(CONFIGURATION)
        shutil.copy(MODULE, root / "tmp")
        run("chroot", str(root), "semodule", "-n", "-s", "default", "-i", f"/tmp/{MODULE.name}", timeout_s=300)
        # Without a look at what is mounted, which is this machine's.
        run("chroot", str(root), "setfiles", "-m", "-F", CONTEXTS, "/", timeout_s=300)
