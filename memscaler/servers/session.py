"""One server and the governor beside it, from the first second to the last, and nothing of them afterwards.

    governor started -> it watches the port -> server started -> /health says 200 -> ... -> both ended, the server first

However this process ends, the others do: the server below its keeper (keep.py), the governor by a signal that the
kernel sends it when we are gone, on which it wakes every GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from memscaler.core.errors import MemscalerError
from memscaler.servers import child, health, keep, marks
from memscaler.servers.aside import aside_within
from memscaler.servers.beside import Document, Seen, watch_of
from memscaler.servers.decide import Verdict
from memscaler.servers.health import Door
from memscaler.servers.keep import Kept, User

STOP_S, KEEPER_S = 5.0, 2.0  # for the server to end by itself; for its keeper to see to the rest
GOVERNOR_STOP_S = 30.0  # it wakes GPUs; a driver call may take long
GOVERNOR_START_S = 60.0
FOUND_S = 15.0  # for a governor that discovers servers by itself
LOOK_S, SLOWEST_S = 0.1, 1.0
ASK_S = 3.0
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Ask = Callable[[], Document]


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. governor: the command of our own, None: there is one, or none is wanted.

    ask: the status of the governor that runs, None: there is none to be asked. known: it watches the port already.
    hold: keeps the server's GPUs awake while it loads, which no connection shows; None: nobody who could.
    output: a descriptor for what the server says, None: ours. gpus: UUIDs of those that it was given.
    """

    server: Sequence[str]
    environment: Mapping[str, str]
    door: Door
    user: User | None = None
    governor: Sequence[str] | None = None
    ask: Ask | None = None
    known: bool = False
    hold: Callable[[], AbstractContextManager[object]] | None = None
    output: int | None = None
    gpus: Sequence[str] = ()


class Screen(Protocol):
    """Where it is said how far it is."""

    look_every_s: float | None
    """How often it wants to know the state; None: never."""

    def progress(self, text: str) -> None:
        """What is waited for now; "" for nothing more."""
        ...

    def ready(self, took_s: float) -> None:
        """The server answers."""
        ...

    def watched(self, seen: Seen | None) -> None:
        """What a governor that is not ours does about the port. None: nothing."""
        ...

    def warn(self, text: str) -> None:
        """Something is not as it should be."""
        ...

    def state(self, document: Document) -> None:
        """The governor's status, now and then while it serves."""
        ...

    def saved(self, saved: Saved) -> None:
        """At the end: what it was good for."""
        ...


@dataclass(frozen=True, slots=True)
class Saved:
    """By some GPUs, of all that the governor has counted. parked_s: all of them together. at_s: of the clock."""

    parked_s: float
    energy_j: float
    at_s: float

    def since(self, before: Saved) -> Saved:
        """at_s: how long that was."""
        return Saved(self.parked_s - before.parked_s, self.energy_j - before.energy_j, self.at_s - before.at_s)


class ServerEnded(MemscalerError):
    """The server ended without having been asked."""


class GovernorEnded(MemscalerError):
    """Ours could not begin. Its exit status says why."""

    def __init__(self, code: int) -> None:
        hint = "see what it says, above; --ungoverned serves without it"
        super().__init__(f"the governor ended: {keep.said(code)}", hint=hint)
        self.exit_code = code or self.exit_code


class Session:
    """Used once: `run`."""

    def __init__(self, order: Order, screen: Screen) -> None:
        self._order = order
        self._screen = screen
        self._server: Kept | None = None
        self._governor: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()
        self._mark = marks.new(Path("/"), f"serve-{order.door.port}")
        self._before: Saved | None = None
        self._stop: asyncio.Future[int]
        self._server_over: asyncio.Future[None]
        self._governor_over: asyncio.Future[None]

    async def run(self) -> int:
        """Until a signal or the server's own end. The signal's number. Raise MemscalerError; all has ended then."""
        loop = asyncio.get_running_loop()
        self._stop, self._server_over, self._governor_over = (loop.create_future() for _ in range(3))
        for number in ENDS:
            loop.add_signal_handler(number, self._asked, number)
        try:
            if self._order.governor is not None and not await self._govern(self._order.governor):
                return self._stop.result()
            return await self._serve()
        finally:
            try:
                self._screen.progress("")
                self._held.close()
            finally:
                await self._end()

    # ---- up -----------------------------------------------------------------------------------------------------

    async def _govern(self, command: Sequence[str]) -> bool:
        """Start our governor, and wait until it watches the port. False: told to stop before."""
        self._screen.progress("starting the governor")
        self._governor = _started(command)
        self._on_end(self._governor.pid, self._governor_over)
        end_s = time.monotonic() + GOVERNOR_START_S
        while not await self._is_governed():
            if await self._first(LOOK_S, self._stop, self._governor_over):
                break
            if time.monotonic() > end_s:
                raise MemscalerError("the governor does not start", hint="see its log, above")
        if self._governor_over.done():
            raise GovernorEnded(_code(self._governor.wait()))
        return not self._stop.done()

    async def _is_governed(self) -> bool:
        document = await self._status()
        ours = document is not None and self._governor is not None and document.get("pid") == self._governor.pid
        return ours and document is not None and watch_of(document, self._order.door.port) is not None

    async def _status(self) -> Document | None:
        if self._order.ask is None:
            return None
        try:
            return await asyncio.to_thread(self._order.ask)
        except MemscalerError:
            return None

    async def _serve(self) -> int:
        self._screen.progress("starting the server")
        order, began_s = self._order, time.monotonic()
        await self._hold()
        environment = {**order.environment, marks.VARIABLE: self._mark}
        self._server = Kept(order.server, environment, order.output, user=order.user, stop_s=STOP_S)
        self._on_end(self._server.pid, self._server_over)
        if not await self._is_ready():
            return self._ended()
        self._held.close()
        self._screen.ready(time.monotonic() - began_s)
        self._before = await self._saved()
        await self._see_whether_it_is_found()
        while not await self._first(self._screen.look_every_s, self._stop, self._server_over, self._governor_over):
            if document := await self._told():
                self._screen.state(document)
        if self._governor_over.done() and not (self._stop.done() or self._server_over.done()):
            self._screen.warn(
                "the governor has ended; the server goes on, and its GPUs stay awake. Ctrl-C and serve again to have "
                "it governed"
            )
            await self._first(None, self._stop, self._server_over)
        return self._ended()

    async def _hold(self) -> None:
        if self._order.hold is None:
            return
        hold = self._order.hold()
        with contextlib.suppress(MemscalerError):  # who may not hold loads a model with clocks as they are
            await asyncio.to_thread(hold.__enter__)
            self._held.push(hold)

    async def _is_ready(self) -> bool:
        """False: it has ended before, or we are told to stop."""
        pause_s, began_s = LOOK_S, time.monotonic()
        while True:
            looking = asyncio.ensure_future(health.look(self._order.door))
            await self._first(None, self._stop, self._server_over, looking)
            if self._stop.done() or self._server_over.done():
                looking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await looking
                return False
            answered = looking.result()
            if answered.verdict is Verdict.READY:
                return True
            what = "loading the model" if answered.verdict is Verdict.LOADING else "starting the server"
            self._screen.progress(f"{what}, {time.monotonic() - began_s:.0f} s")
            await self._first(pause_s, self._stop, self._server_over)
            pause_s = min(2 * pause_s, SLOWEST_S)

    async def _see_whether_it_is_found(self) -> None:
        """By a governor that is not ours and did not know the port: it may discover servers by itself."""
        if self._governor is not None or self._order.ask is None:
            return
        end_s = time.monotonic() + FOUND_S
        while True:
            document = await self._status()
            seen = watch_of(document, self._order.door.port) if document else None
            if seen is not None or self._order.known or time.monotonic() > end_s:
                self._screen.watched(seen)
                return
            if await self._first(SLOWEST_S, self._stop, self._server_over):
                return

    async def _told(self) -> Document:
        """The governor's status, {} if it says none in time: one that does not answer holds up no end."""
        if self._order.ask is None:
            return {}
        nothing: Document = {}
        with contextlib.suppress(MemscalerError):
            return await aside_within(ASK_S, self._order.ask, nothing)
        return nothing

    async def _saved(self) -> Saved | None:
        """So far; None if nobody counts."""
        gpus = [gpu for gpu in (await self._told()).get("gpus", ()) if gpu["uuid"] in self._order.gpus]
        sums = [sum(float(gpu[key]) for gpu in gpus) for key in ("parked_s", "energy_saved_j")]
        return Saved(sums[0], sums[1], time.monotonic()) if gpus else None

    def _ended(self) -> int:
        if self._stop.done():
            return self._stop.result()
        code = None if self._server is None else self._server.wait(KEEPER_S)
        raise ServerEnded(f"the server ended: {'killed' if code is None else keep.said(code)}")

    # ---- down ---------------------------------------------------------------------------------------------------

    def _asked(self, number: int) -> None:
        """By a signal. A second one: at once."""
        if not self._stop.done():
            self._stop.set_result(number)
        elif self._server is not None:
            self._server.kill()

    async def _end(self) -> None:
        if self._server is not None:
            self._server.stop()
            await self._first(STOP_S + KEEPER_S, self._server_over)
            self._server.kill()  # where its keeper is stuck
            await self._first(KEEPER_S, self._server_over)
            self._server.close()
            if self._server.lost_its_keeper:
                await child.clear_strays(self._mark)
        if self._before is not None and (now := await self._saved()) is not None:
            self._screen.saved(now.since(self._before))
        if self._governor is not None and self._governor.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._governor.send_signal(signal.SIGTERM)
            if not await self._first(GOVERNOR_STOP_S, self._governor_over):
                self._screen.warn("the governor does not end; its guardian wakes what is parked: memscaler restore")
                self._governor.kill()
            await asyncio.to_thread(self._governor.wait)

    # ---- waiting ------------------------------------------------------------------------------------------------

    def _on_end(self, pid: int, over: asyncio.Future[None]) -> None:
        """Fulfil `over` when this child ends."""
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            if not over.done():
                over.set_result(None)

        loop.add_reader(pidfd, ended)

    @staticmethod
    async def _first(within_s: float | None, *futures: asyncio.Future[Any]) -> bool:
        """Wait for one of them; False if none is there in time."""
        done, _ = await asyncio.wait(futures, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """The governor. It gets SIGTERM when we are gone."""
    return subprocess.Popen(  # noqa: S603  # ourselves
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,  # the keyboard's Ctrl-C is for us; we say in which order things end
        preexec_fn=partial(keep.die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509  # no thread yet
    )


def _code(code: int) -> int:
    return code if code >= 0 else keep.BY_SIGNAL - code
