"""The AppArmor profile that containers have unless they ask for another: found in the kernel, or loaded into it.

Its name is the one that Docker's users know. A profile of that name that is loaded already (by a dockerd, or by an
administrator) is left as it is; so is `swarmlet-default`, an administrator's own, which goes first.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from swarmlet.log import get_logger

log = get_logger(__name__)

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
LOADED = Path("/sys/kernel/security/apparmor/profiles")
DEFAULT = "docker-default"
NAMES = ("swarmlet-default", DEFAULT)
PARSER = "apparmor_parser"
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
_TIMEOUT_S = 30.0
#: What a container's user namespaces and read-only mounts already forbid is forbidden once more here, for the day that
#: one of them has a hole: writing to the kernel's switches and devices, reading its memory and secrets, mounting.
PROFILE = f"""\
#include <tunables/global>

profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  capability,
  file,
  network,
  umount,
  ptrace (trace, read, tracedby, readby) peer={DEFAULT},
  signal (send, receive) peer={DEFAULT},
  signal (receive) peer=unconfined,
  signal (receive) peer={{crun,runc,conmon}},

  deny mount,
  deny @{{PROC}}/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny @{{PROC}}/{{acpi,bus,fs,irq,scsi}}/** wklx,
  deny @{{PROC}}/sys/{{abi,debug,dev,fs,vm}}/** wklx,
  deny @{{PROC}}/sys/kernel/{{core_pattern,hotplug,modprobe,poweroff_cmd,sysrq}} wklx,
  deny @{{PROC}}/sys/kernel/{{firmware_config,keys,random,yama}}/** wklx,
  deny /sys/{{block,bus,class,dev,devices,hypervisor,kernel,module,power}}/** wklx,
  deny /sys/{{firmware,kernel/security}}/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}}
"""


def is_enabled() -> bool:
    return ENABLED.exists() and ENABLED.read_text().strip() == "Y"


def default_profile() -> str:
    """The name of the profile to use, loaded now if it must be; "" where there is none. Blocking."""
    if not is_enabled():
        return ""
    try:
        loaded = {line.split(" ")[0] for line in LOADED.read_text().splitlines()}
    except OSError:  # securityfs is not mounted: nothing can be said, so nothing is asked for
        return ""
    return next((name for name in NAMES if name in loaded), "") or _load()


def _load() -> str:
    program = shutil.which(PARSER, path=_PATH)
    if program is None:
        log.warning("containers run without an AppArmor profile: install the package apparmor", missing=PARSER)
        return ""
    # Not from a cache, and into none: this is the only reader of that text.
    argv = [program, "--replace", "--skip-cache"]
    try:
        done = subprocess.run(argv, input=PROFILE, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        log.warning("containers run without an AppArmor profile", reason=str(err))
        return ""
    if done.returncode:
        log.warning("containers run without an AppArmor profile", reason=done.stderr.strip()[-500:])
        return ""
    return DEFAULT
