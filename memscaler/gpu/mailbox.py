"""The orders waiting for one actuator: at most one of each kind, the newest, taken by urgency; and the doorbell.

The main loop posts without ever blocking. The actuator's thread sleeps until something is posted or the doorbell rings:
a ring must not go through another thread first, because each hand-over costs a wake-up of a sleeping CPU.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

WAKE, CLOSE, PARK, SAMPLE = "wake", "close", "park", "sample"
_BY_URGENCY = (WAKE, CLOSE, PARK, SAMPLE)


class Door(Protocol):
    """Whatever tells of connections to a parked GPU. `fd` becomes readable when any door of the machine rings."""

    @property
    def fd(self) -> int: ...

    def rang(self) -> bool:
        """True if it was this GPU's."""
        ...


class Mailbox:
    """Posted to by one thread, taken from by another. dict.pop and item assignment are atomic."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._closing = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._door: Door | None = None

    def close(self) -> None:
        """Nobody may wait any more, and what is posted is lost."""
        with self._closing:
            bell, self._bell = self._bell, -1
            if bell >= 0:
                self._epoll.close()
                os.close(bell)

    def post(self, kind: str, seq: int = 0) -> None:
        """Leave an order, in place of an older one of its kind."""
        self._pending[kind] = seq
        with self._closing:  # nobody holds it for longer than a system call
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def withdraw(self, kind: str) -> None:
        self._pending.pop(kind, None)

    def take(self) -> tuple[str, int] | None:
        """The most urgent order, removed."""
        for kind in _BY_URGENCY:
            seq = self._pending.pop(kind, None)
            if seq is not None:
                return kind, seq
        return None

    def is_urgent(self, carried_out: int) -> bool:
        """True if something waits that ends any settling: but not the order for a wake that is carried out already."""
        return self._pending.get(WAKE, carried_out) != carried_out or CLOSE in self._pending

    def listen(self, door: Door) -> None:
        """Let its rings end `wait`. The kernel wakes who began to listen last first: better us than the main loop."""
        self._epoll.register(door.fd, select.EPOLLIN | select.EPOLLET)  # by its edge: the main loop silences it
        self._door = door

    def stop_listening(self) -> None:
        """What rings now is not for us."""
        if self._door is not None:
            self._epoll.unregister(self._door.fd)
            self._door = None

    def rang(self) -> bool:
        """True if the door that is listened to rang."""
        return self._door is not None and self._door.rang()

    def wait(self, timeout_s: float = -1) -> None:
        """Sleep until something is posted or rings, or for `timeout_s`. May return early; look before waiting again."""
        for fd, _ in self._epoll.poll(timeout_s):
            if fd == self._bell:
                os.eventfd_read(self._bell)
