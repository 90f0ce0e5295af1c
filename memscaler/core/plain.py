"""Dataclasses to what JSON can say, and back; what comes back is checked field by field.

For messages between our own processes, which believe each other no more than they must: a wrong type, an unknown word
or a missing field is a ValueError; unknown fields are passed over, a newer process may say more.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar

Made = TypeVar("Made")
_NUMBERS = (int, float)


def to_plain(value: object) -> Any:
    """What json.dumps takes, for dataclasses of text, numbers, enumerations, paths, tuples, sets and mappings."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(each) for key, each in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(to_plain(each) for each in value)
    if isinstance(value, (tuple, list)):
        return [to_plain(each) for each in value]
    return str(value) if hasattr(value, "__fspath__") else value  # a path


def from_plain(kind: type[Made], raw: object) -> Made:
    """A dataclass from what to_plain() made of it. Raise ValueError."""
    made: Made = _dataclass(kind, raw, kind.__name__)
    return made


def _dataclass(kind: Any, raw: object, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: not an object")
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in raw:
            given[each.name] = _value(hints[each.name], raw[each.name], f"{where}.{each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where}.{each.name} is missing")
    return kind(**given)


_known: dict[Any, dict[str, Any]] = {}


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _known:
        _known[kind] = typing.get_type_hints(kind)
    return _known[kind]


def _value(hint: Any, raw: object, where: str) -> Any:  # noqa: PLR0911  # one line for each kind of type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if origin in (types.UnionType, typing.Union):
        return _either(inner, raw, where)
    if origin is Literal:
        if raw in inner:
            return raw
        raise ValueError(f"{where}: {raw!r} is none of {inner}")
    if origin in (tuple, frozenset):
        return _several(origin, inner, raw, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(raw, Mapping):
            raise ValueError(f"{where}: not an object")
        return {_key(inner[0], key, where): _value(inner[1], each, f"{where}.{key}") for key, each in raw.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass(hint, raw, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(raw)  # raises ValueError
    return _simple(hint, raw, where)


def _key(hint: Any, raw: object, where: str) -> Any:
    """JSON's are text."""
    return int(raw) if hint is int and isinstance(raw, str) else _value(hint, raw, where)


def _either(inner: tuple[Any, ...], raw: object, where: str) -> Any:
    if raw is None and types.NoneType in inner:
        return None
    rest = [each for each in inner if each is not types.NoneType]
    for each in rest[:-1]:
        try:
            return _value(each, raw, where)
        except ValueError:
            continue
    return _value(rest[-1], raw, where)


def _several(origin: Any, inner: tuple[Any, ...], raw: object, where: str) -> Any:
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"{where}: not a list")
    if origin is tuple and Ellipsis not in inner:
        if len(raw) != len(inner):
            raise ValueError(f"{where}: {len(raw)} values instead of {len(inner)}")
        return tuple(_value(each, value, where) for each, value in zip(inner, raw, strict=True))
    return origin(_value(inner[0], value, where) for value in raw)


def _simple(hint: Any, raw: Any, where: str) -> Any:
    if hint is float and isinstance(raw, _NUMBERS) and not isinstance(raw, bool):
        return float(raw)
    if hasattr(hint, "__fspath__") and isinstance(raw, (str, hint)):
        return hint(raw)
    if isinstance(raw, hint) and (hint is bool or not isinstance(raw, bool)):
        return raw
    raise ValueError(f"{where}: {raw!r} is no {hint.__name__}")
