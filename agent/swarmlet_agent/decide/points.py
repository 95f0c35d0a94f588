"""Mount points: where a container's mounts come from and where they appear, as inspect shows them."""

from __future__ import annotations

from swarmlet.model.base import Record


class MountPoint(Record, frozen=True, kw_only=True):
    """One mount of a container, resolved (Engine API: MountPoint, plus what the engine needs at each start).

    type bind: `source` is a host path. volume: `name` and, once made, `source`, its folder. image: `name`, the image's
    id, and, once mounted, `source`. tmpfs: neither.
    options: mount(8) words for a tmpfs ("size=1m", "noexec"); recursive/read-only for binds are in the other fields.
    """

    type: str
    destination: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    options: tuple[str, ...] = ()
    #: Fill an empty volume with what the image has at the destination.
    copy_up: bool = False
    #: Make a missing host folder (`-v /missing:/x` does, `--mount type=bind` does not).
    make_source: bool = False
    #: `propagation` is rslave because the source is the engine's own, not because a client asked: a source that cannot
    #: do it will do.
    own_propagation: bool = False
    non_recursive: bool = False
    #: How far read-only reaches into mounts below it: "" as far as the kernel can, "off" only itself, "force" all.
    read_only_below: str = ""
    #: What of the volume or image is mounted; "" the whole.
    subpath: str = ""
    #: A volume without a name of its own: it goes with the container on `rm -v` and `run --rm`.
    anonymous: bool = False
