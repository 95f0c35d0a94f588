"""Networks of a cluster as a node's kernel has them, by what the stock tools list: a line for each thing."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from net_lab import Lab

from swarmlet.model.container import EndpointIPAMConfig, EndpointSettings
from swarmlet.model.ids import new_hex_id
from swarmlet.wire.networking import NetworkInfo
from swarmlet_agent.net.balance.plan import TABLE
from swarmlet_agent.net.types import NetworkWish

HERE, NODES = "203.0.113.1", ("203.0.113.1", "203.0.113.2", "203.0.113.3")
INFOS = {
    name: NetworkInfo(
        id=name * 25, name=f"net-{name}", subnet=f"10.6{place}.0.0/24", gateway=f"10.6{place}.0.1", vni=5000 + place,
        mtu=1450 - 10 * place, internal=name == "c", attachable=name != "c",
    )
    for place, name in enumerate("abc")
}


def listed(*words: str) -> Any:
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def actual(lab: Lab) -> Iterator[str]:
    """Of the networks of the cluster; the world around the host is not looked at."""
    links = {link["ifname"]: link for link in listed("ip", "-j", "link")}
    ports: defaultdict[str, int] = defaultdict(int)
    for name, link in links.items():
        if name.startswith("veth"):
            ports[link.get("master", "nothing")] += 1
        elif name.startswith("ov-"):
            yield f"link {name} mtu {link['mtu']}"
        elif name.startswith("vx-"):
            yield f"link {name} in {link.get('master', 'nothing')} mtu {link['mtu']}"
    yield from (f"{count} containers on {bridge}" for bridge, count in ports.items())
    for entry in listed("bridge", "-j", "fdb", "show"):
        name, mac = entry["ifname"], entry["mac"]
        if name.startswith("vx-") and mac != links[name]["address"]:
            yield f"forward {name} {mac} -> {entry['dst']}" if "dst" in entry else (
                f"forward {entry.get('master')} {mac} by {name}"
            )
    for entry in listed("ip", "-j", "neigh", "show", "nud", "permanent"):
        if entry["dev"].startswith("ov-"):
            yield f"neighbour {entry['dev']} {entry['dst']} {entry['lladdr']}"
    yield from rules()
    for file in (lab.root / "run" / "netns").iterdir():
        yield f"namespace {file.name}"
        yield from (f"container {file.name[:8]} {line}" for line in (*vips(file), *interfaces(file)))
    yield from (f"lease {lease.id} {lease.address}" for lease in lab.networks.leases.held)


def rules() -> Iterator[str]:
    bridges = {info.subnet: f"ov-{info.id[:12]}" for info in INFOS.values()}
    for entry in listed("nft", "-j", "list", "table", "ip", "swl")["nftables"]:
        for body in (entry.get("set"), entry.get("map")):
            for element in body.get("elem", []) if body else ():
                parts = element["concat"] if isinstance(element, dict) and "concat" in element else [element]
                words = [
                    f"{part['prefix']['addr']}/{part['prefix']['len']}" if isinstance(part, dict) else str(part)
                    for part in parts
                ]
                if "swl0" not in words and "172.17.0.0/16" not in words:
                    of = f" of {bridges[words[0]]}" if words[0] in bridges else ""
                    yield f"rule {body['name']} {' '.join(words)}{of}"


def vips(path: Path) -> Iterator[str]:
    """Of one container's namespace: each with the backends that its slots lead to."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for entry in listed("nsenter", f"--net={path}", "nft", "-j", "list", "ruleset")["nftables"]:
        for body in (entry.get("set"), entry.get("map")):
            if body is None or body["table"] != TABLE:
                continue
            for element in body.get("elem", []):
                if body["name"] == "vips":
                    found[element].update()
                elif re.fullmatch(r"s\d+", body["name"]):
                    key, value = element
                    found[key["concat"][0] if isinstance(key, dict) else key].add(value)
    yield from (f"vip {vip} -> {' '.join(sorted(backends)) or 'refused'}" for vip, backends in found.items())


def interfaces(path: Path) -> Iterator[str]:
    for link in listed("nsenter", f"--net={path}", "ip", "-j", "addr"):
        for address in link["addr_info"]:
            if link["ifname"] != "lo" and address["family"] == "inet":
                yield f"has {address['local']} {link['address']} mtu {link['mtu']}"


async def start_task(lab: Lab, places: dict[str, str]) -> str:
    """A container at these addresses by network; its id."""
    ident = new_hex_id()
    await lab.networks.attach(NetworkWish(
        container_id=ident, container_name=ident[:8], hostname=ident[:8], of_task=True, mode=INFOS[min(places)].name,
        endpoints={
            INFOS[name].name: EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address=address))
            for name, address in places.items()
        },
    ))  # fmt: skip
    return ident
