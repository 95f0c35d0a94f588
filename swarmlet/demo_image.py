"""Images made on the spot from a static busybox: no registry, no daemon, the same bytes every time.

The archive is what `docker save` writes, so `docker load` (or this project's) takes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_APPLETS_TIMEOUT_S = 10
_PASSWD = (
    b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
    b"nobody:x:65534:65534:nobody:/home:/bin/false\n"
)
_GROUP = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
#: path -> mode. Parents before children.
_FOLDERS = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "sbin": 0o755, "sys": 0o555,
    "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/www": 0o755, "run": 0o755,
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def applets(busybox: Path) -> list[str]:
    """The names this busybox answers to."""
    found = subprocess.run(
        [busybox, "--list"], check=True, capture_output=True, text=True, timeout=_APPLETS_TIMEOUT_S, env={}
    )
    return sorted(set(found.stdout.split()) - {"busybox"})


def busybox_archive(
    busybox: Path, name: str, *, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None,
    modes: Mapping[str, int] | None = None,
) -> bytes:
    """A `docker save` archive of an image with one layer: busybox, its applets, and `files`.

    name is "repo:tag". config is the OCI configuration's `config` object, laid over {"Cmd": ["sh"], PATH}.
    files: absolute or relative path -> content; modes: path -> permission bits (0644 if not given; 0755 below
    /bin and in cgi-bin).
    """
    layer = _layer(busybox.read_bytes(), applets(busybox), files or {}, modes or {})
    document = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"],
            **(config or {}),
        },
        "created": "1970-01-01T00:00:00Z",
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "busybox and its applets"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    raw = json.dumps(document, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(raw).hexdigest()}.json"
    listed = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _tar([
        _file(config_name, raw), _file("layer.tar", layer), _file("manifest.json", json.dumps(listed).encode())
    ])


#: "/" and "/cgi-bin/whoami" of the demo service: which replica answered, and what its environment greets with.
_PAGE = b"""#!/bin/sh
printf 'Content-Type: text/html\\r\\n\\r\\n'
cat <<END
<!doctype html><title>Swarmlet demo</title>
<h1>${GREETING:-Hello from Swarmlet}</h1>
<p>Answered by <b>$(hostname)</b> at $(date -u +%H:%M:%S) UTC.</p>
END
"""
_WHOAMI = b"""#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
hostname
"""
#: As process 1 httpd would not notice SIGTERM; a shell that traps it ends at once.
_SERVE = "trap 'exit 0' TERM INT; httpd -f -p 80 -h /var/www & wait"


def demo_archive(busybox: Path, name: str) -> bytes:
    """The demo web service: busybox httpd on port 80, whose page names the container that answered."""
    return busybox_archive(
        busybox, name,
        config={
            "Cmd": ["sh", "-c", _SERVE], "ExposedPorts": {"80/tcp": {}},
            "Labels": {"org.opencontainers.image.title": "Swarmlet demo"},
        },
        files={"var/www/cgi-bin/index.cgi": _PAGE, "var/www/cgi-bin/whoami": _WHOAMI},
    )


_Member = tuple[tarfile.TarInfo, bytes]


def _layer(
    binary: bytes, names: Sequence[str], files: Mapping[str, bytes], modes: Mapping[str, int]
) -> bytes:
    members = [_folder(path, mode) for path, mode in _FOLDERS.items()]
    known = set(_FOLDERS)
    members.append(_file("bin/busybox", binary, 0o755))
    members += [_link(f"bin/{applet}", "/bin/busybox") for applet in names]
    wanted = {"etc/passwd": _PASSWD, "etc/group": _GROUP, **{path.strip("/"): data for path, data in files.items()}}
    bits = {path.strip("/"): mode for path, mode in modes.items()}
    for path, data in sorted(wanted.items()):
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in known:
                known.add(str(parent))
                members.append(_folder(str(parent), 0o755))
        runs = path.startswith("bin/") or "/cgi-bin/" in path
        members.append(_file(path, data, bits.get(path, 0o755 if runs else 0o644)))
    return _tar(members)


def _folder(path: str, mode: int) -> _Member:
    info = tarfile.TarInfo(path)
    info.type, info.mode = tarfile.DIRTYPE, mode
    return info, b""


def _file(path: str, data: bytes, mode: int = 0o644) -> _Member:
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(data), mode
    return info, data


def _link(path: str, target: str) -> _Member:
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    return info, b""


def _tar(members: Sequence[_Member]) -> bytes:
    """Root-owned, dated 1970: the same input gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
