"""Names for services that were created without one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

_MOOD_WORDS = (
    "agile airy apt basic bouncy bright busy candid cosy dapper dreamy elated even fleet gallant glossy handy hearty "
    "jaunty jovial loyal lucid mighty nifty novel peppy perky placid prime quaint quirky robust rosy sage sleek spry "
    "sturdy sublime tender thrifty tranquil upbeat urbane valiant zippy"
)
_PLACE_WORDS = (
    "bay beach bluff brook canyon cape cliff cove creek dale delta desert dune fen fjord forest glade glen grove gulf "
    "harbor heath hill island isle lagoon lake marsh meadow mesa moor oasis orchard pass peak pond prairie reef ridge "
    "river shore spring steppe summit valley wood"
)
_MOODS, _PLACES = tuple(_MOOD_WORDS.split()), tuple(_PLACE_WORDS.split())


def new_name(is_taken: Callable[[str], bool], rng: Random) -> str:
    """A friendly name that is free; a number makes the difference once the plain ones run out."""
    digits = 0
    while True:
        name = f"{rng.choice(_MOODS)}_{rng.choice(_PLACES)}" + (str(rng.randrange(10**digits)) if digits else "")
        if not is_taken(name):
            return name
        digits += 1
