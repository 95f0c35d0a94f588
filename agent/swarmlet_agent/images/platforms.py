"""What machine an image is for, and which images run on which machines. Pure, but for what "linux" alone means.

The rules are those of containerd's `platforms` package, which Docker uses: names have synonyms, and a machine also
runs what was made for its lesser relatives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from itertools import takewhile

import msgspec

from swarmlet.errors import InvalidArgument, NotFound

_ARCHITECTURES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386",
    "armhf": "arm", "armel": "arm", "armv8l": "arm", "armv7l": "arm", "armv6l": "arm", "armv5l": "arm",
}
_IMPLIED_VARIANTS = {"armel": "v6", "armv8l": "v8", "armv6l": "v6", "armv5l": "v5"}
_ARM = ("v8", "v7", "v6", "v5")
_AMD64 = ("v4", "v3", "v2", "")
#: x86-64 psABI, "Micro-Architecture Levels", by the names of /proc/cpuinfo. Each needs those before.
_AMD64_LEVELS = (
    ("v2", frozenset(("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"))),
    ("v3", frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"))),
    ("v4", frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))),
)
#: Those that may be named alone.
_KNOWN = frozenset((
    "386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
))
_SYSTEMS = frozenset((
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "windows", "zos",
))
_SYNONYMS = {"macos": "darwin"}
_SYSTEM = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)\))?")
#: As Go prints it: containerd tells what it would have matched.
_SYSTEM_SHOWN = r"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$"
_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+")


class Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform | None:
    """"linux/amd64", "linux/arm/v7", "arm64", "windows(10.0)/amd64"; None for "". InvalidArgument in the words of
    containerd's parser.

    Systems of others are no error here, as no architecture is: there just is no such image. "linux" alone: this host's
    architecture.
    """
    if not text:
        return None
    first, *others = text.split("/")
    if (system := _SYSTEM.fullmatch(first)) is None:
        raise InvalidArgument(
            f'"{first}" is an invalid OS component of "{text}": OSAndVersion specifier component must match '
            f'"{_SYSTEM_SHOWN}": invalid argument'
        )
    for part in others:
        if not _COMPONENT.fullmatch(part):
            raise InvalidArgument(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                '"^[A-Za-z0-9_.-]+$": invalid argument'
            )
    name = _SYNONYMS.get(system[1].lower(), system[1].lower())
    version = system[2] or ""
    match others:
        case []:
            if name in _SYSTEMS:
                own = host_platform(os.uname().machine)
                return Platform(own.architecture, name, own.variant, version)
            architecture, variant = normal(name, "")
            if architecture not in _KNOWN:
                raise InvalidArgument(f'"{text}": unknown operating system or architecture: invalid argument')
            return Platform(architecture, "linux", variant)
        case [architecture, *variants] if len(variants) < 2:
            architecture, variant = normal(architecture.lower(), "".join(variants).lower())
            return Platform(architecture, name, variant, version)
        case _:
            raise InvalidArgument(f'"{text}": cannot parse platform specifier: invalid argument')


def check_system(platform: Platform) -> None:
    """InvalidArgument, in dockerd's words, if nothing made for this system can be an image here."""
    if platform.os not in ("linux", ""):
        raise InvalidArgument("operating system is not supported")


def host_platform(machine: str) -> Platform:
    """Of uname's machine."""
    architecture, variant = normal(machine, "")
    return Platform(architecture, "linux", variant)


def best_platform(machine: str, cpu_flags: Collection[str]) -> Platform:
    """The host's with the level of its processor, as Docker chooses by; builds are for the host's without it."""
    host = host_platform(machine)
    if host.architecture != "amd64":
        return host
    reached = list(takewhile(lambda level: level[1] <= set(cpu_flags), _AMD64_LEVELS))
    return Platform(host.architecture, host.os, reached[-1][0] if reached else "")


def without_level(platform: Platform) -> Platform:
    """What is made here is for every processor of its kind: an image for "amd64/v4" would not run on most."""
    return msgspec.structs.replace(platform, variant="") if platform.architecture == "amd64" else platform


def mismatch(ref: str, have: Platform, want: Platform) -> NotFound:
    """There is such an image, for another platform: in dockerd's words. Clients pull then."""
    differs = f"its platform ({have}) does not match the specified platform ({want})"
    return NotFound("image", ref, f"image with reference {ref} was found but {differs}")


def check_platform(ref: str, have: Platform, want: Platform | None) -> None:
    """NotFound, as `mismatch`, if an image is for another platform than the wanted one; None: any will do."""
    if want is not None and not matches(have, want):
        raise mismatch(ref, have, want)


def normal(architecture: str, variant: str) -> tuple[str, str]:
    """One spelling of (architecture, variant) out of many: Go's names, and no variant where there is but one."""
    variant = f"v{variant}" if variant[:1].isdigit() else variant or _IMPLIED_VARIANTS.get(architecture, "")
    architecture = _ARCHITECTURES.get(architecture, architecture)
    match architecture, variant:
        case "arm", "":
            return "arm", "v7"
        case ("arm64", "v8") | ("amd64", "v1"):
            return architecture, ""
        case _:
            return architecture, variant


def rank(have: Platform, want: Platform) -> int | None:
    """How well what is made for `have` suits the machine `want`: 0 is best, None is not at all; "" says nothing."""
    if (have.os or "linux") != (want.os or "linux"):
        return None
    if not have.architecture or not want.architecture:
        return 0
    offered, taken = normal(have.architecture, have.variant), _taken(*normal(want.architecture, want.variant))
    return taken.index(offered) if offered in taken else None


def matches(have: Platform, want: Platform) -> bool:
    """Whether an image that is made for `have` may be given to who wants `want`.

    One that names no variant may; one that names no architecture may not.
    """
    if not have.architecture:
        return False
    if rank(have, want) is not None:
        return True
    return not have.variant and rank(Platform(have.architecture, have.os, want.variant), want) is not None


def _taken(architecture: str, variant: str) -> list[tuple[str, str]]:
    """What a machine runs, the best first."""
    match architecture:
        case "amd64":
            lesser = _AMD64[_AMD64.index(variant) :] if variant in _AMD64 else (variant, "")
            return [*(("amd64", each) for each in lesser), ("386", "")]
        case "arm":
            return [("arm", each) for each in (_ARM[_ARM.index(variant) :] if variant in _ARM else (variant,))]
        case "arm64":
            own = [("arm64", variant)] if variant else []
            return [*own, ("arm64", ""), *(("arm", each) for each in _ARM)]
        case _:
            return [(architecture, variant)]
