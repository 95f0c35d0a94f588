"""From a container's record to what the networks and the runtime are asked for. Pure: values in, values out."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from msgspec.structs import replace

from swarmlet.model.container import TASK_LABEL, EndpointSettings
from swarmlet_agent.decide.merge import override_env, process_env
from swarmlet_agent.decide.points import MountPoint
from swarmlet_agent.decide.ports import wanted_ports
from swarmlet_agent.decide.remap import MappedIds
from swarmlet_agent.decide.selinux import NO_LABELS, Labels
from swarmlet_agent.decide.users import Identity
from swarmlet_agent.engine.container import Container, ExecRequest
from swarmlet_agent.net.types import Attachment, NetworkWish
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, MountPlan


def mode_of(reference: str) -> str:
    """The container that a mode like "container:abc" shares with; "" for every other mode."""
    return reference.removeprefix("container:") if reference.startswith("container:") else ""


def network_wish(record: Container, share_with: str, ids: MappedIds | None = None) -> NetworkWish:
    """share_with: the id of the container whose network it shares, or ""."""
    host = record.host
    return NetworkWish(
        container_id=record.id,
        container_name=record.name,
        hostname=record.request.hostname,
        mode=host.network_mode,
        domainname=record.request.domainname,
        endpoints=record.wishes,
        ports={} if share_with else wanted_ports(record.request),
        mac_address=record.request.mac_address,
        extra_hosts=host.extra_hosts,
        dns=host.dns or (),
        dns_search=host.dns_search or (),
        dns_options=host.dns_options or (),
        links=host.links,
        share_with=share_with,
        user_namespace=ids.namespace if ids is not None else "",
        of_task=TASK_LABEL in record.request.labels,
    )


def with_endpoint(
    known: Mapping[str, EndpointSettings], network: str, settings: EndpointSettings | None
) -> dict[str, EndpointSettings]:
    """With the network's entry set, or (None) without it."""
    rest = {name: item for name, item in known.items() if name != network}
    return rest if settings is None else {**rest, network: settings}


def wish_of(endpoint: EndpointSettings) -> EndpointSettings:
    """What was asked for, without what was given. A MAC address counts as asked for only where nothing was given."""
    return EndpointSettings(
        ipam_config=endpoint.ipam_config,
        links=endpoint.links,
        aliases=endpoint.aliases,
        driver_opts=endpoint.driver_opts,
        gw_priority=endpoint.gw_priority,
        network_id=endpoint.network_id,
        mac_address="" if endpoint.endpoint_id else endpoint.mac_address,
    )


def at_rest(record: Container) -> dict[str, EndpointSettings]:
    """The networks of a container that does not run (any more): what it asks for, and where it was."""
    known = record.endpoints
    return {
        name: replace(wish, network_id=known[name].network_id) if name in known and not wish.network_id else wish
        for name, wish in record.wishes.items()
    }


def container_plan(
    record: Container,
    *,
    rootfs: Path,
    identity: Identity,
    attachment: Attachment,
    joined: Mapping[str, str],
    cgroup_parent: str,
    subpaths: Mapping[str, str] = MappingProxyType({}),
    read_only_below: Collection[str] = (),
    ids: MappedIds | None = None,
    own_folders: Collection[Path] = (),
    supplies: Sequence[MountPlan] = (),
    labels: Labels = NO_LABELS,
) -> ContainerPlan:
    """The whole OCI-to-be. joined: kind of namespace -> path, "" for the host's.

    subpaths: destination -> host path, where not a whole volume is mounted. read_only_below: destinations where
    what lies below can be made read-only as well. own_folders: of the agent, on disk with containers' ids.
    supplies: files of its own, which may lie in what it has mounted.
    """
    request = record.request
    parent = record.host.cgroup_parent or cgroup_parent
    return ContainerPlan(
        id=record.id,
        config=request,
        host=record.host,
        rootfs=rootfs,
        args=record.args,
        env=environment(record),
        cwd=request.working_dir or "/",
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        hostname=request.hostname,
        cgroup_path=posixpath.join("/", parent, record.id),
        netns_path=attachment.netns_path,
        mounts=_parents_first([
            *(
                _mount_plan(
                    point, subpaths.get(point.destination, point.source), point.destination in read_only_below,
                    mapped=ids is not None
                    and any(Path(point.source).is_relative_to(folder) for folder in own_folders),
                )
                for point in record.mounts
            ),
            *supplies,
        ]),
        # A client's own mount at /etc/hosts and the like stands over the engine's file.
        files={
            target: source
            for target, source in attachment.files.items()
            if all(point.destination != target for point in record.mounts)
            and all(file.target != target for file in record.supplied)
        },
        joined=joined,
        annotations=record.host.annotations,
        ids=ids,
        labels=labels,
    )


def environment(record: Container) -> tuple[str, ...]:
    """Of the container's program, complete."""
    return override_env(_base_env(record, tty=record.request.tty), record.request.env)


def _base_env(record: Container, *, tty: bool) -> tuple[str, ...]:
    return (*process_env((), hostname=record.request.hostname, tty=tty), *record.linked_env)


def exec_plan(
    record: Container, request: ExecRequest, identity: Identity, *, tty: bool, detached: bool = False
) -> ExecPlan:
    """A further process: the container's environment with the request's own over it."""
    base = override_env(_base_env(record, tty=tty), record.request.env)
    return ExecPlan(
        args=request.cmd,
        env=override_env(base, request.env),
        cwd=request.working_dir or record.request.working_dir or "/",
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        tty=tty,
        privileged=request.privileged,
        open_stdin=request.attach_stdin,
        console_size=request.console_size or (0, 0),
        remap=record.remap,
        detached=detached,
    )


def _parents_first(mounts: Sequence[MountPlan]) -> tuple[MountPlan, ...]:
    return tuple(sorted(mounts, key=lambda mount: (mount.target.count("/"), mount.target)))


def _mount_plan(point: MountPoint, source: str, read_only_below: bool, *, mapped: bool) -> MountPlan:
    if point.type == "tmpfs":
        return MountPlan(point.destination, "", "tmpfs", point.options)
    bind = "bind" if point.non_recursive else "rbind"
    read_only = "rro" if read_only_below and point.read_only_below != "off" else "ro"
    propagation = point.propagation or "rprivate"
    if point.non_recursive:
        # A single mount. crun 1.8 would take the "r" of "rprivate" for the bind's own and bind what lies below too.
        propagation = propagation.removeprefix("r")
    options = (bind, propagation, "rw" if point.rw else read_only)
    return MountPlan(point.destination, source, "bind", options, mapped)
