"""seccomp profiles: from Docker's conditional form to the OCI's `linux.seccomp`.

A profile's rules may ask for capabilities, architectures and kernel versions (`includes`, `excludes`); what is
left after asking is what the OCI runtime compiles. The default profile is data of the host's package
`golang-github-containers-common`, read when the runtime starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from swarmlet.errors import InvalidArgument

#: platform.machine() -> (the profiles' short name, libseccomp's name)
ARCHITECTURES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
}

#: Keys of a syscall rule that the OCI knows; the rest is the condition and comments.
_RULE_KEYS = ("names", "action", "errnoRet", "args")


@dataclass(frozen=True, slots=True)
class Host:
    """What conditions are asked of. kernel: (major, minor)."""

    machine: str
    kernel: tuple[int, int]


def parse(text: str | bytes) -> dict[str, Any]:
    """A profile's JSON. InvalidArgument if it is not one."""
    try:
        profile = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InvalidArgument(f"Decoding seccomp profile failed: {err}") from err
    if not isinstance(profile, dict):
        raise InvalidArgument("Decoding seccomp profile failed: expected a JSON object")
    if not isinstance(profile.get("defaultAction"), str):
        raise InvalidArgument("Decoding seccomp profile failed: defaultAction is missing")
    for key in ("syscalls", "archMap"):
        entries = profile.get(key)
        if entries is not None and not (isinstance(entries, list) and all(isinstance(e, dict) for e in entries)):
            raise InvalidArgument(f"Decoding seccomp profile failed: {key} is not a list of objects")
    return profile


def resolve(profile: Mapping[str, Any], caps: Sequence[str], host: Host) -> dict[str, Any]:
    """`linux.seccomp` for a container with these capabilities on this host.

    InvalidArgument for a profile that has both `architectures` and `archMap`, or a rule without names.
    """
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidArgument("'architectures' and 'archMap' were specified in the seccomp profile, use either")
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    if architectures := _architectures(profile, host):
        result["architectures"] = architectures
    for key in ("flags", "listenerPath", "listenerMetadata"):
        if profile.get(key):
            result[key] = profile[key]
    rules = [
        _rule(rule)
        for rule in profile.get("syscalls") or []
        if _applies(rule.get("includes") or {}, caps, host, default=True)
        and not _applies(rule.get("excludes") or {}, caps, host, default=False)
    ]
    if rules:
        result["syscalls"] = rules
    return result


def cache_key(resolved: Mapping[str, Any], runtime: str) -> str:
    """Names the compiled form of a resolved profile by one version of one runtime."""
    content = msgspec.json.encode([resolved, runtime], order="deterministic")
    return hashlib.sha256(content).hexdigest()


def _architectures(profile: Mapping[str, Any], host: Host) -> list[str]:
    if profile.get("architectures"):
        return list(profile["architectures"])
    own = ARCHITECTURES.get(host.machine, ("", ""))[1]
    for entry in profile.get("archMap") or []:
        if entry.get("architecture") == own:
            return [own, *(entry.get("subArchitectures") or [])]
    return []


def _applies(condition: Mapping[str, Any], caps: Sequence[str], host: Host, *, default: bool) -> bool:
    """For includes: every kind of condition holds. For excludes: any one does. default: with no condition."""
    answers = []
    if wanted := condition.get("arches"):
        answers.append(ARCHITECTURES.get(host.machine, ("", ""))[0] in wanted)
    if wanted := condition.get("caps"):
        # An include needs all of its capabilities; an exclude is met by any one of them.
        answers.append((all if default else any)(cap in caps for cap in wanted))
    if wanted := condition.get("minKernel"):
        answers.append(host.kernel >= _version(wanted))
    if not answers:
        return default
    return all(answers) if default else any(answers)


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    try:
        return int(major), int(minor.split(".")[0] or 0)
    except ValueError as err:
        raise InvalidArgument(f'Decoding seccomp profile failed: minKernel "{text}" is not a version') from err


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = rule.get("names") or ([rule["name"]] if rule.get("name") else [])
    if not names or not isinstance(rule.get("action"), str):
        raise InvalidArgument("Decoding seccomp profile failed: a syscall rule needs names and an action")
    kept = {key: rule[key] for key in _RULE_KEYS if rule.get(key) is not None}
    kept["names"] = list(names)
    if not kept.get("args"):
        kept.pop("args", None)
    return kept
