"""What is behind a door: looking whether it is ready, and waking it, once for all who want it.

Whether it is ready is asked after a wake, after an attempt to connect that failed, at the very beginning, and when
nothing has shown it for a moment. A wake sends packets as long as the machine is silent, asks the governor as long as
the server is, and looks until both answer, for wake_timeout, or until the governor tells that it cannot be.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

import structlog

from memscaler.config.stages import Gateway
from memscaler.config.values import Address
from memscaler.core.errors import MemscalerError
from memscaler.sleep.gateway import decide, heads, packets
from memscaler.sleep.gateway.connecting import Connector, Hindered, Unreachable, is_address
from memscaler.sleep.gateway.counts import Counts
from memscaler.sleep.gateway.decide import Act, Standing, State
from memscaler.sleep.gateway.governor import NotBack
from memscaler.sleep.gateway.world import World, name_of

LOOK_AGAIN_S = 0.25
LOOK_S = 5.0  # for an answer of the path that says whether it is ready
BELIEVED_S, CONFIRM_S = 1.0, 1.0  # that it is still ready, without a sign of life; for an answer about that
ASK_AGAIN_S = 10.0
LOOK_FAILED_S = 1.0  # while it is left alone: somebody may have brought it back
LOOP_PAUSE_S, TELL_LOOP_AGAIN_S = 2.0, 3600.0  # a look that comes back takes no time: without a pause it would spin
LOOP = "the gateway's backend is the gateway itself"

log = structlog.get_logger()


class _Found(Enum):
    """By a look."""

    READY = "ready"
    LISTENS = "listens"  # and is not ready
    REFUSES = "refuses"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class _Look:
    found: _Found
    reason: str = ""


class Backend(Connector):
    """Of one gateway."""

    def __init__(self, gateway: Gateway, world: World, counts: Counts) -> None:
        super().__init__(gateway, world)
        self.counts = counts
        self._governor, self._dry_run = world.governor, world.dry_run
        self.standing = Standing(since_s=self._loop.time())
        self._proven_s = float("-inf")
        self._confirming: asyncio.Task[None] | None = None
        self._waiters: set[Callable[[], None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.remembered: dict[str, heads.Remembered] = {}
        self.is_loop = False  # the last look came back to us
        self._told_loop_s = float("-inf")
        self.hindrance = ""  # why its governor does not bring it back; the log has the details
        self.log = log.bind(gateway=name_of(gateway))

    # ---- how it stands ----

    @property
    def looks_first(self) -> bool:
        """Before its first client: whether it is ready, if that can be asked, and that client can wait."""
        return self.gateway.hold and bool(self.gateway.ready)

    @property
    def is_up(self) -> bool:
        """Clients are let in."""
        return self.standing.state is State.UP

    @property
    def is_believed(self) -> bool:
        """To be ready still, if it is up: that was seen a moment ago, or nobody is to ask."""
        return not self.looks_first or self._loop.time() - self._proven_s < BELIEVED_S

    def prove(self) -> None:
        """It has just shown that it is as it was."""
        self._proven_s = self._loop.time()

    def doubt(self) -> None:
        """It has broken off: it may have begun anew."""
        self._proven_s = float("-inf")

    def watch(self, changed: Callable[[], None]) -> None:
        """changed: called when those who wait should look again."""
        self._waiters.add(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """No longer."""
        self._waiters.discard(changed)

    def tell(self, event: decide.Event) -> None:
        """What has happened, or is wanted."""
        before = self.standing
        pause_s = max(self.gateway.wake_pause_s, LOOP_PAUSE_S * self.is_loop)
        step = decide.step(before, event, self._loop.time(), pause_s)
        self.standing = step.standing
        if step.standing.state is not before.state:
            self.log.info("backend.changed", state=step.standing.state.value, reason=step.standing.reason)
            if step.standing.state is State.UP:
                self.prove()
        match step.act:
            case Act.BEGIN:
                self._start(self._wake(is_silent=before.state is not State.UNKNOWN))
            case Act.TELL:
                self._wake_waiters()
            case Act.NOTHING:
                pass

    def retire(self) -> None:
        """Another one takes its place: those who wait go there."""
        for task in self._tasks:
            task.cancel()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for changed in tuple(self._waiters):
            changed()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("gateway.mistake", exc_info=task.exception())
            self.tell(decide.GaveUp("memscaler made a mistake, its log has more"))

    # ---- looking ----

    def came_back(self) -> None:
        """Its address is ours by now: a name may lead elsewhere than at the start. Nobody is held for that."""
        self.is_loop = True
        now_s = self._loop.time()
        if now_s - self._told_loop_s >= TELL_LOOP_AGAIN_S:
            self._told_loop_s = now_s
            self.log.error("gateway.loop_found", to=str(self.gateway.to), hint="write another `to`")

    def failed(self, reason: str) -> None:
        """To take what was begun."""
        if self.has_one_address:  # else connect() tries the others
            self.tell(decide.Unreachable(reason))

    async def ask(self, path: str, most: int = heads.MOST_LINE_BYTES, within_s: float = LOOK_S) -> bytes:
        """What it answers, as far as that; b"" if nothing in time. Raise Unreachable or Hindered."""
        connection = await self.connect()
        self._poller.drop(connection.fileno())  # asyncio has it from here on
        answer = b""
        try:
            async with asyncio.timeout(within_s):
                await self._loop.sock_sendall(connection, heads.request(path, str(self.gateway.to)))
                while len(answer) < most and (part := await self._loop.sock_recv(connection, 1 << 14)):
                    answer += part
        except (OSError, TimeoutError):
            pass
        finally:
            self.close(connection)
        return answer

    async def _look(self) -> _Look:
        try:
            if not self.gateway.ready:
                self.close(await self.connect())
                return _Look(_Found.READY)
            status = heads.status_of(await self.ask(self.gateway.ready))
        except Unreachable as error:
            return _Look(_Found.REFUSES if error.refused else _Found.SILENT, str(error))
        except Hindered as error:
            return _Look(_Found.LISTENS, f"this machine is out of resources: {error}")
        if not status:
            return _Look(_Found.LISTENS, f"{self.gateway.ready} is not answered")
        if _is_a_no(status):
            return _Look(_Found.LISTENS, f"{self.gateway.ready} is answered with {status}")
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            # it serves, and has no such path, or wants a key: better than to let nobody in
            self.log.warning("backend.ready_unknown", path=self.gateway.ready, status=status, hint="set `ready`")
        return _Look(_Found.READY)

    async def confirm(self) -> None:
        """Whether it is ready still, once for all who want to know. Only a clear no counts: it may be busy."""
        if self._confirming is None:
            self._confirming = self._start(self._confirm())
        await asyncio.wait({self._confirming})

    async def _confirm(self) -> None:
        try:
            status = heads.status_of(await self.ask(self.gateway.ready, within_s=CONFIRM_S))
        except Unreachable as error:
            self.tell(decide.Unreachable(str(error)))
            return
        except Hindered:
            return
        finally:
            self._confirming = None
        if _is_a_no(status):
            self.tell(decide.Unreachable(f"{self.gateway.ready} is answered with {status}"))
        else:
            self.prove()

    # ---- waking ----

    async def _wake(self, *, is_silent: bool) -> None:
        """is_silent: an attempt to connect has failed a moment ago."""
        await self._try(is_silent=is_silent)
        left_alone = self.standing  # if that has failed; in the pause it may come up by itself
        end_s = 0.0 if self.is_loop else left_alone.until_s - LOOK_FAILED_S
        while self.standing is left_alone and self._loop.time() < end_s:
            await asyncio.sleep(LOOK_FAILED_S)
            begun_s = self._loop.time()
            look = await self._look()
            if look.found is _Found.READY and self.standing is left_alone:
                await self._woke(begun_s, was_asleep=False)

    async def _try(self, *, is_silent: bool) -> None:
        begun_s = self._loop.time()
        end_s = begun_s + self.gateway.wake_timeout_s
        sent, asked_s, counted = 0, float("-inf"), is_silent
        asking: asyncio.Task[decide.GaveUp | None] | None = None
        look = _Look(_Found.SILENT if is_silent else _Found.READY, self.standing.reason)
        try:
            while True:
                now_s = self._loop.time()
                if look.found is _Found.SILENT and self.gateway.mac and now_s - begun_s >= decide.packet_at_s(sent):
                    sent += 1
                    await self._send_packet(sent)
                if look.found in (_Found.SILENT, _Found.REFUSES) and self.gateway.server:
                    idle = asking is None or asking.done()
                    if idle and now_s - asked_s >= ASK_AGAIN_S:
                        asked_s = now_s
                        asking = self._loop.create_task(self._ask_governor(end_s - now_s))
                self.is_loop = False
                look = await self._look()
                if self.is_loop:
                    self.tell(decide.GaveUp(LOOP))
                    return
                if look.found is _Found.READY:
                    await self._woke(begun_s, was_asleep=counted)
                    return
                counted = True
                told = asking.result() if asking is not None and asking.done() else None
                if told is not None and look.found in (_Found.SILENT, _Found.REFUSES):
                    self._failed(told, begun_s)
                    return
                if self._loop.time() >= end_s:
                    self._failed(decide.GaveUp(look.reason), begun_s)
                    return
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            if asking is not None:
                asking.cancel()

    async def _woke(self, begun_s: float, *, was_asleep: bool) -> None:
        took_s = self._loop.time() - begun_s
        if was_asleep:
            self.counts.woke(took_s)
            self.log.info("wake.done", took_s=round(took_s, 3))
        self.tell(decide.Ready())
        for path in self.gateway.no_wake_paths:
            with suppress(Unreachable, Hindered):
                answer = heads.remembered(await self.ask(path, heads.BODY_BYTES))
                if answer is not None:
                    self.remembered[path] = answer

    def _failed(self, gave_up: decide.GaveUp, begun_s: float) -> None:
        self.counts.wakes["failed"] += 1
        self.log.error("wake.failed", reason=gave_up.reason, after_s=round(self._loop.time() - begun_s, 3))
        self.tell(gave_up)

    async def _send_packet(self, nth: int) -> None:
        if self._dry_run:
            self.log.info("wake.would_send_packet", mac=self.gateway.mac, nth=nth)
            return
        try:
            where = packets.send(
                packets.magic(self.gateway.mac, self.gateway.secure_on),
                await self.host(),
                await _numeric(self.gateway.wake_to),
            )
        except (OSError, Unreachable) as error:
            self.log.warning("wake.packet_failed", err=str(error), nth=nth)
            return
        self.counts.packets += 1
        self.log.info("wake.packet_sent", mac=self.gateway.mac, to=where, nth=nth)

    async def _ask_governor(self, within_s: float) -> decide.GaveUp | None:
        """What it knows, if the server does not come back."""
        if self._dry_run:
            self.log.info("wake.would_ask", server=self.gateway.server)
            return None
        asked_s = self._loop.time()
        try:
            await self._governor.wake(self.gateway.server, max(1.0, within_s))
        except NotBack as error:
            self.log.warning("wake.not_back", server=self.gateway.server, err=str(error))
            return decide.GaveUp(heads.without_folders(str(error)), self._loop.time() - asked_s)
        except MemscalerError as error:
            self.hindrance = "its governor could not bring it back"
            self.log.warning("wake.not_asked", server=self.gateway.server, err=str(error))
        else:
            self.hindrance = ""
        return None

    async def server_sleeps(self) -> bool:
        """Whether its server listens, and would be woken by a connection."""
        return bool(self.gateway.server) and await self._governor.is_asleep(self.gateway.server)


def _is_a_no(status: int) -> bool:
    """To whether it is ready."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED


async def _numeric(address: Address | None) -> Address | None:
    """The same with an address for a name. Raise OSError."""
    if address is None or is_address(address.host):
        return address
    found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    return Address(str(found[0][4][0]), address.port)
