"""Compiled seccomp filters, kept: libseccomp needs 13–36 ms per container to compile the same profile again.

crun leaves the compiled filter of each container in its state folder, and takes one from an annotation
(`run.oci.seccomp_bpf_data`). The name of a kept filter covers the profile as resolved for the container's
capabilities, and the runtime's version. runc has no such door and compiles.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from swarmlet.log import get_logger
from swarmlet_agent.runtime import seccomp
from swarmlet_agent.runtime.oci import BPF_ANNOTATION

log = get_logger(__name__)

_DIGEST_BYTES = 32
#: Distinct (profile, capabilities) pairs held in memory, about 12 kB each. More are read from disk again.
_HELD = 16


class FilterCache:
    """folder: where filters are kept between runs; runtime: its name and version."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self._folder = folder
        self._runtime = runtime
        self._held: OrderedDict[str, str] = OrderedDict()

    def prepare(self, config: dict[str, Any], *, crun: bool) -> str | None:
        """Add a kept filter to the configuration. Otherwise the key under which to `keep` what crun compiles."""
        profile = config["linux"].get("seccomp")
        # A listener's socket makes the filter specific to one container.
        if profile is None or not crun or "listenerPath" in profile:
            return None
        key = seccomp.cache_key(profile, self._runtime)
        data = self._find(key)
        if data is None:
            return key
        config["annotations"][BPF_ANNOTATION] = data
        return None

    def keep(self, key: str, compiled: Path) -> None:
        """Store what crun left. A cache that cannot be written only costs time: logged."""
        try:
            data = compiled.read_bytes()
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self._folder / f".{key}"
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
            temporary.rename(self._folder / key)
        except FileNotFoundError:  # this build of crun does not leave it
            return
        except OSError as err:
            log.warning("compiled seccomp filter not kept", reason=err.strerror)
            return
        self._hold(key, data)

    def _find(self, key: str) -> str | None:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        try:
            content = (self._folder / key).read_bytes()
        except FileNotFoundError:
            return None
        data = content[_DIGEST_BYTES:]
        # The file may have been cut off by a power failure; the kernel would refuse half a filter.
        if not data or hashlib.sha256(data).digest() != content[:_DIGEST_BYTES]:
            return None
        return self._hold(key, data)

    def _hold(self, key: str, data: bytes) -> str:
        self._held[key] = base64.b64encode(data).decode()
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return self._held[key]
