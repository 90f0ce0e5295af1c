"""Notices that a supervisor runs a server whose port nobody watches, and has the configuration read anew.

A governor that runs does not see a new description. But the server of it begins to listen, which the scout hears of;
so after each of its looks the supervisors' reports are held against the watches in force. They are only a hint, for a
supervisor is any user's process: what counts is whether the configuration on disk has the port, and it is taken up as
by `memscaler reload`, whole or not at all. What it does not have, or what was refused, is said once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from memscaler.config.schema import Settings
from memscaler.core.errors import MemscalerError
from memscaler.core.servers import RUNNING, Supervised
from memscaler.core.watch import HOST
from memscaler.daemon.reload import Reloader

AGAIN_S = 10.0  # reading the configuration takes milliseconds; a server that is nobody's business may be there for ever
RETRY_S = 600.0  # what was refused and has not changed
UNWATCHED = "sudo memscaler reload, if its configuration describes it; see `memscaler status`"

log = structlog.get_logger()


class Outdated:
    """Used by the scout's thread."""

    def __init__(self, reloader: Reloader, supervised: Callable[[], Supervised]) -> None:
        """supervised: what the supervisors say now."""
        self._reloader = reloader
        self._supervised = supervised
        self._missing: frozenset[int] = frozenset()
        self._again_s = self._retry_s = 0.0
        self._tried: Settings | str | None = None
        self._said: frozenset[int] = frozenset()

    def look(self) -> None:
        """Begin a reload if the configuration on disk watches what the one in force does not."""
        in_force = self._reloader.in_force
        running = {
            each.port: each.name for each, _ in self._supervised().servers if each.port and each.state in RUNNING
        }
        missing = frozenset(running) - _ports(in_force)
        now_s = time.monotonic()
        if not missing or (missing == self._missing and now_s < self._again_s):
            self._missing = missing
            self._said &= missing
            return
        self._missing, self._again_s = missing, now_s + AGAIN_S
        on_disk = self._read()
        described = missing if isinstance(on_disk, str) else missing & _ports(on_disk)
        if described and (on_disk != self._tried or now_s >= self._retry_s):
            self._tried, self._retry_s = on_disk, now_s + RETRY_S
            log.info(
                "config.outdated", ports=sorted(described), why="a supervisor runs a server there; it is read anew"
            )
            self._reloader.plan(Future())
        if not in_force.discover:  # else it is found, if it is a server that can be
            for port in sorted(missing - described - self._said):
                log.warning("server.unwatched", port=port, server=running[port], hint=UNWATCHED)
            self._said = missing - described

    def _read(self) -> Settings | str:
        """What the configuration on disk says; or why it cannot be taken, which the reload then says."""
        try:
            return self._reloader.read()
        except MemscalerError as error:
            return str(error)


def _ports(settings: Settings) -> frozenset[int]:
    return frozenset(watch.port for watch in settings.watches if watch.scope == HOST)
