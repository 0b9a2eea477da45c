"""JSON from files, checked against the types that dataclasses declare."""

from __future__ import annotations

import math
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST_NUMBER = 2**63


def has_type(value: Any, kind: Any) -> bool:
    """Whether a value is of a type such as `dict[str, float | None]`; numbers must be finite."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(has_type(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(has_type(item, parts[0]) for item in value)
    if origin is dict:
        keys = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return keys and all(has_type(item, parts[1]) for item in value.values())
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and -math.inf < value < math.inf and abs(value) < 1e308
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_NUMBER
    return isinstance(value, kind)


def built(kind: type[Any], found: Any) -> Any:
    """A dataclass from a JSON object; entries it does not declare are left out.

    Raises:
        ValueError: an entry is missing or has another type; names it.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{kind.__name__} is not an object")
    hints = get_type_hints(kind)
    values = {name: found[name] for name in hints if name in found}
    for name, value in values.items():
        if not has_type(value, hints[name]):
            raise ValueError(f"{name} has the wrong type")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"an entry is missing ({error})") from error
