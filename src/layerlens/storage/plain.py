"""Values read from JSON as annotated types: dataclasses from objects, tuples from lists, each value checked against its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def from_plain(kind: Any, value: Any) -> Any:
    """The value as the annotated type. Fields that the type does not have are left out.

    Raises KeyError if a field without a default is missing, TypeError or ValueError if a value does not fit its annotation.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object for {kind.__name__}, got {type(value).__name__}")
        hints = _hints(kind)
        lacking = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name not in value]
        if lacking:
            raise KeyError(f"{kind.__name__} lacks {', '.join(lacking)}")
        return kind(**{f.name: from_plain(hints[f.name], value[f.name]) for f in fields(kind) if f.name in value})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, got {type(value).__name__}")
        return tuple(from_plain(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, got {type(value).__name__}")
        return value
    if get_origin(kind) in (Union, UnionType):
        return _from_any(get_args(kind), value)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"expected one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (bool, float, int, str) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _from_any(kinds: tuple[Any, ...], value: Any) -> Any:
    """As `from_plain`, of the first type that the value fits."""
    if value is None and NoneType in kinds:
        return None
    refusals: list[str] = []
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return from_plain(kind, value)
        except (KeyError, TypeError, ValueError) as error:
            refusals.append(str(error))
    raise TypeError(" or ".join(refusals))


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    """The types of a class's fields: each annotation is a text, which takes longer to read than the values do."""
    return get_type_hints(kind)
