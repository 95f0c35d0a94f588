"""Images made on the spot for a cluster that may have no registry: busybox, and the demo service's."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swarmlet.demo_image import busybox_archive
from swarmlet.errors import NotFound
from swarmlet.local.client import ApiError, call
from swarmlet.local.layout import ClusterLayout, HostLayout

BUSYBOX = "busybox:latest"
#: httpd serves this where a folder is asked for; the page's own text comes from the script.
PAGE = b"""<!doctype html><meta charset="utf-8"><title>Swarmlet demo</title>
<meta http-equiv="refresh" content="0; url=/cgi-bin/index.cgi">See <a href="/cgi-bin/index.cgi">here</a>.
"""
SCRIPT = b"""#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
echo "Hello from replica ${SLOT:-?} on ${WHERE:-?}, container $(hostname)."
"""
DEMO = "swarmlet-demo:latest"


def ensure_images(cluster: ClusterLayout) -> None:
    """busybox:latest and the demo image on every node that lacks them."""
    busybox = find_busybox()
    for name, build in ((BUSYBOX, busybox_archive), (DEMO, demo_archive)):
        lacking = [host for host in cluster.nodes if not _has(host, name)]
        if lacking:
            archive = build(busybox, name)
            with ThreadPoolExecutor(len(lacking)) as pool:
                for done in [pool.submit(_load, host, archive) for host in lacking]:
                    done.result()


def demo_archive(busybox: Path, name: str) -> bytes:
    """A small web server whose page tells which replica answered, and where it runs."""
    config = {"Cmd": ["httpd", "-f", "-p", "80", "-h", "/var/www"], "ExposedPorts": {"80/tcp": {}}}
    files = {"/var/www/index.html": PAGE, "/var/www/cgi-bin/index.cgi": SCRIPT, "/etc/httpd.conf": b"I:index.cgi\n"}
    return busybox_archive(busybox, name, config=config, files=files)


def find_busybox() -> Path:
    """The static busybox of the package busybox-static."""
    found = shutil.which("busybox")
    if found is None:
        raise NotFound("program", "busybox", "busybox is missing: install the package busybox-static")
    return Path(found)


def _has(host: HostLayout, name: str) -> bool:
    try:
        call(host.agent_socket, "GET", f"/images/{name}/json")
    except ApiError as err:
        if err.status == 404:
            return False
        raise
    return True


def _load(host: HostLayout, archive: bytes) -> None:
    call(host.agent_socket, "POST", "/images/load?quiet=1", archive, content_type="application/x-tar", timeout=120)
