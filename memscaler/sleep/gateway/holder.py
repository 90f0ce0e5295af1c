"""Who has the place where a gateway is to listen: our own gateway, with the same configuration, or somebody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memscaler.config.gateway_loops import ANY
from memscaler.config.values import Address
from memscaler.daemon import systemd
from memscaler.daemon.servers import option
from memscaler.kernel.processes import Processes
from memscaler.kernel.sock_diag import Row, SockDiag

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_USER, _INODE = 7, 9  # columns of those: proc(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """who: for people. is_ours: the gateway that is checked, as it runs. Of nobody we know of: "somebody"."""

    who: str = "somebody"
    is_ours: bool = False


def holder_of(address: Address, *, listen: str, config: str) -> Holder:
    """listen, config: as --listen and --config of the gateway that is checked, "" for those that were not said."""
    try:
        inodes = {row.inode for row in _listeners(address.port) if _meets(row, address)}
        processes = Processes.look()
    except OSError:
        return Holder()
    owners = processes.owners(inodes, processes.pids)
    pids = sorted(pid for pid in frozenset().union(*owners.values()) if pid != 1) or _of_unit(inodes)
    if not pids:
        return Holder()
    pid, argv = pids[0], processes.argv(pids[0])
    if not _is_gateway(argv):
        return Holder(f"{''.join(each if each.isprintable() else '?' for each in processes.comm(pid))} (pid {pid})")
    name = systemd.GATEWAY if pid == systemd.main_pid(systemd.GATEWAY) else "a gateway"
    same = option(argv, "--listen") == listen and _path(option(argv, "--config")) == _path(config)
    return Holder(f"{name} (pid {pid})" if same else f"{name} (pid {pid}) with another configuration", is_ours=same)


def _listeners(port: int) -> list[Row]:
    diag = SockDiag()
    try:
        return diag.listeners(port)
    finally:
        diag.close()


def _meets(row: Row, address: Address) -> bool:
    local = ipaddress.IPv6Address(row.local)
    text = str(local.ipv4_mapped or local)
    return address.host in ANY or text in ANY or text == address.host or not _is_address(address.host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _of_unit(inodes: Collection[int]) -> list[int]:
    """Who may not look into processes sees at least whose user a socket has: that of the unit is its own alone."""
    pid = systemd.main_pid(systemd.GATEWAY)
    with suppress(OSError):
        if pid and Path(f"/proc/{pid}").stat().st_uid in _users(inodes):
            return [pid]
    return []


def _users(inodes: Collection[int]) -> set[int]:
    """Of these sockets."""
    found = set()
    for table in TABLES:
        with suppress(OSError):
            rows = (line.split() for line in table.read_text().splitlines()[1:])
            found |= {int(row[_USER]) for row in rows if len(row) > _INODE and int(row[_INODE]) in inodes}
    return found


def _is_gateway(argv: Collection[str]) -> bool:
    words = list(argv)
    return "gateway" in words and any(Path(word).name == "memscaler" for word in words[: words.index("gateway")])


def _path(text: str) -> str:
    return str(Path(text).resolve()) if text else ""
