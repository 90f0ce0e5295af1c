"""The layouts of the BPF maps' keys and values, as declared in bpf/connections.bpf.c (tests/kernel/test_layout.py)."""

from __future__ import annotations

import ipaddress
import struct

WATCH_KEY = struct.Struct("=QII")  # namespace cookie, port
IGNORE_KEY = struct.Struct("=II16s")  # bits, slot, address
IDENTITY = struct.Struct("=QHHI16s16s")  # namespace cookie, local port, peer port, -, local and peer address
CONNECTION = struct.Struct("=QIIQQ")  # since, slot, heard, received and sent when it was
NOT_HEARD, JUDGED, OWED = 0, 1, 2  # enum heard; OWED: with the time instead of what was received
SLOT = struct.Struct("=I")
PORT_WORD, PORT_BITS = struct.Struct("=I"), struct.Struct("=Q")
V4_PREFIX = bytes(10) + b"\xff\xff"
ANY_V4, ANY_V6 = V4_PREFIX + bytes(4), bytes(16)


def address(text: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    parsed = ipaddress.ip_address(text)
    return V4_PREFIX + parsed.packed if isinstance(parsed, ipaddress.IPv4Address) else parsed.packed


def prefix(text: str) -> tuple[int, bytes]:
    """(bits, 16 bytes) of a v4 or v6 prefix."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv4Network):
        return 96 + network.prefixlen, V4_PREFIX + network.network_address.packed
    return network.prefixlen, network.network_address.packed
