"""The gateway as a process: its doors, signals, and a good end.

SIGHUP           reads the configuration anew: doors come and go, and connections stay, those of a door that goes too
SIGTERM, SIGINT  closes the doors, tells those who wait to come back, and lets connections end, for `drain` at most;
                 the second one ends them at once
"""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from memscaler.config.stages import Gateway
from memscaler.config.values import Address
from memscaler.core.errors import ConfigError, MemscalerError
from memscaler.daemon.notify import Notifier
from memscaler.sleep.gateway import loops
from memscaler.sleep.gateway.decide import State
from memscaler.sleep.gateway.door import Door
from memscaler.sleep.gateway.governor import Governor
from memscaler.sleep.gateway.metrics import Metrics
from memscaler.sleep.gateway.poller import Poller
from memscaler.sleep.gateway.world import World, name_of

OTHER_DESCRIPTORS = 128  # than those of connections, each of which has two
LOOK_S = 0.2

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run.

    reread: the gateways as they are described now; may raise MemscalerError. control: the governor's socket.
    drain_s: the longest time for connections to end by themselves.
    """

    gateways: tuple[Gateway, ...]
    reread: Callable[[], tuple[Gateway, ...]]
    control: Path
    metrics: Address | None
    drain_s: float
    dry_run: bool = False


def run(order: Order) -> None:
    """Until a signal comes. Raise MemscalerError for what keeps it from starting."""
    poller = Poller()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(poller)) as runner:
        runner.run(_Gateways(order).run(poller))


class _Gateways:
    """All doors of this process."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._doors: dict[tuple[Address, str], Door] = {}
        self._going: list[Door] = []  # closed, and with connections
        self._asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._notifier = Notifier()
        self._most = _raise_limit()
        self._world: World | None = None

    async def run(self, poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked.put_nowait, number)
        self._world = World(poller, Governor(self._order.control), self._order.dry_run)
        metrics = await self._serve_metrics()
        await loops.refuse(self._order.gateways)
        self._apply(self._order.gateways)
        self._notifier.ready(self._summary())
        log.info("gateway.started", gateways=len(self._doors), dry_run=self._order.dry_run)
        heartbeat = loop.create_task(self._heartbeat())
        while await self._asked.get() is signal.SIGHUP:
            await self._reload()
        self._notifier.stopping()
        await self._end()
        heartbeat.cancel()
        if metrics is not None:
            metrics.stop()
        log.info("gateway.stopped")

    async def _serve_metrics(self) -> Metrics | None:
        if self._order.metrics is None:
            return None
        try:
            metrics = Metrics(self._order.metrics, lambda: list(self._doors.values()))
        except MemscalerError as error:  # whoever holds the port must not decide whether clients get through
            log.error("metrics.failed", err=str(error), hint=error.hint)
            return None
        await metrics.start()
        log.info("metrics.served", address=str(metrics.address))
        return metrics

    def _apply(self, gateways: tuple[Gateway, ...]) -> None:
        """Raise MemscalerError, and change nothing, if a new door cannot be opened."""
        assert self._world is not None  # noqa: S101  # for the type checkers: run() has made it
        wanted = {(each.listen, "" if each.listen.port else each.name): each for each in named(gateways)}
        made: dict[tuple[Address, str], Door] = {}
        try:
            for key, gateway in wanted.items():
                if key not in self._doors:
                    made[key] = Door(gateway, self._world, self._most)
        except MemscalerError:
            for door in made.values():
                door.stop()
            raise
        for key in [key for key in self._doors if key not in wanted]:
            door = self._doors.pop(key)
            door.stop()
            self._going.append(door)
            log.info("gateway.closed", gateway=door.name)
        for key, door in self._doors.items():
            if door.gateway != wanted[key]:
                door.change(wanted[key])
                log.info("gateway.changed", gateway=door.name)
        for key, door in made.items():
            self._doors[key] = door
            door.open()
            log.info("gateway.listening", gateway=door.name, address=str(door.address), to=str(door.gateway.to))

    async def _reload(self) -> None:
        """A mistake in the configuration changes nothing."""
        self._notifier.reloading()
        try:
            gateways = await asyncio.to_thread(self._order.reread)
            if not gateways:
                raise ConfigError("no [[gateway]] is left", hint="stop the gateway instead")
            await loops.refuse(gateways)
            self._apply(gateways)
            log.info("gateway.reloaded", gateways=len(self._doors))
        except MemscalerError as error:
            log.error("reload.refused", err=str(error), hint=error.hint)
        self._notifier.ready(self._summary())

    async def _end(self) -> None:
        doors = [*self._doors.values(), *self._going]
        for door in doors:
            door.stop()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._order.drain_s
        left = sum(len(door.relays) for door in doors)
        log.info("gateway.stopping", connections=left, drain_s=self._order.drain_s)
        while not all(door.is_empty for door in doors) and loop.time() < until_s:
            for door in doors:
                door.end_idle()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    if await self._asked.get() is not signal.SIGHUP:
                        log.warning("gateway.hurried")
                        break
        for door in doors:
            door.abort()
        await asyncio.sleep(0)  # those who were held are told

    def _summary(self) -> str:
        """What `systemctl status` shows."""
        states = [door.backend.standing.state for door in self._doors.values()]
        told = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
        live = sum(door.counts.connections for door in self._doors.values())
        return f"{told}; {live} connections"

    async def _heartbeat(self) -> None:
        """Tells systemd that the loop goes round, if it wants to know."""
        while self._notifier.heartbeat_ns:
            self._notifier.alive(self._summary())
            await asyncio.sleep(self._notifier.heartbeat_ns / 1e9)


def _raise_limit() -> int:
    """As many descriptors as may be had. How many connections those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OTHER_DESCRIPTORS) // 2)


def named(gateways: tuple[Gateway, ...]) -> list[Gateway]:
    """Each with a name of its own: its port, or its whole address where another one has that port."""
    names = [name_of(each) for each in gateways]
    return [
        replace(each, name=name if names.count(name) == 1 else str(each.listen))
        for each, name in zip(gateways, names, strict=True)
    ]
