"""Member names as Go reads them: the case of letters does not matter.

Docker's own decoder (Go's encoding/json) prefers a member spelled exactly like the field and takes any other case
otherwise. Clients lean on that: docker-py, and Ansible on top of it, send a service's mode as {"replicated": …}.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from msgspec import inspect

#: Deeper than any body of the API; what lies below stays as it is.
_MAX_DEPTH = 32


def spelled(value: Any, kind: Any) -> Any:
    """Decoded JSON with the members of structs renamed to what `kind` calls them; the value itself if all fit.

    Keys of maps (labels, ports, networks) are the client's own words and stay. Of members that differ in case alone
    the exactly spelled one holds, else the last.
    """
    return _spelled(value, _type_of(kind), _MAX_DEPTH)


@lru_cache(maxsize=256)
def _type_of(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


@lru_cache(maxsize=512)
def _fields(struct: type) -> Mapping[str, tuple[str, inspect.Type]]:
    """By name in small letters: the name on the wire and the type."""
    info = _type_of(struct)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in info.fields}


def _spelled(value: Any, kind: inspect.Type, depth: int) -> Any:
    if depth == 0 or not isinstance(value, (dict, list)):
        return value
    if isinstance(kind, inspect.UnionType):
        fitting = [one for one in kind.types if isinstance(one, _SHAPES[type(value)])]
        return _spelled(value, fitting[0], depth) if len(fitting) == 1 else value
    if isinstance(value, list):
        return [_spelled(item, kind.item_type, depth - 1) for item in value] if isinstance(kind, _LISTS) else value
    if isinstance(kind, inspect.DictType):
        return {key: _spelled(item, kind.value_type, depth - 1) for key, item in value.items()}
    if not isinstance(kind, inspect.StructType):
        return value
    fields = _fields(kind.cls)
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        name, inner = fields.get(key.lower(), (key, None))
        if name == key or name not in value:
            renamed[name] = item if inner is None else _spelled(item, inner, depth - 1)
    return renamed


_LISTS = (inspect.ListType, inspect.VarTupleType)
_SHAPES = {dict: (inspect.StructType, inspect.DictType), list: _LISTS}
