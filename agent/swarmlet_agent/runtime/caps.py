"""Linux capabilities as Docker counts them: the default set, `--cap-add`, `--cap-drop`, `--privileged`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarmlet.errors import InvalidArgument

_KNOWN = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
_DEFAULT = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE"
)

#: By number (linux/capability.h).
NAMES = tuple(f"CAP_{name}" for name in _KNOWN.split())
#: moby oci/caps/defaults.go.
DEFAULT = tuple(f"CAP_{name}" for name in _DEFAULT.split())

_ALL = "ALL"
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def from_mask(mask: int) -> frozenset[str]:
    """The names in a bit mask, as /proc/self/status has it (CapBnd). Bits newer than this list are left out."""
    return frozenset(name for name, number in _NUMBERS.items() if mask >> number & 1)


def normalise(names: Iterable[str], option: str, available: frozenset[str]) -> tuple[str, ...]:
    """Upper case, with the CAP_ prefix, in the order given; "ALL" stays. option: "CapAdd" or "CapDrop".

    InvalidArgument for a name that no kernel has, or that this host cannot give.
    """
    result = []
    for given in names:
        name = given.upper()
        if name in (_ALL, f"CAP_{_ALL}"):
            result.append(_ALL)
            continue
        if not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name not in _NUMBERS:
            raise InvalidArgument(f'invalid {option}: unknown capability: "{name}"')
        if name not in available and option == "CapAdd":
            raise InvalidArgument(
                f"invalid {option}: capability not supported by your kernel or not available in the current "
                f'environment: "{name}"'
            )
        result.append(name)
    return tuple(result)


def granted(add: Sequence[str], drop: Sequence[str], *, privileged: bool, available: frozenset[str]) -> tuple[str, ...]:
    """What the container gets, by number. Rules of moby's caps.TweakCapabilities: ALL in `add` beats ALL in
    `drop`; otherwise what is added wins over what is dropped. Never more than `available`.
    """
    wanted, unwanted = (normalise(add, "CapAdd", available), normalise(drop, "CapDrop", available))
    if privileged:
        chosen = set(available)
    elif _ALL in wanted:
        chosen = set(available) - set(unwanted)
    elif _ALL in unwanted:
        chosen = set(wanted)
    else:
        chosen = (set(DEFAULT) - set(unwanted)) | set(wanted)
    return tuple(name for name in NAMES if name in chosen and name in available)
