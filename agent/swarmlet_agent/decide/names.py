"""Container names: which are allowed, which are made up, and what a reference means."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from random import Random

from swarmlet.errors import InvalidArgument, NotFound

_NAME = re.compile(r"^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
_HEX = re.compile(r"^[0-9a-f]+$")

_MOOD_WORDS = (
    "able amber bold brave brisk calm clear clever cool crisp daring deft eager early fair fancy fast fine fond frank "
    "free fresh gentle glad golden grand happy hardy honest humble jolly keen kind light lively loyal lucky mellow "
    "merry mild modest neat nimble noble patient plucky polite proud quick quiet rapid ready serene sharp shiny silent "
    "smart smooth snug solid steady sunny swift tidy tough vivid warm wise witty young zesty"
)
_BEING_WORDS = (
    "ant badger bat bear beaver bee beetle bison buzzard camel cod crab crane cricket crow curlew deer dolphin dove "
    "duck eagle eel elk falcon ferret finch fox frog gecko goat goose gull hare hawk hedgehog heron hornet ibex ibis "
    "jackdaw jay kestrel kite koala lark lemur lynx magpie marten mole moose moth newt octopus orca osprey otter owl "
    "panda pelican penguin pike plover puffin quail rabbit raven robin salmon seal shrew sparrow squid stork swan "
    "swift tern thrush toad trout turtle vole wasp weasel whale wolf wren yak zebra"
)
_MOODS = tuple(_MOOD_WORDS.split())
_BEINGS = tuple(_BEING_WORDS.split())


def check_name(name: str) -> str:
    """The name without its slash. InvalidArgument, in dockerd's words, if it cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name.removeprefix("/")


def random_name(taken: Collection[str], random: Random) -> str:
    """A friendly name that is not taken; with a number behind it once the plain ones run out."""
    for attempt in range(100):
        name = f"{random.choice(_MOODS)}_{random.choice(_BEINGS)}"
        if attempt > 5:
            name += str(random.randrange(10 ** (1 + attempt // 10)))
        if name not in taken:
            return name
    return f"{random.choice(_MOODS)}_{random.randrange(1 << 64):x}"


def resolve(ref: str, ids: Collection[str], names: Mapping[str, str]) -> str:
    """The id that a client means: a full id, a name with or without slash, or the beginning of one id.

    names: name -> id. NotFound ("No such container: x"), InvalidArgument if several ids begin like that.
    """
    if ref in ids:
        return ref
    name = ref.removeprefix("/")
    if name in names:
        return names[name]
    if _HEX.fullmatch(ref):
        found = [ident for ident in ids if ident.startswith(ref)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidArgument(f"multiple IDs found with provided prefix: {ref}")
    raise NotFound("container", ref)
