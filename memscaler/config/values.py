"""Words to values: each function takes what a flag, a variable or TOML holds, and raises ValueError with a sentence."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Parse = Callable[[object], object]

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
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


def duration_s(minimum_s: float) -> Callable[[object], float]:
    """A time in seconds: 1.5, "90s", "500ms", "2m", "1h"; at least `minimum_s`."""

    def parse(raw: object) -> float:
        match = _DURATION.fullmatch(str(raw).strip())
        unit = match and (match[2].lower() or "s")
        if isinstance(raw, bool) or match is None or unit not in _UNITS_S:
            raise ValueError(f"{raw!r} is not a time (write 60s, 500ms, 2m or 1.5)")
        seconds = round(float(match[1]) * _UNITS_S[unit], 9)  # whole nanoseconds
        if not minimum_s <= seconds <= _LONGEST_S:
            bound = f"at least {minimum_s:g} s" if seconds < minimum_s else "at most a year"
            raise ValueError(f"{raw!r} is out of range: {bound}")
        return seconds

    return parse


_any_duration_s = duration_s(0)


def duration_or_off_s(raw: object) -> float:
    """A time in seconds; "off" is 0."""
    return 0.0 if raw is False or str(raw).strip().lower() == "off" else _any_duration_s(raw)


def whole(minimum: int, maximum: int) -> Parse:
    """A whole number from `minimum` to `maximum`."""

    def parse(raw: object) -> int:
        digits = str(raw).strip()
        if isinstance(raw, float) or not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"{raw!r} is not a whole number")
        if not minimum <= int(digits) <= maximum:
            raise ValueError(f"{raw!r} is out of range ({minimum}-{maximum})")
        return int(digits)

    return parse


def switch(raw: object) -> bool:
    """A truth value."""
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{raw!r} is neither true nor false")
    return word in _TRUE


def choice(*allowed: str) -> Parse:
    """One of the words."""

    def parse(raw: object) -> str:
        word = str(raw).strip().lower()
        if word not in allowed:
            raise ValueError(f"{raw!r} is none of {', '.join(allowed)}")
        return word

    return parse


def member(kind: type[StrEnum]) -> Parse:
    """A member of the enumeration, by its value."""
    word = choice(*kind)
    return lambda raw: kind(str(word(raw)))


def prefixes(raw: object) -> tuple[str, ...]:
    """Prefixes of addresses, in TOML's list or parted by commas or blanks; in one spelling, and each once."""
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


def path(raw: object) -> Path:
    """An absolute path."""
    if not isinstance(raw, (str, Path)) or not Path(raw).is_absolute() or "\0" in str(raw):
        raise ValueError(f"{str(raw)!r} is not an absolute path")
    return Path(raw)


def path_or_auto(raw: object) -> Path | None:
    """An absolute path; "auto" is None."""
    return None if raw == "auto" else path(raw)


def words(raw: object) -> tuple[str, ...]:
    """A list of words, in TOML or parted by commas."""
    parts = raw if isinstance(raw, (list, tuple)) else str(raw).split(",")
    found = tuple(str(part).strip() for part in parts)
    if not all(found):
        raise ValueError(f"{raw!r} has an empty word")
    return found


def address_or_off(raw: object) -> Address | None:
    """HOST:PORT or [V6]:PORT; "off" is None."""
    text = str(raw).strip()
    if raw is False or text.lower() == "off":
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    sane = bool(bare) and ("[" not in bare) and (":" not in bare or bare != host)
    if not (sane and port.isascii() and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 - the last port
        raise ValueError(f"{text!r} is no address to listen on (write 127.0.0.1:9823, [::1]:9823 or off)")
    return Address(bare, int(port))


def table(raw: object) -> Mapping[str, object]:
    """A TOML table."""
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r} is not a table")
    return raw
