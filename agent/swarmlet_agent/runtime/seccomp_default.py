"""The default seccomp profile: the distribution's, held to what Docker's lets through. Pure.

The profile that distributions ship for containers grew with engines that nest: it lets everyone mount, unshare and
use kernel keyrings, and leaves the rest to capabilities. Docker's asks for a capability first, and so keeps an
unprivileged process from making a user namespace in which it would have them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_PROFILE = Path("/usr/share/containers/seccomp.json")

_EPERM, _ENOSYS = 1, 38
_ADMIN = "CAP_SYS_ADMIN"
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: what clone(2) may not ask for.
_NEW_NAMESPACES = 0x7E020000

#: System calls that need any one of these capabilities.
_GATED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((_ADMIN,), (
        "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount", "mount_setattr",
        "move_mount", "open_tree", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "umount",
        "umount2", "unshare",
    )),
    ((_ADMIN, "CAP_BPF"), ("bpf",)),
    ((_ADMIN, "CAP_PERFMON"), ("perf_event_open",)),
    ((_ADMIN, "CAP_SYSLOG"), ("syslog",)),
    (("CAP_SYS_BOOT",), ("reboot",)),
)
#: Not for containers whatever their capabilities: what they touch is not kept apart by namespaces.
_NEVER = (
    "add_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl", "pivot_root", "request_key",
)
_CLONES = ("clone", "clone3")


def held_to_docker(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The profile with its own rules for these calls replaced. A second time it changes nothing more."""
    replaced = {*_NEVER, *_CLONES, *(name for _, names in _GATED for name in names)}
    kept = []
    for rule in profile.get("syscalls") or []:
        names = [name for name in rule.get("names") or [rule.get("name")] if name not in replaced]
        if names:
            kept.append({**{key: value for key, value in rule.items() if key != "name"}, "names": names})
    return {**profile, "syscalls": [*kept, *_gates(), *_clone_rules(), _refuse(_NEVER, _EPERM)]}


def _gates() -> list[dict[str, Any]]:
    """Let through with one of the capabilities, and a clear refusal without all of them."""
    rules = []
    for caps, names in _GATED:
        for number, cap in enumerate(caps):
            # Alternatives leave each other out: two equal rules would be one too many for libseccomp.
            rules.append(_allow(names, includes={"caps": [cap]}, excludes={"caps": list(caps[:number])}))
        rules.append(_refuse(names, _EPERM, excludes={"caps": list(caps)}))
    return rules


def _clone_rules() -> list[dict[str, Any]]:
    """clone for threads and processes is everyone's; with clone3 a filter cannot see the flags (they are in memory).

    C libraries fall back to clone when clone3 is said not to exist.
    """
    def masked(index: int) -> list[dict[str, Any]]:
        return [{"index": index, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]

    swapped = ["s390", "s390x"]  # there the flags are the second argument
    return [
        _allow(_CLONES, includes={"caps": [_ADMIN]}, excludes={}),
        _allow(("clone",), includes={}, excludes={"caps": [_ADMIN], "arches": swapped}) | {"args": masked(0)},
        _allow(("clone",), includes={"arches": swapped}, excludes={"caps": [_ADMIN]}) | {"args": masked(1)},
        _refuse(("clone3",), _ENOSYS, excludes={"caps": [_ADMIN]}),
    ]


def _allow(names: tuple[str, ...], *, includes: dict[str, Any], excludes: dict[str, Any]) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", "includes": includes, "excludes": excludes}


def _refuse(names: tuple[str, ...], error: int, *, excludes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error, "excludes": excludes or {}}
