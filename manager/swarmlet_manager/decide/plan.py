"""What a decision hands back: writes ready for the store, and when to ask again."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet_manager.state import Op


@dataclass(frozen=True, slots=True)
class Plan:
    """ops: writes to commit together, in order. wake_at: when time alone will bring more to do, ns; None = never.

    notes: reasons worth a log line at DEBUG; decisions themselves never log.
    """

    ops: tuple[Op, ...] = ()
    wake_at: int | None = None
    notes: tuple[str, ...] = ()


NOTHING = Plan()


def earliest(*times: int | None) -> int | None:
    """The first of several wake-up times, None standing for never."""
    known = [at for at in times if at is not None]
    return min(known) if known else None
