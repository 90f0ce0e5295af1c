"""A client from its coming to a connection of its own to the backend, or to its refusal.

While the backend is up, it is connected at once, and nobody looks at what it says (few of those come here).
Else an HTTP client is asked for its request line (what wakes nothing is answered here) and held: no more is read of it,
so what it sends waits in the kernel, which stops it when that is full.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

import structlog

from memscaler.config.stages import Gateway
from memscaler.sleep.gateway import decide, heads
from memscaler.sleep.gateway.backend import LOOP, Backend
from memscaler.sleep.gateway.client import Client
from memscaler.sleep.gateway.connecting import Hindered, Unreachable
from memscaler.sleep.gateway.counts import Counts
from memscaler.sleep.gateway.decide import Admit, State
from memscaler.sleep.gateway.heads import Line, Odd
from memscaler.sleep.gateway.world import End, World

LINE_S = 30.0  # for the first line of a request, while the backend is not up
FIRST_LINE_S = 5.0  # of who is refused before it has said anything
HALF_CLOSED_S = 1.0
PAUSE_S = 0.2  # when this machine is short of resources

_SENTENCES = {
    Admit.ASLEEP: "the server sleeps, and this request does not wake it",
    Admit.WAKING: "the server is being woken, try again in a moment",
    Admit.FULL: "the server is being woken, and too many clients wait already",
}

log = structlog.get_logger()


class Host(Protocol):
    """Where the client came in. Its gateway and backend may be others at any time: the configuration was read anew."""

    gateway: Gateway
    backend: Backend
    counts: Counts
    is_stopping: bool

    @property
    def is_believed(self) -> bool:
        """That the backend is ready still, if it is up."""
        ...

    def may_wake(self, host: str) -> bool:
        """Whether clients from there may wake the backend."""
        ...


class Visit:
    """Of one client."""

    def __init__(self, host: Host, client: Client, world: World) -> None:
        self._host, self._client, self._world = host, client, world
        self._loop = asyncio.get_running_loop()
        self._line: Line | Odd | None = None
        self._may_wake = host.may_wake(client.peer[0])
        self._until_s = self._loop.time() + host.gateway.wait_s

    async def run(self) -> tuple[socket.socket, tuple[End, End]] | None:
        """A connection to the backend, and its ends; None if it was refused, or has gone."""
        came_back = self._world.own.get(self._client.ends)
        if came_back is not None:
            came_back()
            await self._refuse("loop", LOOP)
            return None
        return await self._passed_on()

    async def _passed_on(self) -> tuple[socket.socket, tuple[End, End]] | None:
        while not self._client.gone:
            if self._must_be_asked:
                if not await self._has_asked():
                    return None
                continue  # the backend may be up now
            if self._host.is_stopping:
                await self._refuse("stopping", "the gateway is being stopped, try again in a moment")
                return None
            backend = self._host.backend
            if await self._finds_it_anew(backend):
                continue  # what it wants is to be known now
            admitted = await self._admitted(backend)
            if admitted is Admit.CONNECT:
                connection = await self._connected(backend)
                if connection is not None:
                    return connection, backend.let_go(connection)
                if self._is_late:
                    admitted = Admit.HOLD  # too long
            if admitted is not Admit.CONNECT and (admitted is not Admit.HOLD or not await self._held(backend)):
                await self._turned_away(backend, admitted)
                return None
        return None

    # ---- what it wants ----

    @property
    def _must_be_asked(self) -> bool:
        """A server that sleeps and listens would be woken by a connection: so pollers are told apart before."""
        gateway = self._host.gateway
        if gateway.protocol != "http" or self._line is not None:
            return False
        return tells_apart(gateway) or self._host.backend.standing.state is not State.UP

    async def _finds_it_anew(self, backend: Backend) -> bool:
        """A backend that was up, and is not ready any longer."""
        if not self._may_wake or not backend.is_up or self._host.is_believed:
            return False
        await backend.confirm()
        return not backend.is_up

    async def _has_asked(self) -> bool:
        self._line = await self._client.line(self._loop.time() + LINE_S)
        if isinstance(self._line, Line) and self._line.path in self._host.gateway.no_wake_paths:
            self._may_wake = False
        return self._line is not None

    async def _admitted(self, backend: Backend) -> Admit:
        hold, counts = backend.gateway.hold, self._host.counts
        if self._may_wake and (backend.looks_first or backend.standing.state is not State.UNKNOWN):
            backend.tell(decide.Wanted())
        room = counts.waiting < backend.gateway.most_waiting
        now_s = self._loop.time()
        admitted = decide.admit(backend.standing, now_s, may_wake=self._may_wake, hold=hold, room=room)
        if admitted is Admit.CONNECT and not self._may_wake and await backend.server_sleeps():
            return Admit.ASLEEP
        return admitted

    @property
    def _is_late(self) -> bool:
        return self._loop.time() >= self._until_s

    async def _held(self, backend: Backend) -> bool:
        """Until there are news. False: it is not to be held any longer, or does not want to be."""
        client, counts = self._client, self._host.counts
        # who closes while it is held has lost patience; who half-closes does so with the request, and waits
        has_left = backend.gateway.protocol == "http" and client.ended_after_s > HALF_CLOSED_S
        if self._is_late or has_left:
            client.gone = client.gone or has_left
            return False
        counts.waiting += 1
        backend.watch(client.poke)
        try:
            await client.news(self._until_s)
        finally:
            backend.unwatch(client.poke)
            counts.waiting -= 1
        return True

    # ---- what it gets ----

    async def _connected(self, backend: Backend) -> socket.socket | None:
        try:
            connection = await backend.connect()
        except Unreachable as error:
            backend.tell(decide.Unreachable(str(error)))
            return None
        except Hindered as error:
            self._host.counts.pauses += 1
            log.warning("gateway.hindered", to=str(backend.gateway.to), err=str(error))
            await self._client.news(min(self._until_s, self._loop.time() + PAUSE_S))
            return None
        if self._client.gone:
            backend.close(connection)
            return None
        if backend.standing.state is State.UNKNOWN and not backend.looks_first:
            backend.tell(decide.Ready())
        return connection

    async def _turned_away(self, backend: Backend, admitted: Admit) -> None:
        line, reason = self._line, backend.standing.reason or backend.hindrance
        if self._client.gone:
            return
        if admitted is Admit.HOLD:
            wait_s = backend.gateway.wait_s
            why = f": {reason}" if reason else ""
            await self._refuse("timeout", f"the server did not wake within {wait_s:g} s{why}")
        elif admitted is Admit.ASLEEP and isinstance(line, Line) and _key(line) in backend.remembered:
            self._host.counts.refused["remembered"] += 1
            await self._client.refuse(heads.repeated(backend.remembered[_key(line)], head=line.method == "HEAD"))
        elif admitted is Admit.FAILED and backend.is_loop:
            await self._refuse("loop", LOOP)
        else:
            await self._refuse(admitted.value, _SENTENCES.get(admitted, f"the server could not be woken: {reason}"))

    async def _refuse(self, code: str, sentence: str) -> None:
        gateway = self._host.gateway
        self._host.counts.refused[code] += 1
        log.debug("client.refused", why=code)
        if self._line is None and gateway.protocol == "http":
            self._line = await self._client.line(self._loop.time() + FIRST_LINE_S)
        line, answer = self._line, b""
        if isinstance(line, Line):
            answer = heads.refusal(sentence, code, gateway.retry_after_s, head=line.method == "HEAD")
        await self._client.refuse(answer)


def tells_apart(gateway: Gateway) -> bool:
    """Whether everybody is asked what they want, also while the backend is up."""
    return bool(gateway.protocol == "http" and gateway.server and gateway.no_wake_paths)


def _key(line: Line) -> str:
    """What is remembered is an answer to GET."""
    return line.path if line.method in ("GET", "HEAD") else ""
