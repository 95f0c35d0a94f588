"""What each container's /etc/hosts, /etc/resolv.conf and /etc/hostname say, links of the default network included."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from swarmlet.errors import Conflict
from swarmlet_agent.net import files, plan_files
from swarmlet_agent.net.ground import Ground
from swarmlet_agent.net.records import BRIDGE, HOST, SHARED, EndpointRecord, SandboxRecord


class ContainerFiles:
    """Texts for sandboxes, from their records and the host's own files."""

    def __init__(self, ground: Ground, data_dir: Path, host_resolv_conf: Path, host_hosts: Path) -> None:
        self._ground = ground
        self._data_dir = data_dir
        self._host_resolv_conf = host_resolv_conf
        self._host_hosts = host_hosts

    def folder(self, container_id: str) -> Path:
        return self._data_dir / "containers" / container_id

    def texts(self, sandbox: SandboxRecord) -> dict[str, str]:
        """The files of a container; none for one that shares another's."""
        if sandbox.kind == SHARED:
            return {}
        hostname = {files.HOSTNAME: f"{sandbox.hostname}\n"}
        if sandbox.kind == HOST:
            extra = plan_files.parse_extra_hosts(sandbox.extra_hosts, self._host_gateways())
            resolv = files.read_text(self._host_resolv_conf)
            if sandbox.dns or sandbox.dns_search or sandbox.dns_options:
                resolv = self._resolv_conf(sandbox)
            hosts = plan_files.host_hosts(files.read_text(self._host_hosts), extra)
            return {**hostname, files.HOSTS: hosts, files.RESOLV: resolv}
        return {**hostname, files.HOSTS: self._hosts(sandbox), files.RESOLV: self._resolv_conf(sandbox)}

    def _resolv_conf(self, sandbox: SandboxRecord) -> str:
        return plan_files.resolv_conf(
            files.host_resolvers(self._host_resolv_conf), embedded=bool(sandbox.dns_port), servers=sandbox.dns,
            search=sandbox.dns_search, options=sandbox.dns_options,
        )

    def _hosts(self, sandbox: SandboxRecord) -> str:
        linked = [
            (address, _names_of(alias, other))
            for alias, other, found in self._linked(sandbox) for address in found.addresses
        ]
        return plan_files.hosts(
            own=[address for endpoint in sandbox.endpoints for address in endpoint.addresses],
            hostname=sandbox.hostname, domainname=sandbox.domainname, linked=linked,
            extra=plan_files.parse_extra_hosts(sandbox.extra_hosts, self._host_gateways()),
        )

    def _host_gateways(self) -> tuple[str, ...]:
        bridge = self._ground.catalog.find(BRIDGE)
        return tuple(part.gateway for part in bridge.families) if bridge is not None else ()

    # Links on the default network: names in /etc/hosts

    def _linked(self, sandbox: SandboxRecord) -> list[tuple[str, SandboxRecord, EndpointRecord]]:
        """(alias, container, endpoint) of running containers that this one is linked to on the default network."""
        if not sandbox.links or not any(endpoint.network == BRIDGE for endpoint in sandbox.endpoints):
            return []
        found = []
        for target, alias in map(split_link, sandbox.links):
            other = self.find(target)
            place = next((e for e in other.endpoints if e.network == BRIDGE), None) if other is not None else None
            if other is not None and place is not None:
                found.append((alias, other, place))
        return found

    def find(self, ref: str) -> SandboxRecord | None:
        """An attached container by name, id or id prefix of at least 12."""
        for ident in self._ground.live:
            sandbox = self._ground.sandboxes[ident]
            if sandbox.container_name == ref or ident == ref or (len(ref) >= 12 and ident.startswith(ref)):
                return sandbox
        return None

    def check(self, sandbox: SandboxRecord, networks: Collection[str]) -> None:
        """InvalidArgument for bad extra hosts, Conflict for a link of the default network to a container that does not
        run or is not on it. (Elsewhere a link is a name for whoever is called so.)"""
        plan_files.parse_extra_hosts(sandbox.extra_hosts, self._host_gateways())
        for target, alias in map(split_link, sandbox.links) if BRIDGE in networks else ():
            if (other := self.find(target)) is None:
                raise Conflict(
                    f"Cannot link to a non running container: /{target} AS /{sandbox.container_name}/{alias}"
                )
            if all(endpoint.network != BRIDGE for endpoint in other.endpoints):
                raise Conflict(f"Cannot link to /{target}, as it does not belong to the default network")

    async def refresh_linked(self, target: SandboxRecord) -> None:
        """A linked container has a new address: those that refer to it learn it."""
        ground = self._ground
        for ident in list(ground.live):
            other = ground.sandboxes[ident]
            refers = any(split_link(link)[0] == target.container_name for link in other.links)
            if refers and ident != target.container_id:
                await ground.run(files.write_files, self.folder(ident), {files.HOSTS: self._hosts(other)})


def _names_of(alias: str, other: SandboxRecord) -> str:
    """As dockerd lists them: the alias, the container's hostname, and its name if that is another word."""
    return " ".join(dict.fromkeys(filter(None, (alias, other.hostname, other.container_name))))


def split_link(link: str) -> tuple[str, str]:
    """(container, alias) of "container:alias", "container", or inspect's "/container:/self/alias"."""
    target, _, alias = link.partition(":")
    target = target.removeprefix("/")
    return target, alias.rsplit("/", 1)[-1] or target
