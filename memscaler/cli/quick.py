"""Options and arguments without pydantic.

Recent versions of typer load it to convert what they were given: that takes longer than everything else that a small
command does. Ours are words, switches, paths and lists of words, for which nobody needs it. Anything else is left to
typer, and so is everything in versions of it that know no get_runtime_param: they have no pydantic either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperOption

_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {str: str, bool: bool, Path: Path, list[str]: list}


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What typer calls a runtime parameter."""

    convert: Callable[[Any], Any]

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the command wants it; None: it was not given."""
        del ctx
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        return self.convert(value)


def convert_quickly() -> None:
    """From here on, in the whole process."""
    for kind in (TyperOption, TyperArgument):
        slowly = getattr(kind, "get_runtime_param", None)
        if slowly is not None:
            kind.get_runtime_param = _quickly(slowly)  # type: ignore[assignment,method-assign]


def _quickly(slowly: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get_runtime_param(param: Any) -> Any:
        convert = _CONVERSIONS.get(param.type_descriptor.annotation)
        return slowly(param) if convert is None else _Conversion(convert)

    return get_runtime_param
