"""Words to values: each kind takes what a flag, a variable or TOML holds, and raises ValueError with a sentence."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from memscaler.config.near import meant, nearest

Value = TypeVar("Value")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_ANY_DURATION = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*([NnUuMm]?[Ss]|[Mm]|[Mm][Ii][Nn]|[Hh]|[Dd])?\s*)+$"},
    ]
}
LIST = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}
_LONGEST_S = 366 * 86400.0
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 as a socket of IPv6 shows it


@dataclass(frozen=True, slots=True)
class Address:
    """Where the metrics listen. Port 0: the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Kind(Generic[Value]):
    """What a setting may be.

    parse: reads it. schema: what may stand in the file, as JSON Schema. write: what to write in the file for a value.
    """

    parse: Callable[[object], Value]
    schema: Mapping[str, object]
    write: Callable[[Value], object] = str

    def __call__(self, raw: object) -> Value:
        """Raise ValueError with a sentence."""
        return self.parse(raw)


def duration_s(minimum_s: float, longest_s: float = _LONGEST_S) -> Kind[float]:
    """A time in seconds: 1.5, "90s", "500ms", "2m", "1h30m", "2d"; at least `minimum_s`."""

    def parse(raw: object) -> float:
        seconds = _seconds(str(raw).strip())
        if isinstance(raw, bool) or seconds is None:
            raise ValueError(f"{raw!r} is not a time (write 60s, 500ms, 2m or 1.5)")
        if not minimum_s <= seconds <= longest_s:
            bound = f"at least {minimum_s:g} s" if seconds < minimum_s else "at most a year"
            raise ValueError(f"{raw!r} is out of range: {bound}")
        return seconds

    return Kind(parse, _ANY_DURATION, write_duration)


def _seconds(text: str) -> float | None:
    """Amounts with units, the larger before the smaller, or one number without; None: it is no such thing."""
    seconds, at, last_s = 0.0, 0, float("inf")
    while at < len(text) or not at:
        amount = _AMOUNT.match(text, at)
        unit = amount and amount[2].lower()
        if amount is None or not (unit or amount[0] == text):
            return None
        size_s = _UNITS_S.get(unit or "s", last_s)
        if size_s >= last_s:  # unknown, twice, or in the wrong order
            return None
        seconds, at, last_s = seconds + float(amount[1]) * size_s, amount.end(), size_s
    return round(seconds, 9)  # whole nanoseconds


def write_duration(seconds: float) -> str:
    """In the largest unit that makes it a whole number; a minute is 60s."""
    left_ns = round(seconds * 1e9)
    for unit in ("d", "h", "m", "s", "ms", "us"):
        amount, rest_ns = divmod(left_ns, round(_UNITS_S[unit] * 1e9))
        if amount and not rest_ns and (unit, amount) != ("m", 1):
            return f"{amount}{unit}"
    return f"{left_ns}ns" if left_ns else "0s"


def _duration_or_off_s(raw: object) -> float:
    return 0.0 if raw is False or str(raw).strip().lower() == "off" else _any_duration_s(raw)


_any_duration_s = duration_s(0)
duration_or_off_s = Kind(
    _duration_or_off_s,
    {"anyOf": [*_ANY_DURATION["anyOf"], {"enum": ["off", False]}]},
    lambda seconds: write_duration(seconds) if seconds else "off",
)
"""A time in seconds; "off" is 0."""


def duration_or_auto_s(minimum_s: float) -> Kind[float]:
    """A time in seconds of at least `minimum_s`, which is above zero; "auto" is 0."""
    some = duration_s(minimum_s)
    schema = {"anyOf": [*_ANY_DURATION["anyOf"], {"enum": ["auto"]}]}

    def parse(raw: object) -> float:
        if str(raw).strip().lower() == "auto":
            return 0.0
        if isinstance(raw, bool) or _seconds(str(raw).strip()) is None:
            raise ValueError(f'{raw!r} is not a time (write 60s, 500ms, 2m or 1.5), nor "auto"')
        return some(raw)

    return Kind(parse, schema, lambda seconds: write_duration(seconds) if seconds else "auto")


def whole(minimum: int, maximum: int) -> Kind[int]:
    """A whole number from `minimum` to `maximum`."""

    def parse(raw: object) -> int:
        digits = str(raw).strip()
        if isinstance(raw, float) or not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"{raw!r} is not a whole number from {minimum} to {maximum}")
        if not minimum <= int(digits) <= maximum:
            raise ValueError(f"{raw!r} is out of range ({minimum}-{maximum})")
        return int(digits)

    return Kind(parse, {"type": "integer", "minimum": minimum, "maximum": maximum}, int)


def _switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{raw!r} is neither true nor false")
    return word in _TRUE


switch = Kind(_switch, {"type": "boolean"}, bool)
"""A truth value."""


def choice(*allowed: str) -> Kind[str]:
    """One of the words."""

    def parse(raw: object) -> str:
        word = str(raw).strip().lower()
        if word not in allowed:
            near = nearest(word, allowed)
            raise ValueError(f"{raw!r} is none of {', '.join(allowed)}{meant(near and repr(near))}")
        return word

    return Kind(parse, {"enum": list(allowed)})


def member(kind: type[StrEnum]) -> Kind[Any]:
    """A member of the enumeration, by its value."""
    word = choice(*kind)
    return Kind(lambda raw: kind(word(raw)), word.schema)


def _prefixes(raw: object) -> tuple[str, ...]:
    texts = raw if isinstance(raw, (list, tuple)) else [raw]
    found = [_prefix(word) for text in texts for word in re.split(r"[,\s]+", str(text)) if word]
    v4 = ipaddress.collapse_addresses(each for each in found if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in found if isinstance(each, ipaddress.IPv6Network))
    together: list[Network] = [*v4, *v6]
    for network in together:
        if network.prefixlen == 0:
            listed = ", ".join(map(str, found))
            raise ValueError(
                f"{listed}: that is every address of IPv{network.version}, no such client would ever count"
            )
    return tuple(dict.fromkeys(map(str, found)))


def _prefix(word: str) -> Network:
    """IPv4 within IPv6 becomes IPv4. Raise ValueError for what is no prefix, or ignores IPv4 as a by-catch."""
    if "%" in word:
        raise ValueError(f"{word!r} names an interface (write the address alone, {word.partition('%')[0]})")
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ValueError(f"{word!r} is no address or prefix (write 127.0.0.1, 10.0.0.0/8 or fd00::/8)") from None
    if isinstance(network, ipaddress.IPv4Network) or network.prefixlen == 0:
        return network
    if network.subnet_of(_MAPPED):
        mapped = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    if network.supernet_of(_MAPPED):
        raise ValueError(f"{word!r} has every address of IPv4 in it (::ffff:0:0/96): no such client would ever count")
    return network


prefixes = Kind(_prefixes, LIST, list)
"""Prefixes of addresses, in TOML's list or parted by commas or blanks; in one spelling, and each once."""


def _path(raw: object) -> Path:
    if not isinstance(raw, (str, Path)) or not Path(raw).is_absolute() or "\0" in str(raw):
        raise ValueError(f"{str(raw)!r} is not an absolute path")
    return Path(raw)


path = Kind(_path, {"type": "string", "pattern": "^/"})
"""An absolute path."""


path_or_auto: Kind[Path | None] = Kind(
    lambda raw: None if raw == "auto" else _path(raw),
    {"type": "string", "pattern": "^(/.*|auto)$"},
    lambda value: str(value or "auto"),
)
"""An absolute path; "auto" is None."""


def _labels(raw: object) -> tuple[tuple[str, str], ...]:
    pairs = raw.items() if isinstance(raw, dict) else (_label(word) for word in str(raw).split(","))
    found: dict[str, str] = {}
    for name, value in pairs:
        if not _LABEL.fullmatch(name) or name in _LABELS_OF_OTHERS:
            others = f"; {', '.join(_LABELS_OF_OTHERS)} are given by others"
            raise ValueError(f"{name!r} can be no label (letters, digits and _, no __ in front{others})")
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_LABEL or not value.isprintable():
            raise ValueError(f"label {name}: {value!r} is no text of 1 to {_LONGEST_LABEL} characters")
        found[name] = value
    if len(found) > _MOST_LABELS:
        raise ValueError(f"more than {_MOST_LABELS} labels")
    return tuple(sorted(found.items()))


def _label(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is no label (write site=berlin,role=chat)")
    return name.strip(), value.strip()


_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,63}")
_LABELS_OF_OTHERS = ("hostname", "instance", "job")
_LONGEST_LABEL, _MOST_LABELS = 256, 32
labels = Kind(
    _labels,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{_LABEL.pattern}$", "not": {"enum": list(_LABELS_OF_OTHERS)}},
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": _LONGEST_LABEL},
        "maxProperties": _MOST_LABELS,
    },
    dict,
)
"""Names and texts, in a table of TOML or as a=b,c=d; sorted by name."""


def _words(raw: object) -> tuple[str, ...]:
    parts = raw if isinstance(raw, (list, tuple)) else str(raw).split(",")
    found = tuple(str(part).strip() for part in parts)
    if not all(found):
        raise ValueError(f"{raw!r} has an empty word")
    return found


words = Kind(_words, LIST, list)
"""A list of words, in TOML or parted by commas."""


def _address_or_off(raw: object) -> Address | None:
    text = str(raw).strip()
    if raw is False or text.lower() == "off":
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    sane = bool(bare) and ("[" not in bare) and (":" not in bare or bare != host)
    if not (sane and port.isascii() and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 - the last port
        raise ValueError(f"{text!r} is no address to listen on (write 127.0.0.1:9823, [::1]:9823 or off)")
    return Address(bare, int(port))


address_or_off = Kind(
    _address_or_off,
    {"anyOf": [{"type": "string", "pattern": "^.+:[0-9]+$|^[Oo][Ff][Ff]$"}, {"const": False}]},
    lambda value: str(value or "off"),
)
"""HOST:PORT or [V6]:PORT; "off" is None."""


def table(name: str, raw: object) -> Mapping[str, object]:
    """A TOML table; name: the key that it is behind."""
    if not isinstance(raw, dict):
        raise ValueError(f"{name}: {raw!r} is not a table")
    return raw
