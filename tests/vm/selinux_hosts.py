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

#: Debian 12's policy names `container_t` and `container_file_t` in lxc_contexts, and knows no such types.
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
        inside = ("chroot", str(root))
        run(*inside, "semodule", "-n", "-s", "default", "-i", f"/tmp/{MODULE.name}", timeout_s=900)
        # It sets labels by way of /proc, and (-m) need not look there what is mounted, which is this machine's.
        run("unshare", f"--mount-proc={root}/proc", *inside, "setfiles", "-m", "-F", CONTEXTS, "/", timeout_s=900)
