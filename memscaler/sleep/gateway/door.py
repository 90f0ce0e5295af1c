"""A door: a listening socket, the clients that come in, and the relays of those that were passed on to the backend."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import select
import socket
import time

import structlog

from memscaler.config.stages import Gateway
from memscaler.config.values import Address
from memscaler.sleep.gateway import decide
from memscaler.sleep.gateway.backend import Backend
from memscaler.sleep.gateway.client import Client
from memscaler.sleep.gateway.counts import Counts
from memscaler.sleep.gateway.decide import State
from memscaler.sleep.gateway.listening import listener
from memscaler.sleep.gateway.relay import ABANDONED_S, Relay, is_stalled, outstanding
from memscaler.sleep.gateway.visit import Visit, tells_apart
from memscaler.sleep.gateway.world import End, World, end_of, name_of

AT_ONCE = 64  # clients that are accepted in one turn
PAUSE_S = 0.2  # of accepting, when descriptors are short
SWEEP_S = 1.0
IDLE_S = 5.0  # at the end: an HTTP connection that was quiet for so long after an answer has nothing under way
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger()


class Door:
    """Of one gateway. Belongs to one event loop."""

    def __init__(self, gateway: Gateway, world: World, most: int) -> None:
        """most: connections at the same time. Raise MemscalerError if it cannot listen."""
        self.gateway = gateway
        self.counts = Counts()
        self.relays: set[Relay] = set()
        self._world, self._most = world, most
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = listener(gateway.listen)
        self._accepting = self.is_stopping = False
        self._proofs = 0  # relays that live as their backend does
        self._waiting: dict[Relay, float] = {}  # for their connection to the backend, until when
        self._timer: asyncio.TimerHandle | None = None
        self._held: dict[Client, asyncio.Task[None]] = {}
        self._looked_at: set[Relay] = set()
        self._stalled: set[Relay] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.backend = Backend(gateway, world, self.counts)
        self._no_wake_from = _networks(gateway)

    @property
    def name(self) -> str:
        """For people."""
        return name_of(self.gateway)

    @property
    def address(self) -> Address:
        """Where it listens; the real port if the system was to choose."""
        if self._listener is None:
            return self.gateway.listen
        return Address(*self._listener.getsockname()[:2])

    def open(self) -> None:
        """Let clients in."""
        if self._listener is not None and not self._accepting and not self.is_stopping:
            self._accepting = True
            self._world.poller.add(self._listener.fileno(), self._accept, select.EPOLLIN)

    def change(self, gateway: Gateway) -> None:
        """Other settings, the same place. Connections stay; those who wait go by the new ones."""
        before, self.gateway = self.backend, gateway
        self.backend = Backend(gateway, self._world, self.counts)
        self._no_wake_from = _networks(gateway)
        for relay in self.relays:
            relay.proves = False  # of another backend, perhaps
        self._proofs = 0
        before.retire()

    def stop(self) -> None:
        """Nobody more. Connections stay; those who wait are told to come back."""
        self.is_stopping = True
        if self._listener is not None:
            self._pause()
            self._listener.close()
            self._listener = None
        for client in self._held:
            client.poke()

    def end_idle(self) -> None:
        """At the end: HTTP connections with nothing under way."""
        if self.gateway.protocol == "http":
            now_s = time.monotonic()
            for relay in tuple(self.relays):
                if not relay.asks and now_s - relay.moved_s >= IDLE_S:
                    relay.end()

    def abort(self) -> None:
        """End everything at once."""
        self.backend.retire()
        for task in self._held.values():
            task.cancel()
        for relay in tuple(self.relays):
            relay.abort()
        for timer in (self._sweeper, self._timer):
            if timer is not None:
                timer.cancel()

    @property
    def is_empty(self) -> bool:
        """Nobody is connected."""
        return not self.relays and not self._held

    def passed_bytes(self) -> tuple[int, int]:
        """To the backend and to clients, since the start."""
        up = self.counts.bytes_up + sum(relay.up.total for relay in self.relays)
        return up, self.counts.bytes_down + sum(relay.down.total for relay in self.relays)

    # ---- accepting ----

    def _accept(self, _events: int) -> None:
        for _ in range(AT_ONCE):
            if self._listener is None or self.counts.connections >= self._most:
                self._pause()  # the others wait in the backlog; whoever goes opens again
                return
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._short(error)
                return
            self._welcome(connection, peer)

    def _short(self, error: OSError) -> None:
        """The listener goes on, after a moment, whatever it was."""
        if error.errno not in _SHORT:
            log.error("gateway.accept_failed", gateway=self.name, err=str(error))
        elif not self.counts.pauses % 100:
            log.warning("gateway.accept_paused", gateway=self.name, err=str(error), hint="raise LimitNOFILE")
        self.counts.pauses += 1
        self._pause()
        self._loop.call_later(PAUSE_S, self.open)

    def _pause(self) -> None:
        if self._accepting and self._listener is not None:
            self._world.poller.drop(self._listener.fileno())
        self._accepting = False

    def _welcome(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        connection.setblocking(False)
        self.counts.accepted += 1
        self.counts.connections += 1
        end = end_of(peer)
        if not self._pass_on(connection, end):
            self._receive(connection, end)

    def _pass_on(self, connection: socket.socket, peer: End) -> bool:
        """To a backend that is up: no task, and nobody looks at what it says. False: there is more to find out."""
        backend, gateway, own = self.backend, self.gateway, self._world.own
        if backend.standing.state is not State.UP or self._no_wake_from or tells_apart(gateway) or not self.is_believed:
            return False
        if own and (peer, end_of(connection.getsockname())) in own:
            return False
        begun = backend.begin()
        if begun is None:
            return False
        relay = Relay(self._world.poller, connection, begun[0], self, begun[1], peer)
        self._count_in(relay)
        self._waiting[relay] = time.monotonic() + gateway.connect_timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(gateway.connect_timeout_s / 4, self._look_at_waiting)
        relay.wait()
        return True

    def _look_at_waiting(self) -> None:
        now_s = time.monotonic()
        for relay in [relay for relay, until_s in self._waiting.items() if now_s >= until_s]:
            relay.give_up(os.strerror(errno.ETIMEDOUT))
        again_s = self.gateway.connect_timeout_s / 4
        self._timer = self._loop.call_later(again_s, self._look_at_waiting) if self._waiting else None

    def connected(self, relay: Relay) -> None:
        """It need not be waited for any longer."""
        self._waiting.pop(relay, None)

    def not_connected(self, relay: Relay, reason: str) -> None:
        """Its client is received as if it came in now."""
        self._count_out(relay)
        self._world.poller.shut(relay.backend)
        self._world.poller.drop(relay.client.fileno())
        self.backend.failed(reason)
        self._receive(relay.client, relay.peer)

    def _receive(self, connection: socket.socket, peer: End) -> None:
        client = Client(self._world.poller, connection, peer)
        task = self._loop.create_task(self._serve(client))
        self._held[client] = task
        task.add_done_callback(lambda done: self._served(client, done))

    def _served(self, client: Client, done: asyncio.Task[None]) -> None:
        self._held.pop(client, None)
        if done.cancelled() or done.exception() is not None:
            if not done.cancelled():
                log.error("gateway.mistake", exc_info=done.exception())
            if client.connection.fileno() >= 0:
                client.close()
                self._left()

    def _left(self) -> None:
        self.counts.connections -= 1
        if not self._accepting:
            self.open()

    async def _serve(self, client: Client) -> None:
        """To its relay, or its end."""
        got = await Visit(self, client, self._world).run()
        if got is None:
            client.close()
            self._left()
            return
        relay = Relay(self._world.poller, client.connection, got[0], self, got[1], client.peer, client.first)
        self._count_in(relay)
        relay.begin()

    def may_wake(self, host: str) -> bool:
        """Whether clients from there may wake the backend."""
        if not self._no_wake_from:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        return not any(address in network for network in self._no_wake_from if network.version == address.version)

    # ---- connections that live ----

    @property
    def is_believed(self) -> bool:
        """That the backend is ready still, if it is up: a connection from when it was ready has not ended."""
        return bool(self._proofs and not self.gateway.mac) or self.backend.is_believed

    def _count_in(self, relay: Relay) -> None:
        self.relays.add(relay)
        relay.proves = self.is_believed
        self._proofs += relay.proves

    def _count_out(self, relay: Relay) -> None:
        self._proofs -= relay.proves
        relay.proves = False
        self.relays.discard(relay)
        self._waiting.pop(relay, None)
        self._world.own.pop(relay.ends, None)

    def ended(self, relay: Relay) -> None:
        """Both its connections are closed."""
        if relay.failed:
            self.backend.doubt()
        elif relay.proves:
            self.backend.prove()
        self._count_out(relay)
        self._looked_at.discard(relay)
        self._stalled.discard(relay)
        self.counts.bytes_up += relay.up.total
        self.counts.bytes_down += relay.down.total
        self._left()

    def noted(self, relay: Relay) -> None:
        """It is looked at until what it has sent is acknowledged, or both sides have ended."""
        if relay.backend_has_ended and relay.proves:
            relay.proves = False
            self._proofs -= 1
            if relay.asks:
                self.backend.doubt()  # no answer: it may have died
        if self.gateway.mac or relay.backend_has_ended:
            self._looked_at.add(relay)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for relay in tuple(self._looked_at):
            if relay.backend_has_ended:
                if now_s - relay.moved_s > ABANDONED_S:
                    relay.end()
            elif not outstanding(relay.backend):
                self._looked_at.discard(relay)
                self._stalled.discard(relay)
            elif is_stalled(relay.backend):
                self._stall(relay)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._looked_at else None

    def _stall(self, relay: Relay) -> None:
        """Its machine sleeps: what was sent is sent again by the kernel until it is awake."""
        if relay not in self._stalled:
            self._stalled.add(relay)
            self.counts.stalls += 1
            log.info("relay.stalled", gateway=self.name)
            self.backend.tell(decide.Stalled())
        if self.backend.standing.state is State.FAILED:
            relay.abort()  # its client would wait for a quarter of an hour
        elif self.gateway.mac:
            self.backend.tell(decide.Wanted())


def _networks(gateway: Gateway) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(prefix) for prefix in gateway.no_wake_from]
