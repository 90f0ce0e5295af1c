"""Two connections and the bytes between them, untouched, in both directions until each has ended.

The end of one direction (FIN) is passed on, and the other one goes on: a half-closed client still gets its answer. A
reset is passed on as a reset, after what came before it: whoever reads until the end must not take half an answer for
a whole one. A side that does not read stops the other one: no more than one piece of each direction is kept here, and
idle connections keep none, for all share one buffer.

recv and send, not splice(2): with large pieces both cost the same time here (docs/gateway.md), and a pipe for each
direction would be two more descriptors and a limit of its own (pipe-user-pages-soft).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import time
from contextlib import suppress
from typing import Protocol

from memscaler.sleep.gateway.poller import Poller
from memscaler.sleep.gateway.world import End

SMALL, LARGE = 1 << 14, 1 << 18  # pieces: who takes them whole gets larger ones
TURN_BYTES = 1 << 20  # then others have their turn
DRAIN_S = 5.0  # what a client has not acknowledged of an answer may take so long, before a reset is passed on
ABANDONED_S = 60.0  # as the kernel waits for the end of a connection whose other side has ended (tcp_fin_timeout)

_IN = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_OUT = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_BROKEN = select.EPOLLHUP | select.EPOLLERR
_RESET = struct.pack("ii", 1, 0)
_buffer = memoryview(bytearray(LARGE))


class Flow:
    """One direction. left: what the sink has not taken yet. piece: how much is read at once."""

    __slots__ = ("done", "left", "piece", "readable", "said", "sink", "source", "total", "writable")

    def __init__(self, source: socket.socket, sink: socket.socket, left: bytes = b"") -> None:
        self.source, self.sink = source, sink
        self.left: bytes | memoryview = left
        self.readable = self.writable = True
        self.said = True  # the source may have said that it ends, or is broken: it is read until it says no more
        self.done = False
        self.total = 0
        self.piece = SMALL


class Owner(Protocol):
    """Who is told of a relay."""

    def noted(self, relay: Relay) -> None:
        """Bytes went to the backend, or the backend has ended: it is to be looked at for a while."""
        ...

    def connected(self, relay: Relay) -> None:
        """After `wait`: the backend has taken the connection."""
        ...

    def not_connected(self, relay: Relay, reason: str) -> None:
        """After `wait`: it has not. Nothing was read of the client; both sockets are the owner's again."""
        ...

    def ended(self, relay: Relay) -> None:
        """Once, when both are closed."""
        ...


class Relay:
    """A client and its backend. Ends by itself.

    ends: of the connection to the backend. peer: the client's. proves: while it lives, so does the backend as it was
    when it was ready. failed: the backend broke off.
    """

    __slots__ = (
        "_broken",
        "_owner",
        "_poller",
        "_waits",
        "asks",
        "backend",
        "client",
        "down",
        "ends",
        "failed",
        "finished",
        "moved_s",
        "peer",
        "proves",
        "up",
    )

    def __init__(
        self,
        poller: Poller,
        client: socket.socket,
        backend: socket.socket,
        owner: Owner,
        ends: tuple[End, End],
        peer: End,
        first: bytes = b"",
    ) -> None:
        """Both are not blocking. first: what the client has said already."""
        self._poller, self.client, self.backend, self._owner = poller, client, backend, owner
        self.ends, self.peer = ends, peer
        self._broken = self._waits = self.finished = self.failed = self.proves = False
        self.asks = True  # the last word was the client's
        self.up, self.down = Flow(client, backend, first), Flow(backend, client)
        self.moved_s = time.monotonic()

    def begin(self) -> None:
        """From now on."""
        self._poller.add(self.client.fileno(), self._client_ready)
        self._poller.add(self.backend.fileno(), self._backend_ready)
        self._pump(self.up)
        self._pump(self.down)

    def wait(self) -> None:
        """The connection to the backend is on its way: begin when it is there. Nothing is read of the client before."""
        self._waits = True
        for flow in (self.up, self.down):
            flow.readable = flow.said = False  # both are registered only now, so the poller will say it
        self._poller.add(self.client.fileno(), self._client_ready)
        self._poller.add(self.backend.fileno(), self._backend_ready)

    def give_up(self, reason: str) -> None:
        """It takes too long."""
        self._waits = False
        self._owner.not_connected(self, reason)

    @property
    def backend_has_ended(self) -> bool:
        """And the client has not."""
        return self.down.done and not self.up.done

    def abort(self) -> None:
        """Reset both."""
        for each in (self.client, self.backend):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def end(self) -> None:
        """Close both, well. Without effect on one that has ended."""
        self._close()

    # ---- what is ready ----

    def _client_ready(self, events: int) -> None:
        if self._waits:
            self.up.readable = self.up.readable or bool(events & _IN)
            self.up.said = self.up.said or bool(events & _ENDS)
        else:
            self._ready(events, self.up, self.down)

    def _backend_ready(self, events: int) -> None:
        if self._waits:
            self._answered(events)
        else:
            self._ready(events, self.down, self.up)

    def _answered(self, events: int) -> None:
        """To the attempt to connect."""
        number = self.backend.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & _BROKEN else 0
        if number:
            self.give_up(os.strerror(number))
        elif events & (_OUT | _IN):
            self._waits = False
            self._owner.connected(self)
            self.down.readable = bool(events & _IN)
            self.down.said = bool(events & _ENDS)
            self._pump(self.up)
            self._pump(self.down)

    def _ready(self, events: int, comes: Flow, goes: Flow) -> None:
        if events & select.EPOLLERR and comes.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._gone(comes.source)
            return
        if events & _IN:
            comes.readable = True
            comes.said = comes.said or bool(events & _ENDS)
            self._pump(comes)
        if events & _OUT:
            goes.writable = True
            if goes.left or goes.readable:
                self._pump(goes)

    def _pump(self, flow: Flow) -> None:
        """As far as it goes."""
        if flow.done or self.finished:
            return
        before = flow.total
        try:
            self._move(flow)
        except _SinkGone:
            self._gone(flow.sink)
        except OSError:
            self._gone(flow.source)
        if flow.total != before:
            self.moved_s = time.monotonic()
            self.asks = flow is self.up
        if self.asks if flow is self.up else flow.done:
            self._owner.noted(self)
        self._finish_if_done()

    def _move(self, flow: Flow) -> None:
        """Raise _SinkGone, or OSError if the source is broken."""
        turn = 0
        while flow.writable and self._flushed(flow) and flow.readable:
            if turn >= TURN_BYTES:
                self._poller.again(lambda: self._pump(flow))
                return
            piece = _buffer[: flow.piece]
            try:
                got = flow.source.recv_into(piece)
            except BlockingIOError:
                flow.readable = flow.said = False
                return
            if not got:
                self._pass_end(flow)
                return
            turn += got
            # a piece that is not full was the last one, unless the end stands behind it: epoll(7), question 9
            flow.readable = got == flow.piece or flow.said
            sent = _send(flow.sink, piece[:got])
            flow.total += sent
            if sent < got:
                flow.left = bytes(piece[sent:got])
                flow.piece = SMALL
                flow.writable = False
            elif got == flow.piece:
                flow.piece = min(LARGE, flow.piece * 4)

    @staticmethod
    def _flushed(flow: Flow) -> bool:
        """Whether nothing is left from before."""
        if flow.left:
            sent = _send(flow.sink, flow.left)
            flow.total += sent
            flow.left = memoryview(flow.left)[sent:]
            flow.writable = not flow.left
        return flow.writable

    def _pass_end(self, flow: Flow) -> None:
        flow.done = True
        if not self._broken and not (self.up.done and self.down.done):  # both: they are closed at once
            with suppress(OSError):  # the sink has gone meanwhile: its own flow sees that
                flow.sink.shutdown(socket.SHUT_WR)

    def _gone(self, side: socket.socket) -> None:
        """It was reset, or does not answer. What a backend has said before is passed on to its end."""
        self._broken = self.up.done = True
        self.up.left = b""
        if side is self.client:
            self.down.done = True
            self._finish_if_done()
            return
        self.failed = True
        if not self.down.done:
            self.down.readable = self.down.said = True
            try:
                self._move(self.down)
            except (OSError, _SinkGone):
                self.down.done = True
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.finished or not (self.up.done and self.down.done):
            return
        if not self._broken:
            self._close()
        else:
            self._reset_later(time.monotonic() + DRAIN_S)

    def _reset_later(self, until_s: float) -> None:
        """When the client has everything."""
        if self.finished:
            return
        if outstanding(self.client) and time.monotonic() < until_s:
            self._poller.later(0.05, lambda: self._reset_later(until_s))
        else:
            self.abort()

    def _close(self) -> None:
        if self.finished:
            return
        self.finished = True
        self._poller.shut(self.client)
        self._poller.shut(self.backend)
        self._owner.ended(self)


class _SinkGone(Exception):
    """Nobody takes what is sent."""


def _send(sink: socket.socket, data: bytes | memoryview) -> int:
    try:
        return sink.send(data)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise _SinkGone from error


def outstanding(connection: socket.socket) -> int:
    """Bytes that were sent and not acknowledged, or not sent yet; tcp(7), SIOCOUTQ. 0 if it is closed."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0


def is_stalled(connection: socket.socket) -> bool:
    """Whether the other end acknowledges nothing: it was sent twice again, or is asked again and again to read."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    retransmits, probes = info[2], info[3]
    (unacked,) = struct.unpack_from("=I", info, 24)
    return (bool(unacked) and retransmits >= 2) or probes >= 3  # noqa: PLR2004
