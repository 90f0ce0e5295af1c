"""Whether a gateway leads to itself: one answer, for the configuration, for `--check` and for the start."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from memscaler.config.values import Address

ANY = ("0.0.0.0", "::")  # noqa: S104  # only compared
LEADS_ELSEWHERE = "write where the server itself listens: another port, or another machine"
_TO_ITSELF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what connecting there means to Linux


def is_here(host: str) -> bool:
    """Whether its words tell that it is this machine for itself. The same on every machine."""
    plain = _plain(host)
    return plain in ("localhost", "::1") or (plain.startswith("127.") and _is_address(plain))


def is_ours(host: str) -> bool:
    """Whether this address is one of this machine as it is now: connecting there leads back. No packet is sent.

    By the route, not by bind(2), which takes any address where net.ipv4.ip_nonlocal_bind is set.
    """
    if is_here(host):
        return True
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)
            source = str(probe.getsockname()[0])
    except OSError:
        return False
    return _plain(source) == _plain(str(place[0])) or is_here(source)


def leads_back(listen: Address, to: Address, is_own: Callable[[str], bool] = is_here) -> bool:
    """Whether who listens here connects to itself there. is_own: whether a host is this machine."""
    if listen.port != to.port or not listen.port:
        return False
    target = _plain(to.host)
    if listen.host in ANY:
        return is_own(target) and not (":" in target and ":" not in listen.host)  # "::" is of IPv4, too
    return _plain(listen.host) == target


def _plain(host: str) -> str:
    """IPv4 within IPv6 as IPv4; every address as the one that it leads to."""
    if not _is_address(host):
        return host.lower()
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    text = str(mapped or address)
    return _TO_ITSELF.get(text, text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
