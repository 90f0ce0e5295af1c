"""Whom a probe would disturb: which GPUs the configuration governs, and who is connected to their servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from memscaler.core.errors import ConfigError, UsageError
from memscaler.core.watch import HOST
from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.targets import find_named
from memscaler.gpu.inventory import Device, Driver, resolve
from memscaler.kernel.scopes import own_netns
from memscaler.kernel.sock_diag import LIVE, SockDiag


class Unclear(Exception):
    """The configuration does not tell which GPUs it governs; the message says why."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def governed(context: Context, driver: Driver) -> frozenset[str]:
    """UUIDs of the GPUs that may be tried: all where nothing is configured. Raise Unclear, OSError or NoAnswer."""
    examined, settings = context.examined, context.settings
    if examined is None or examined.problems or examined.distrust:
        raise Unclear("the configuration is not good, so which GPUs it governs is not known", "see MS-CONFIG-01 and 02")
    if settings.discover or not settings.watches:
        return frozenset(device.identity.uuid for device in driver.gpus)
    try:
        named = find_named(settings, driver)
    except (ConfigError, UsageError) as error:
        raise Unclear(str(error), "see MS-CONFIG-04") from error
    # those of a watch that names none are where its server has contexts now
    by_contexts = (uuid for found in context.founds() if found.watch is not None for uuid in found.gpus)
    return frozenset(uuid for uuids in named.values() for uuid in uuids) | frozenset(by_contexts)


class Clients:
    """The ports behind which this GPU works, watched or found, and who is connected there now."""

    def __init__(self, ports: Sequence[tuple[str, int, SockDiag]]) -> None:
        self._ports = ports

    @property
    def known(self) -> bool:
        """Whether there is any port behind which it works."""
        return bool(self._ports)

    def connected(self) -> str:
        """The first port with a client, for people; "" if there is none. Raise OSError."""
        for name, port, diag in self._ports:
            if any(row.state in LIVE for row in diag.connections(port)):
                return name
        return ""


@contextlib.contextmanager
def clients_of(device: Device, founds: Iterable[Found], driver: Driver) -> Iterator[Clients]:
    """Raise OSError if a network namespace cannot be looked into."""
    with contextlib.ExitStack() as opened:
        ports = []
        for found in founds:
            if found.port and found.netns_path is not None and _drives(found, device, driver):
                own = found.netns_inode == own_netns()
                diag = SockDiag(None if own else found.netns_path, inode=found.netns_inode)
                opened.callback(diag.close)
                name = str(found.port) if found.scope == str(HOST) else f"{found.port}@{found.scope}"
                ports.append((name, found.port, diag))
        yield Clients(ports)


def _drives(found: Found, device: Device, driver: Driver) -> bool:
    uuid = device.identity.uuid
    if found.watch is None or not found.watch.gpus:
        return uuid in found.gpus
    for spec in found.watch.gpus:
        with contextlib.suppress(UsageError):  # that one is lost; MS-CONFIG-04 tells
            if resolve(spec, driver.gpus, driver.lost).identity.uuid == uuid:
                return True
    return False
