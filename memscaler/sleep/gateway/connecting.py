"""Connections to what is behind a door: its addresses, and those sockets of ours by which a loop is known."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from contextlib import suppress

from memscaler.config.stages import Gateway
from memscaler.sleep.gateway.world import End, World, end_of

RESOLVED_S, RESOLVE_S = 30.0, 5.0  # of a name
TCP_RTO_MAX_MS, RTO_MAX_MS = 44, 1000  # Linux 6.15: sent again at least so often
# Ours to mend, and no sign of what the backend does.
_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Unreachable(Exception):
    """It did not take a connection. refused: its machine is up, and nobody listens."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Hindered(Exception):
    """This machine has nothing to connect with at the moment: descriptors, ports, memory."""


class Connector:
    """To one backend."""

    def __init__(self, gateway: Gateway, world: World) -> None:
        self.gateway = gateway
        self._poller, self._own = world.poller, world.own
        self._loop = asyncio.get_running_loop()
        self._ends: dict[int, tuple[End, End]] = {}
        self._resolved_until_s = float("-inf")
        self._addresses_found: list[tuple[int, tuple[object, ...]]] = []

    @property
    def has_one_address(self) -> bool:
        """So what was tried there was all."""
        return len(self._addresses_found) == 1

    async def connect(self) -> socket.socket:
        """A connection, known to the poller. Raise Unreachable or Hindered."""
        trouble = Unreachable(f"{self.gateway.to.host} has no address")
        for address in await self._addresses():
            try:
                made = await self._connected(*address)
            except Unreachable as error:
                trouble = error
                continue
            if address is not self._addresses_found[0] and address in self._addresses_found:
                self._addresses_found.remove(address)
                self._addresses_found.insert(0, address)  # the next one begins with it
            return made
        raise trouble

    def begin(self) -> tuple[socket.socket, tuple[End, End]] | None:
        """A connection on its way to where the last one went, and its ends. None: connect() has more to find out."""
        if self._loop.time() >= self._resolved_until_s:
            return None
        try:
            made, number = self._begun(*self._addresses_found[0])
        except OSError:
            return None
        if number not in (0, errno.EINPROGRESS):
            self.close(made)
            return None
        return made, self.let_go(made)

    def _begun(self, family: int, address: tuple[object, ...]) -> tuple[socket.socket, int]:
        """A connection on its way, and what connect() said. Raise OSError."""
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._prepare(made)
            number = made.connect_ex(address)
            self._ends[made.fileno()] = ends = end_of(made.getsockname()), end_of(address)
            self._own[ends] = self.came_back
        except BaseException:
            self.close(made)
            raise
        return made, number

    async def _connected(self, family: int, address: tuple[object, ...]) -> socket.socket:
        try:
            made, number = self._begun(family, address)
        except OSError as error:
            raise self._trouble(error) from error
        try:
            if number == errno.EINPROGRESS:
                number = await self._in_progress(made)
        except OSError as error:
            self.close(made)
            raise self._trouble(error) from error
        except BaseException:
            self.close(made)
            raise
        if number:
            self.close(made)
            raise self._trouble(OSError(number, os.strerror(number)))
        return made

    def came_back(self) -> None:
        """A connection of ours has come in at one of our own doors."""

    def close(self, made: socket.socket) -> None:
        """A connection of ours that nobody else has closed."""
        self._own.pop(self.let_go(made), None)
        self._poller.shut(made)

    def let_go(self, made: socket.socket) -> tuple[End, End]:
        """Somebody else has it from here on: both its ends, which count as ours until it is closed."""
        return self._ends.pop(made.fileno(), (("", 0), ("", 0)))

    async def _in_progress(self, made: socket.socket) -> int:
        """The error's number, 0 if it is connected."""
        woken = asyncio.Event()
        self._poller.add(made.fileno(), lambda _events: woken.set())
        try:
            async with asyncio.timeout(self.gateway.connect_timeout_s):
                while True:
                    await woken.wait()
                    woken.clear()
                    number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if number or self._is_connected(made):
                        return number
        except TimeoutError:
            return errno.ETIMEDOUT

    @staticmethod
    def _is_connected(made: socket.socket) -> bool:
        try:
            made.getpeername()
        except OSError:
            return False
        return True

    def _prepare(self, made: socket.socket) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.gateway.mac:
            # A machine that slept is to hear at once what was sent meanwhile. Its idle connections live through it:
            # nobody asks whether they do.
            with suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @staticmethod
    def _trouble(error: OSError) -> Exception:
        if error.errno in _LOCAL:
            return Hindered(error.strerror or str(error))
        return Unreachable(error.strerror or str(error), refused=error.errno == errno.ECONNREFUSED)

    async def _addresses(self) -> list[tuple[int, tuple[object, ...]]]:
        """Of its host. A name that cannot be looked up now has those that it had before. Raise Unreachable."""
        now_s = self._loop.time()
        if now_s < self._resolved_until_s:
            return list(self._addresses_found)
        host, port = self.gateway.to.host, self.gateway.to.port
        until_s = now_s + RESOLVED_S
        try:
            if is_address(host):
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
                until_s = float("inf")
            else:
                async with asyncio.timeout(RESOLVE_S):
                    found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            before = self._addresses_found[:1]
            self._addresses_found = [(family, address) for family, _, _, _, address in found]
            self._addresses_found.sort(key=lambda each: each not in before)  # the one that answered last stays first
        except (OSError, TimeoutError) as error:
            if not self._addresses_found:
                raise Unreachable(f"{host} is no name that can be looked up: {error}") from error
        self._resolved_until_s = until_s
        return list(self._addresses_found)

    async def host(self) -> str:
        """Its first address, as text; with the interface if it is of the link only."""
        family, address = (await self._addresses())[0]
        host = str(address[0])
        scope = address[3] if family == socket.AF_INET6 else 0
        return f"{host}%{socket.if_indextoname(int(str(scope)))}" if scope and "%" not in host else host


def is_address(host: str) -> bool:
    """And no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
