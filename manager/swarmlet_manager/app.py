"""`swarmlet-manager`: puts the manager together and runs it. The one file that knows everybody.

Nothing of the cluster's truth is in this process: it may be killed at any moment, and its next start goes on from
etcd. A failure of any part ends the process with status 1; whoever ensures it starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

from swarmlet import log as logging
from swarmlet.config import MANAGER_SOCKET
from swarmlet.engine_api.guard import for_managers
from swarmlet.engine_api.hosts import listen_on
from swarmlet.engine_api.router import Route
from swarmlet.engine_api.server import Server
from swarmlet.errors import InvalidArgument, SwarmletError
from swarmlet.log import get_logger
from swarmlet.loops import every
from swarmlet.memory import return_early
from swarmlet.model.ids import new_cluster_id
from swarmlet.pki import KeyPair, renew_at
from swarmlet.process import allow_many_files, identify, only_one, write_pid_file
from swarmlet.tls import TlsIdentity, client_context, load_pair, server_context, shrink_buffers
from swarmlet_manager.api.app import cluster_routes
from swarmlet_manager.api.passing import Passing
from swarmlet_manager.ca.authority import Authority
from swarmlet_manager.ca.routes import JoinRoutes
from swarmlet_manager.ca.vault import Vault
from swarmlet_manager.control.allocation import Allocation
from swarmlet_manager.control.commands import Control
from swarmlet_manager.control.reconcile import Reconcilers
from swarmlet_manager.dispatch.dispatcher import Dispatcher
from swarmlet_manager.fleet.client import Fleet
from swarmlet_manager.fleet.leader import LeaderLine
from swarmlet_manager.leadership import Leading, Place, retire_predecessor
from swarmlet_manager.restored import note_restore
from swarmlet_manager.settings import ManagerSettings, read_settings
from swarmlet_manager.store.election import Candidate
from swarmlet_manager.store.etcd.binary import EtcdSettings
from swarmlet_manager.store.etcd.channels import Tls
from swarmlet_manager.store.etcd.client import EtcdClient
from swarmlet_manager.store.etcd.server import EtcdServer
from swarmlet_manager.store.keys import Keys
from swarmlet_manager.store.store import Store
from swarmlet_manager.store.writer import Limits

log = get_logger(__name__)

#: Everything of the cluster lies below this in etcd.
PREFIX = b"/swarmlet/"
#: How often the manager looks whether its own certificate has come of age.
CERTIFICATE_CHECK_S = 3600.0
#: The embedded etcd is started with room for larger transactions than others allow by default.
EMBEDDED_LIMITS = Limits(keys=1000, hard_bytes=4_000_000)


class Manager:
    """One process. `run` returns after SIGTERM or SIGINT, and raises what went wrong otherwise."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._data_dir = Path(settings.data_dir)
        self._run_dir = Path(settings.run_dir)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        with only_one(self._data_dir / "lock", f"another manager runs with {self._data_dir}"):
            own = identify(os.getpid())
            assert own is not None
            write_pid_file(self._data_dir / "manager.pid", own)
            async with self._etcd() as (client, limits, watch_etcd):
                await self._serve(client, limits, watch_etcd)
        log.info("manager stopped")

    @contextlib.asynccontextmanager
    async def _etcd(self) -> AsyncIterator[tuple[EtcdClient, Limits, EtcdServer | None]]:
        """A client of the cluster's etcd: the user's own, or the embedded one, ensured here."""
        etcd = self._settings.etcd
        if etcd.endpoints:
            tls = Tls(ca=Path(etcd.ca), cert=Path(etcd.cert), key=Path(etcd.key)) if etcd.ca else None
            client = EtcdClient(etcd.endpoints, tls)
            try:
                yield client, Limits(), None
            finally:
                await client.close()
            return
        server = embedded_etcd(self._settings)
        await server.start()
        client = EtcdClient(server.endpoints)
        try:
            yield client, EMBEDDED_LIMITS, server
        finally:
            await client.close()
            if self._settings.stop_etcd and self._stop.is_set():
                await server.stop()
            else:
                await server.detach()

    async def _serve(self, client: EtcdClient, limits: Limits, etcd: EtcdServer | None) -> None:
        candidate = Candidate(id=_own_id(self._data_dir), addr=self._settings.advertised)
        await retire_predecessor(client, Keys(PREFIX), candidate.id)
        store = Store(client, candidate, limits=limits, prefix=PREFIX)
        await store.start()
        parts = _Parts(store, self._data_dir, self._settings.advertised)
        try:
            async with asyncio.TaskGroup() as group:
                leading = group.create_task(parts.leading().run(), name="leading")
                running = [group.create_task(store.wait(), name="store"), leading]
                if etcd is not None:
                    running.append(group.create_task(etcd.wait(), name="etcd"))
                if await self._cluster_is_known(store):
                    certificate = OwnCertificate(parts.authority, candidate.id, self._settings.advertise_addr)
                    running.append(group.create_task(certificate.renew_for_ever(), name="certificate"))
                    running.append(group.create_task(parts.vault.fetch(certificate.client), name="data key"))
                    async with self._listening(parts, certificate, leading):
                        gc.collect()
                        gc.freeze()  # what is there now stays: collections need not look at it again
                        log.info("manager serves", address=self._settings.advertised)
                        await self._stop.wait()
                for task in running:
                    task.cancel()
        finally:
            await store.stop()

    @contextlib.asynccontextmanager
    async def _listening(
        self, parts: _Parts, certificate: OwnCertificate, leading: asyncio.Task[None]
    ) -> AsyncIterator[None]:
        """The API is served: on the socket to this host, on the port to nodes and managers, on `hosts` to clients."""
        settings = self._settings
        fleet = Fleet(parts.store.state, certificate.client)
        line = LeaderLine(certificate.client, parts.store.leadership_moved)
        placed = Passing(parts.store, line).routes
        routes = placed(parts.cluster_routes(fleet))
        joins = JoinRoutes(parts.authority, more_managers=bool(settings.etcd.endpoints), own_addr=settings.advertised)
        others = for_managers([*routes, *placed(joins.passed_on_routes())])
        outside = Server([*others, *placed(joins.routes()), *parts.vault.routes(), *parts.dispatcher.routes()])
        inside = Server([*routes, *placed(joins.local_routes())])
        servers = [outside, inside]
        try:
            await outside.listen_tcp(settings.listen_addr, settings.port, certificate.server)
            await inside.listen_unix(self._run_dir / MANAGER_SOCKET, settings.socket_group)
            if settings.hosts:
                servers.append(Server(routes))
                await listen_on(servers[-1], settings.hosts, settings.hosts_tls)
            yield
        finally:
            # Agents' sessions end with the duties: a server does not end while they are open.
            leading.cancel()
            await asyncio.wait([leading])
            for server in reversed(servers):
                await server.close()
            await line.close()
            await fleet.close()

    async def _cluster_is_known(self, store: Store) -> bool:
        """Waits for the cluster's record, which the leader (this manager or another) makes on its first start.
        False if the manager is to stop before it is there."""
        known = asyncio.Event()

        def look(_changes: object = ()) -> None:
            if store.state.cluster is not None or self._stop.is_set():
                known.set()

        unsubscribe = store.subscribe(look)
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        stopping.add_done_callback(look)
        look()
        try:
            await known.wait()
        finally:
            unsubscribe()
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
        return store.state.cluster is not None


class _Parts:
    """What the manager is made of between its store and its servers."""

    def __init__(self, store: Store, data_dir: Path, own_addr: str) -> None:
        self.store = store
        self.authority = Authority(store)
        self.vault = Vault(store, data_dir, lambda: _other_managers(store, own_addr))
        allocation = Allocation(store)
        self.dispatcher = Dispatcher(store, allocation, self.vault, leader_addr=self._leader_addr)
        self._control = Control(store, self.dispatcher, self.vault)
        self._place = Place(store, own_addr, self._leader_addr)
        self._duties = (allocation, self.dispatcher, Reconcilers(store))
        self._data_dir = data_dir

    def leading(self) -> Leading:
        return Leading(self.store, self._prepare, self._duties)

    def cluster_routes(self, fleet: Fleet) -> list[Route]:
        return cluster_routes(self._control, fleet, self.dispatcher, self._place, self.store, self.dispatcher)

    async def _prepare(self) -> None:
        """The leader's first steps, before its duties begin."""
        await self.authority.ensure_cluster()
        await self.vault.ensure()
        await note_restore(self.store, self._data_dir)

    def _leader_addr(self) -> str:
        """Where the leader is reached; "" while none is known."""
        return "" if self.store.leader_info is None else self.store.leader_info.addr


class OwnCertificate:
    """The manager's TLS contexts, for listening and for dialling nodes, kept fresh in place."""

    def __init__(self, authority: Authority, manager_id: str, address: str) -> None:
        self._authority = authority
        self._id = manager_id
        self._addresses = list(dict.fromkeys([address, "127.0.0.1", "localhost"]))
        self._pair = self._issue()
        identity = TlsIdentity(self._pair, authority.ca_pem())
        self.server: ssl.SSLContext = server_context(identity, require_client=False)
        self.client: ssl.SSLContext = client_context(identity)

    async def renew_for_ever(self) -> None:
        await every(CERTIFICATE_CHECK_S, self._renew_if_due, name="certificate")

    async def _renew_if_due(self) -> None:
        if datetime.now(UTC) < renew_at(self._pair.cert_pem, random.random()):
            return
        self._pair = self._issue()
        for context in (self.server, self.client):
            load_pair(context, self._pair)

    def _issue(self) -> KeyPair:
        return self._authority.own_certificate(self._id, self._addresses)


def _other_managers(store: Store, own: str) -> list[str]:
    """Where they are reached, the leader first."""
    leader = store.leader_info
    known = [leader.addr] if leader is not None else []
    known += sorted(node.manager_addr for node in store.state.nodes.values() if node.manager_addr)
    return [address for address in dict.fromkeys(known) if address != own]


def embedded_etcd(settings: ManagerSettings) -> EtcdServer:
    folder = Path(settings.data_dir).absolute()
    return EtcdServer(EtcdSettings(data_dir=folder / "etcd", name=_own_id(folder)))


async def stop_embedded_etcd(settings: ManagerSettings) -> None:
    """End an etcd that an earlier manager left running; its data stays."""
    if not (Path(settings.data_dir) / "etcd").is_dir():
        return
    server = embedded_etcd(settings)
    await server.start()  # takes over what runs: only then is it ours to end
    await server.stop()


def _own_id(data_dir: Path) -> str:
    """This manager's id, made on its first start."""
    path = data_dir / "manager-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(".new")
        draft.write_text(new_cluster_id())
        draft.replace(path)
        return path.read_text().strip()


def main() -> None:
    """Entry point: exit status 0 after SIGTERM, 1 for a failure, 2 for bad settings."""
    try:
        settings, only_stop_etcd = read_settings(sys.argv[1:])
    except InvalidArgument as err:
        sys.exit(f"swarmlet-manager: {err}")
    logging.set_up(settings.log_level, "swarmlet-manager")
    return_early()
    shrink_buffers()
    allow_many_files()
    try:
        asyncio.run(_run(settings, only_stop_etcd))
    except* SwarmletError as group:
        sys.exit("swarmlet-manager: " + "; ".join(str(err) for err in _leaves(group)))


async def _run(settings: ManagerSettings, only_stop_etcd: bool) -> None:
    if only_stop_etcd:
        await stop_embedded_etcd(settings)
    else:
        await Manager(settings).run()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    main()
