"""What this engine has of its own, by Docker's kinds of plugins: for `docker info` and for the scheduler."""

from __future__ import annotations

from swarmlet_agent.decide.log_options import LOG_DRIVERS

#: Sorted, as dockerd has them; the log driver "none" is none.
PLUGINS: dict[str, tuple[str, ...]] = {
    "Volume": ("local",),
    "Network": ("bridge", "host", "ipvlan", "macvlan", "null", "overlay"),
    "Log": tuple(sorted(set(LOG_DRIVERS) - {"none"})),
}
