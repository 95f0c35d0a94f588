"""The manager's settings: flags over environment (SWARMLET_…) over a TOML file over these defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.config import EtcdSettings, TlsFiles, load
from swarmlet.engine_api.hosts import parse_hosts
from swarmlet.errors import InvalidArgument

DEFAULT_PORT = 2377


class ManagerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where this manager keeps its things and where it listens."""

    data_dir: str = "/var/lib/swarmlet/manager"
    run_dir: str = "/run/swarmlet"
    advertise_addr: str = ""  # IP address under which agents and other managers reach this one; needed
    listen_addr: str = "0.0.0.0"
    port: int = DEFAULT_PORT
    socket_group: str = ""  # group that may use the unix socket; "" = root alone
    hosts: tuple[str, ...] = ()  # "tcp://ADDRESS:PORT", where docker clients find the cluster as well
    hosts_tls: TlsFiles = TlsFiles()  # needed for addresses that are not loopback
    log_level: str = "info"
    etcd: EtcdSettings = EtcdSettings()
    stop_etcd: bool = False  # end the embedded etcd together with the manager

    @property
    def advertised(self) -> str:
        """ "host:port" as others dial it."""
        host = f"[{self.advertise_addr}]" if ":" in self.advertise_addr else self.advertise_addr
        return f"{host}:{self.port}"


def read_settings(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[ManagerSettings, bool]:
    """(settings, whether only the embedded etcd is to be ended). InvalidArgument names what is wrong."""
    given = _parser().parse_args(argv)
    settings = load(ManagerSettings, given.config, os.environ if environ is None else environ)
    flags: dict[str, Any] = {
        name: value
        for name in ("data_dir", "run_dir", "advertise_addr", "listen_addr", "port", "socket_group", "log_level")
        if (value := getattr(given, name)) is not None
    }
    if given.stop_etcd:
        flags["stop_etcd"] = True
    if given.host:
        flags["hosts"] = tuple(given.host)
    hosts_tls = {
        name: value
        for name, value in (("ca", given.hosts_ca), ("cert", given.hosts_cert), ("key", given.hosts_key))
        if value is not None
    }
    etcd = {
        name: value
        for name, value in (
            ("endpoints", tuple(given.etcd) if given.etcd else None), ("ca", given.etcd_ca),
            ("cert", given.etcd_cert), ("key", given.etcd_key),
        )
        if value is not None
    }
    settings = msgspec.structs.replace(
        settings, **flags, etcd=msgspec.structs.replace(settings.etcd, **etcd),
        hosts_tls=msgspec.structs.replace(settings.hosts_tls, **hosts_tls),
    )
    _check(settings, given.only_stop_etcd)
    return settings, given.only_stop_etcd


def _check(settings: ManagerSettings, only_stop_etcd: bool) -> None:
    if not settings.advertise_addr and not only_stop_etcd:
        raise InvalidArgument("advertise_addr is needed: the IP address under which agents reach this manager")
    if not 0 < settings.port < 65536:
        raise InvalidArgument(f"invalid port {settings.port}: expected 1 to 65535")
    parse_hosts(settings.hosts, settings.hosts_tls)
    files = (settings.etcd.ca, settings.etcd.cert, settings.etcd.key)
    if any(point.startswith("https:") for point in settings.etcd.endpoints) and not all(files):
        raise InvalidArgument("https endpoints of etcd need --etcd-ca, --etcd-cert and --etcd-key")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swarmlet-manager",
        description="Keeps a cluster's state in etcd, schedules its tasks and serves its Docker Engine API.",
    )
    parser.add_argument("--config", type=Path, help="TOML file with the settings of the same names")
    parser.add_argument("--data-dir", help="where this manager keeps its id, its key, and the embedded etcd its data")
    parser.add_argument("--run-dir", help="where manager.sock is made")
    parser.add_argument("--advertise-addr", help="IP address under which agents reach this manager")
    parser.add_argument("--listen-addr", help="address to listen on (0.0.0.0)")
    parser.add_argument("--port", type=int, help=f"TLS port ({DEFAULT_PORT})")
    parser.add_argument("--socket-group", help="group that may use the unix socket")
    parser.add_argument(
        "--host", action="append", metavar="tcp://ADDRESS:PORT", help="listen there for docker clients (may repeat)"
    )
    parser.add_argument("--hosts-ca", metavar="FILE", help="CA of the docker clients that come by TCP")
    parser.add_argument("--hosts-cert", metavar="FILE")
    parser.add_argument("--hosts-key", metavar="FILE")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--etcd", action="append", metavar="URL", help="use this etcd instead (may repeat)")
    parser.add_argument("--etcd-ca", metavar="FILE")
    parser.add_argument("--etcd-cert", metavar="FILE")
    parser.add_argument("--etcd-key", metavar="FILE")
    parser.add_argument("--stop-etcd", action="store_true", help="end the embedded etcd together with the manager")
    parser.add_argument("--only-stop-etcd", action="store_true", help="end an embedded etcd that was left running")
    return parser
