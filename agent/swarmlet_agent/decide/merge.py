"""What a container's configuration becomes once its image's defaults are merged in (moby daemon/commit.go, oci)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.common import HealthConfig
from swarmlet.model.container import ContainerCreate, ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def merge_image(request: ContainerCreate, image: ImageConfig) -> ContainerCreate:
    """The request with everything it left open taken from the image.

    A given entrypoint drops the image's cmd; a given cmd keeps the image's entrypoint; an entrypoint of one
    empty word means none. InvalidArgument ("no command specified") if nothing is left to run.
    """
    cmd, entrypoint = request.cmd, request.entrypoint
    if not entrypoint:
        cmd = cmd or image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == ("",):
        entrypoint = None
    if not entrypoint and not cmd:
        raise InvalidArgument("no command specified")
    given = {_key(entry) for entry in request.env}
    return replace(
        request,
        cmd=cmd,
        entrypoint=entrypoint,
        user=request.user or image.user,
        env=(*request.env, *(entry for entry in image.env if _key(entry) not in given)),
        labels={**image.labels, **request.labels},
        exposed_ports={**image.exposed_ports, **request.exposed_ports},
        volumes={**image.volumes, **request.volumes},
        working_dir=request.working_dir or image.working_dir,
        stop_signal=request.stop_signal or image.stop_signal,
        healthcheck=merge_health(request.healthcheck, image.healthcheck),
        shell=request.shell or image.shell,
    )


def argv(request: ContainerCreate) -> tuple[str, ...]:
    """The full command line of a merged request."""
    return (*(request.entrypoint or ()), *(request.cmd or ()))


def merge_health(own: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    """The container's health check, field by field over the image's."""
    if own is None or image is None:
        return own or image
    return HealthConfig(
        test=own.test or image.test,
        interval=own.interval or image.interval,
        timeout=own.timeout or image.timeout,
        retries=own.retries or image.retries,
        start_period=own.start_period or image.start_period,
        start_interval=own.start_interval or image.start_interval,
    )


def process_env(configured: Sequence[str], *, hostname: str, tty: bool) -> tuple[str, ...]:
    """The program's environment: the engine's variables, then the configured ones over them.

    A configured name without "=" takes the variable away (`docker run -e PATH`, unset at the client).
    """
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}", *(["TERM=xterm"] if tty else [])]
    return override_env(base, configured)


def override_env(base: Iterable[str], over: Iterable[str]) -> tuple[str, ...]:
    """`base` with each variable of `over` replaced in place, added at the end, or (no "=") dropped."""
    values: dict[str, str | None] = {_key(entry): entry for entry in base}
    for entry in over:
        values[_key(entry)] = entry if "=" in entry else None
    return tuple(entry for entry in values.values() if entry is not None)


def _key(entry: str) -> str:
    return entry.partition("=")[0]
