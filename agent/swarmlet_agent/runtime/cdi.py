"""Devices by the Container Device Interface (CDI 0.8): what vendors' JSON files say a container with a device needs.

`--device vendor.com/class=name` names devices in full; `--gpus` means those of a class called gpu. Reading the files
(`load`) is apart from choosing (`choose`) and from changing the OCI configuration (`apply`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.errors import Internal, InvalidArgument, NotSupported
from swarmlet.model.container import DeviceRequest

#: The later folder wins where both describe a device.
FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class Node(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A device node; what is left out is as the node on the host has it. type: "c", "b", "u" or "p"."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = "rwm"
    uid: int | None = None
    gid: int | None = None


class CdiMount(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ("rbind", "ro", "rprivate")
    type: str = "bind"


class Hook(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What is added to a container's configuration."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[Node, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(name="additionalGids", default=())


class Device(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    name: str
    container_edits: Edits = Edits()


class Spec(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One file. kind: "vendor.com/class"; its own edits go with each of its devices."""

    kind: str
    devices: tuple[Device, ...] = ()
    container_edits: Edits = Edits()


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """devices: full name -> what it needs, in the files' order. passed_over: files that were not read, and why."""

    devices: Mapping[str, tuple[Edits, ...]]
    passed_over: tuple[str, ...] = ()


def load(folders: Sequence[Path] = FOLDERS) -> Registry:
    """Read every specification; blocking."""
    devices: dict[str, tuple[Edits, ...]] = {}
    passed_over = []
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in (".yaml", ".yml"):
                passed_over.append(f"{path}: only JSON is read")
            if path.suffix != ".json":
                continue
            try:
                spec = msgspec.json.decode(path.read_bytes(), type=Spec)
            except (OSError, msgspec.DecodeError) as err:
                passed_over.append(f"{path}: {err}")
                continue
            for device in spec.devices:
                devices[f"{spec.kind}={device.name}"] = (spec.container_edits, device.container_edits)
    return Registry(devices=devices, passed_over=tuple(passed_over))


def check_requests(requests: Sequence[DeviceRequest]) -> None:
    """Without looking at the host: NotSupported for a driver there is not, InvalidArgument for contradictions."""
    for request in requests:
        wanted = {capability for words in request.capabilities for capability in words}
        if request.driver not in ("", "cdi", "nvidia") or (request.driver == "" and "gpu" not in wanted):
            raise _no_driver(request)
        if request.options:
            raise NotSupported(f"device request options ({', '.join(sorted(request.options))}) are not supported")
        if request.count and request.device_ids:
            raise InvalidArgument("cannot set both Count and DeviceIDs on device request")


def choose(requests: Sequence[DeviceRequest], registry: Registry) -> list[Edits]:
    """What the requested devices need, each thing once. InvalidArgument for devices that there are not."""
    found: list[Edits] = []
    for request in requests:
        names = list(request.device_ids) if request.driver == "cdi" else _gpus(request, registry)
        missing = [name for name in names if name not in registry.devices]
        if missing:
            why = f" ({'; '.join(registry.passed_over)})" if registry.passed_over else ""
            raise InvalidArgument(
                f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{why}"
            )
        for edits in (edits for name in names for edits in registry.devices[name]):
            if edits not in found:
                found.append(edits)
    return found


def _gpus(request: DeviceRequest, registry: Registry) -> list[str]:
    """Full names of the GPUs that `--gpus` asks for."""
    kinds = sorted({name.partition("=")[0] for name in registry.devices if name.partition("=")[0].endswith("/gpu")})
    if request.driver == "nvidia":
        kinds = [kind for kind in kinds if kind == "nvidia.com/gpu"]
    if not kinds:
        raise _no_driver(request)
    if request.device_ids:
        return [ident if "=" in ident else f"{kinds[0]}={ident}" for ident in request.device_ids]
    every = [name for name in registry.devices if name.partition("=")[0] == kinds[0]]
    single = [name for name in every if not name.endswith("=all")]
    if request.count < 0:
        return [f"{kinds[0]}=all"] if f"{kinds[0]}=all" in every else single
    wanted = request.count or 1
    if wanted > len(single):
        raise InvalidArgument(f"{wanted} GPUs are wanted, but this host has {len(single)} ({kinds[0]})")
    return single[:wanted]


def _no_driver(request: DeviceRequest) -> Internal:
    """As dockerd, which knows its drivers only when the container starts."""
    wanted = " ".join(f"[{' '.join(words)}]" for words in request.capabilities)
    return Internal(f'could not select device driver "{request.driver}" with capabilities: [{wanted}]')


def apply(config: dict[str, Any], edits: Sequence[Edits]) -> None:
    """Add the edits to a config.json; looks at the host's device nodes. InvalidArgument for one that is missing."""
    process, linux = config["process"], config["linux"]
    for each in edits:
        keys = {entry.partition("=")[0] for entry in each.env}
        process["env"] = [*(e for e in process["env"] if e.partition("=")[0] not in keys), *each.env]
        if each.additional_gids:
            known = process["user"].setdefault("additionalGids", [])
            known += [gid for gid in each.additional_gids if gid not in known and gid != 0]
        for node in each.device_nodes:
            entry, rule = _device(node)
            others = [device for device in linux.get("devices", []) if device["path"] != node.path]
            linux["devices"] = [*others, entry]
            if rule:
                linux["resources"]["devices"].append(rule)
        for mount in each.mounts:
            options = list(mount.options)
            if not {"bind", "rbind"} & set(options):
                options.insert(0, "rbind")
            config["mounts"].append(
                {"destination": mount.container_path, "source": mount.host_path, "type": mount.type, "options": options}
            )
        for hook in each.hooks:
            if hook.hook_name not in _HOOKS:
                raise InvalidArgument(f'CDI device injection failed: invalid hook name "{hook.hook_name}"')
            entry = {"path": hook.path, "args": list(hook.args), "env": list(hook.env)}
            if hook.timeout is not None:
                entry["timeout"] = hook.timeout
            config.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(entry)


def inject(config: dict[str, Any], requests: Sequence[DeviceRequest]) -> None:
    """Give a container what it requests of this host's devices; blocking."""
    apply(config, choose(requests, load(FOLDERS)))


def _device(node: Node) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The entry of `linux.devices`, and what the cgroup must allow (nothing for a pipe)."""
    kind, major, minor, mode = node.type, node.major, node.minor, node.file_mode
    if not kind or (kind != "p" and not (major or minor)) or mode is None:
        source = node.host_path or node.path
        try:
            info = os.stat(source)
        except OSError as err:
            raise InvalidArgument(f"CDI device injection failed: {source}: {err.strerror}") from err
        if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise InvalidArgument(f"CDI device injection failed: {source} is not a device node")
        kind = kind or ("b" if stat.S_ISBLK(info.st_mode) else "c")
        if not (major or minor):
            major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        mode = stat.S_IMODE(info.st_mode) if mode is None else mode
    entry = {"path": node.path, "type": kind, "major": major, "minor": minor, "fileMode": mode}
    entry |= {key: value for key, value in (("uid", node.uid), ("gid", node.gid)) if value is not None}
    if kind == "p":
        return entry, None
    rule = {"allow": True, "type": "c" if kind == "u" else kind, "major": major, "minor": minor}
    return entry, {**rule, "access": node.permissions or "rwm"}
