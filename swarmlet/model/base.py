"""The base of all records that have the shape of a Docker API object.

Field names are Python's; the wire names are Docker's (PascalCase unless a field says otherwise).
The same struct is decoded from JSON at the rim and from MessagePack in the store and on the wire,
so there is one definition of each object and no hand-written mapping.
"""

from __future__ import annotations

from typing import Any

import msgspec


class ApiStruct(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True, gc=False):
    """Frozen, PascalCase on the wire, defaults left out, unknown keys ignored (as Docker does)."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A frozen record of our own: stored and sent as MessagePack, never shown to a client as it is."""


def to_api(value: Any) -> Any:
    """Builtins (dict, list, str, int …) of a record, with its wire names: ready for a JSON encoder."""
    return msgspec.to_builtins(value)


def without_nulls(value: Any) -> Any:
    """Decoded JSON without its null members: Go writes null for empty lists and maps."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
