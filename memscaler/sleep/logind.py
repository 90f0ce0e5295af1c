"""logind and systemd over D-Bus: who keeps the machine up, suspend, and the signals around it.

For one thread. Nothing waits longer than CALL_S. The system bus, or another one in tests (DBUS_SYSTEM_BUS_ADDRESS).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, prep_socket

from memscaler.core.errors import MemscalerError, Unavailable

CALL_S = 25.0  # logind may have to be started for it
CONNECT_S = 5.0
LOGIND = "org.freedesktop.login1"
MANAGER = DBusAddress("/org/freedesktop/login1", LOGIND, "org.freedesktop.login1.Manager")
SYSTEMD = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
_BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
PROPERTIES = "org.freedesktop.DBus.Properties"
SESSION = "org.freedesktop.login1.Session"
# SD_LOGIND_ROOT_CHECK_INHIBITORS: without it, root's suspend goes over all inhibitors; with it, over root's own.
ROOT_TOO = 1
GONE = frozenset(
    {
        "org.freedesktop.login1.NoSuchSession",
        "org.freedesktop.DBus.Error.UnknownObject",
        "org.freedesktop.DBus.Error.UnknownMethod",  # what dbus-daemon's libraries say of an object that is gone
    }
)
SUSPEND_UNITS = ("suspend.target", "systemd-suspend.service")

log = structlog.get_logger()


class BusError(MemscalerError):
    """The other side says no. `name` is D-Bus's: "org.freedesktop.login1.OperationInProgress"."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class NoBus(Unavailable):
    """There is no system bus, or nobody answers on it."""

    hint = "suspending needs systemd-logind and D-Bus: apt-get install dbus; systemctl status systemd-logind"


def why_not(error: NoBus | BusError) -> str:
    """What keeps the machine up then, and what to do where that is known."""
    text = str(error).rstrip(".")
    return f"logind cannot be asked: {text}; {error.hint}" if isinstance(error, NoBus) else text


@dataclass(frozen=True, slots=True)
class Inhibitor:
    """what: "sleep", "sleep:idle" and so on. mode: "block", "block-weak" or "delay"."""

    what: str
    who: str
    why: str
    mode: str
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One login. kind: its class, "user" for people. state: "active", "online" or "closing". is_idle: as it says."""

    name: str
    user: str
    kind: str = "user"
    state: str = "active"
    service: str = ""
    tty: str = ""
    is_remote: bool = False
    is_idle: bool = False


class Bus:
    """A connection that is made when it is needed, and anew after it was lost. Raise NoBus or BusError."""

    def __init__(self) -> None:
        self._connection: DBusConnection | None = None
        self._signals: deque[Any] = deque(maxlen=64)
        self._members: list[tuple[DBusAddress, str]] = []

    def fd(self) -> int | None:
        """Readable when signals() may have one; None while there is no connection."""
        return self._connection.sock.fileno() if self._connection else None

    def listen(self, address: DBusAddress, member: str) -> None:
        """Have signals() tell this one; also after the connection was lost. Raise as call() does."""
        self._members.append((address, member))
        if self._connection:
            self._subscribe(self._connection, address, member)
        else:
            self.connect()

    def connect(self) -> None:
        """If there is no connection."""
        if self._connection:
            return
        try:
            address = get_bus("SYSTEM")
            connection = DBusConnection(prep_socket(address, timeout=CONNECT_S))
        except (OSError, RuntimeError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise NoBus(f"the system bus cannot be reached: {why}") from error
        self._connection = connection
        for each in self._members:
            self._subscribe(connection, *each)

    def call(
        self, address: DBusAddress, method: str, signature: str = "", arguments: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """What the method answers."""
        self.connect()
        assert self._connection  # noqa: S101
        message = new_method_call(address, method, signature or None, arguments)
        try:
            reply = self._connection.send_and_get_reply(message, timeout=CALL_S)
        except (OSError, ValueError, RuntimeError) as error:  # TimeoutError is an OSError
            self.close()
            raise NoBus(f"{method}: no answer from {address.bus_name}: {str(error) or 'it takes too long'}") from error
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name, ""))
            raise BusError(name, str(reply.body[0]) if reply.body else "")
        return tuple(reply.body)

    def property(self, address: DBusAddress, name: str) -> Any:
        """One property of the address's interface."""
        (value,) = self.call(
            DBusAddress(address.object_path, address.bus_name, PROPERTIES), "Get", "ss", (address.interface, name)
        )
        return value[1]

    def signals(self) -> Iterator[Any]:
        """The messages of the rules that have come. Raise NoBus if the connection is lost: some may be, too."""
        while self._connection:
            try:
                self._connection.recv_messages(timeout=0)
            except TimeoutError:
                break
            except (OSError, ValueError, RuntimeError) as error:
                self.close()
                raise NoBus(f"the connection to the system bus is lost: {error}") from error
        while self._signals:
            yield self._signals.popleft()

    def close(self) -> None:
        if self._connection:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def owner(self, name: str) -> str:
        """The connection that has this name; a signal can be sent by anybody."""
        return str(self.call(_BUS, "GetNameOwner", "s", (name,))[0])

    def _subscribe(self, connection: DBusConnection, address: DBusAddress, member: str) -> None:
        wanted = {"type": "signal", "interface": address.interface, "member": member, "path": address.object_path}
        # The bus knows who has a name; what arrives bears the sender's number instead.
        connection.filter(MatchRule(**wanted), queue=self._signals)
        self.call(_BUS, "AddMatch", "s", (MatchRule(**wanted, sender=address.bus_name).serialise(),))


class Logind:
    """The manager of logins and of sleep. Every method raises NoBus or BusError."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def can_suspend(self) -> str:
        """Logind's word: "yes", "no", "challenge" (a password would be asked for) or "na" (this machine cannot)."""
        return str(self._bus.call(MANAGER, "CanSuspend")[0])

    def inhibitors(self) -> tuple[Inhibitor, ...]:
        """All of them."""
        (rows,) = self._bus.call(MANAGER, "ListInhibitors")
        return tuple(Inhibitor(what, who, why, mode, pid) for what, who, why, mode, _uid, pid in rows)

    def sessions(self) -> tuple[Session, ...]:
        """Those that have not ended meanwhile."""
        (rows,) = self._bus.call(MANAGER, "ListSessions")
        found = []
        for name, _uid, user, _seat, path in rows:
            try:
                found.append(self._session(name, user, path))
            except BusError as error:
                if error.name not in GONE:
                    raise
        return tuple(found)

    def _session(self, name: str, user: str, path: str) -> Session:
        address = DBusAddress(path, MANAGER.bus_name, PROPERTIES)
        (raw,) = self._bus.call(address, "GetAll", "s", (SESSION,))
        said = {key: value for key, (_signature, value) in raw.items()}
        return Session(
            name,
            user,
            str(said.get("Class", "user")),
            str(said.get("State", "active")),
            str(said.get("Service", "")),
            str(said.get("TTY", "")),
            bool(said.get("Remote", False)),
            bool(said.get("IdleHint", False)),
        )

    def suspend(self, *, force: bool) -> None:
        """Begin. Without force logind itself refuses while another user inhibits sleep, whatever was seen before."""
        try:
            self._bus.call(MANAGER, "SuspendWithFlags", "t", (0 if force else ROOT_TOO,))
        except BusError as error:
            if error.name != "org.freedesktop.DBus.Error.UnknownMethod":  # before systemd 248
                raise
            self._bus.call(MANAGER, "Suspend", "b", (False,))

    def listen(self) -> None:
        """Have going() told of."""
        self._bus.listen(MANAGER, "PrepareForSleep")

    def going(self) -> Iterator[bool]:
        """True: the machine is about to sleep. False: it has slept, or that has failed."""
        for message in self._bus.signals():
            sender = message.header.fields.get(HeaderFields.sender)
            if message.body and isinstance(message.body[0], bool) and sender == self._bus.owner(LOGIND):
                yield message.body[0]

    def call_off(self) -> None:
        """Have systemd forget a suspend that hangs in its jobs. What has reached the kernel cannot be called off."""
        (jobs,) = self._bus.call(SYSTEMD, "ListJobs")
        for _id, unit, _kind, _state, path, _unit_path in jobs:
            if unit in SUSPEND_UNITS:
                with suppress(BusError):  # done meanwhile
                    job = DBusAddress(path, SYSTEMD.bus_name, "org.freedesktop.systemd1.Job")
                    self._bus.call(job, "Cancel")
        for unit in reversed(SUSPEND_UNITS):
            with suppress(BusError):
                self._bus.call(SYSTEMD, "StopUnit", "ss", (unit, "replace"))


def asleep_s() -> float:
    """How long this machine was suspended since it booted: CLOCK_BOOTTIME went on, CLOCK_MONOTONIC did not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
