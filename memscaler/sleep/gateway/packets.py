"""Magic packets of wake-on-LAN: sent over UDP, as a broadcast, by whoever may open a socket. No root, no etherwake.

A broadcast to 255.255.255.255 leaves by one interface: the one that leads to the machine, which the kernel is asked for
(rtnetlink), and told with the packet (IP_PKTINFO). IPv6 has no broadcast: there it goes to all nodes (ff02::1).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from memscaler.config.values import Address

EVERYBODY, ALL_NODES = "255.255.255.255", "ff02::1"
PORT = 9  # discard, by custom
COPIES = 16
IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)

# from linux/rtnetlink.h
_RTM_GETROUTE, _NLM_F_REQUEST, _NLMSG_ERROR = 26, 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_HEADER, _ROUTE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Way:
    """How this machine reaches another one. interface: its index. routed: over a router, where no broadcast goes."""

    interface: int
    routed: bool

    @property
    def name(self) -> str:
        """Of the interface."""
        with suppress(OSError):
            return socket.if_indextoname(self.interface)
        return str(self.interface)


def magic(mac: str, secure_on: str = "") -> bytes:
    """Six times ff, sixteen times the hardware address, and the password if the card wants one."""
    return b"\xff" * 6 + _bytes(mac) * COPIES + (_bytes(secure_on) if secure_on else b"")


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


def way_to(host: str) -> Way:
    """host: an address. Raise OSError if there is no route."""
    address = ipaddress.ip_address(host.partition("%")[0])
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004  # of IP
    packed = address.packed
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    asked = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(1)
        netlink.sendto(_HEADER.pack(_HEADER.size + len(asked), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + asked, (0, 0))
        answer = netlink.recv(1 << 14)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        raise OSError(number, "no route to it")
    found = _attributes(answer[_HEADER.size + _ROUTE.size :])
    if "%" in host:
        return Way(socket.if_nametoindex(host.partition("%")[2]), routed=False)
    return Way(struct.unpack("=I", found[_RTA_OIF])[0], routed=_RTA_GATEWAY in found or _RTA_VIA in found)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {_RTA_OIF: bytes(4)}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def send(packet: bytes, host: str, wake_to: Address | None) -> str:
    """To all who are near this address, or to where the operator says. Where it went. Raise OSError.

    host: the machine's address; wake_to: an address, no name.
    """
    if wake_to is not None:
        _sent(packet, wake_to.host, wake_to.port, None)
        return str(wake_to)
    way = way_to(host)
    everybody = ALL_NODES if ":" in host else EVERYBODY
    _sent(packet, everybody, PORT, way.interface)
    return f"{everybody} on {way.name}"


def _sent(packet: bytes, host: str, port: int, interface: int | None) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
        if family == socket.AF_INET6:
            bare, _, scope = host.partition("%")
            index = interface or (socket.if_nametoindex(scope) if scope else 0)
            out.sendto(packet, (bare, port, 0, index))
            return
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        told = [] if interface is None else [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4x4x", interface))]
        out.sendmsg([packet], told, 0, (host, port))
