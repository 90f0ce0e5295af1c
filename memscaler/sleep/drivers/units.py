"""Services of systemd, stopped and started over D-Bus: those whose unit a watch names as its scope.

https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.systemd1.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from jeepney import DBusAddress, DBusErrorResponse, MessageType, Properties, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from memscaler.sleep.drivers.protocol import Call, Gone, Later, Look, Memo, NotAnnounced, Stuck, Target, Undone, Where
from memscaler.sleep.drivers.talk import POLL_S, Talk, door_of, why

BUS = "org.freedesktop.systemd1"
MANAGER = DBusAddress("/org/freedesktop/systemd1", bus_name=BUS, interface=f"{BUS}.Manager")
ANSWER_S = 25.0
_USERS_MANAGER = re.compile(r"user@\d+\.service")
_NO_SUCH_UNIT = f"{BUS}.NoSuchUnit"
_UP, _DOWN = "active", ("inactive", "failed")


class BusError(Exception):
    """systemd does not answer, or refuses. name: of the D-Bus error, if it is one."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Units:
    """One way to stop a server, of those in stop_server.py."""

    BY: ClassVar[str] = "unit"

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def possible(self, server: Target, call: Call) -> str:
        name = server.scope.removeprefix("unit:")
        if not name.endswith(".service") or _USERS_MANAGER.fullmatch(name):
            return f"{name} is no service that could be started again"
        try:
            with _bus(call) as bus:
                unit = bus.unit(name)
                service = bus.properties(unit, "Service") if unit else {}
                facts = bus.properties(unit, "Unit") if unit else {}
        except BusError as error:
            raise Later(f"systemd does not tell about {name}: {error}") from error
        if not unit or facts.get("LoadState") != "loaded":
            return f"systemd has no unit {name}"
        if facts.get("Transient"):
            return f"{name} is transient: once stopped it cannot be started again"
        if not (facts.get("CanStart") and facts.get("CanStop")) or facts.get("RefuseManualStop"):
            return f"{name} may not be stopped and started"
        if service.get("Delegate"):
            return f"{name} runs other services (Delegate=): what else would end cannot be told"
        if facts.get("ActiveState") != _UP:
            raise Later(f"{name} is {facts.get('ActiveState')}")
        return ""

    def memo(self, server: Target, call: Call) -> dict[str, Any]:
        _ = call
        return {"unit": server.scope.removeprefix("unit:"), "key": server.key, "port": server.port,
                "scope": server.scope}  # fmt: skip

    def stop(self, memo: Memo, call: Call) -> None:
        name = memo["unit"]
        try:
            with _bus(call) as bus:
                if bus.state(name) in _DOWN:
                    return
                if call.abandoned():
                    raise Undone("somebody came before it was stopped")
                bus.manager("StopUnit", name)
                while bus.state(name) not in _DOWN:
                    if call.abandoned():
                        self.start(memo, call)
                        raise Undone("somebody came while it was being stopped")
                    _wait(call, f"{name} does not end")
        except BusError as error:
            look = self.look(memo, call).where
            kind = Undone if look is Where.UP else Stuck
            raise kind(f"{name} was not stopped: {error}") from error

    def start(self, memo: Memo, call: Call) -> None:
        name = memo["unit"]
        try:
            with _bus(call) as bus:
                if bus.state(name) in (*_DOWN, "deactivating"):
                    bus.manager("StartUnit", name)
                while (state := bus.state(name)) != _UP:
                    if state == "failed":
                        raise Stuck(f"{name} cannot be started", hint=f"systemctl status {name}")
                    _wait(call, f"{name} is {state}")
                pid = int(bus.properties(bus.unit(name), "Service").get("MainPID", 0))
        except BusError as error:
            if error.name == _NO_SUCH_UNIT:
                raise Gone(f"systemd has no unit {name} any more") from error
            raise Stuck(f"{name} was not started: {error}") from error
        server = Target(memo["key"], int(memo["port"]), memo["scope"], pids=(pid,) if pid else ())
        while not self._answers(server, call):
            _wait(call, f"{name} runs, and is not ready on port {server.port} yet")

    def look(self, memo: Memo, call: Call) -> Look:
        name = memo["unit"]
        try:
            with _bus(call) as bus:
                state = bus.state(name)
        except BusError as error:
            return Look(Where.GONE if error.name == _NO_SUCH_UNIT else Where.UNKNOWN, str(error))
        if state in _DOWN:
            return Look(Where.DOWN, f"{name} has failed" if state == "failed" else "")
        return Look(Where.UP if state == _UP else Where.BETWEEN, f"{name} is {state}")

    def _answers(self, server: Target, call: Call) -> bool:
        """It listens, and does not say that it loads its model still (503, llama-server)."""
        try:
            answer = self._talk.get(door_of(server), "/health", call.until_s)
        except (Later, NotAnnounced, OSError):
            return False
        return answer.status != 503  # noqa: PLR2004


class _Bus:
    """systemd on the system bus, with a deadline for all that is asked."""

    def __init__(self, connection: DBusConnection, call: Call) -> None:
        self._connection = connection
        self._call = call

    def unit(self, name: str) -> str:
        """Its object's path; LoadUnit knows also what is not loaded. Raise BusError."""
        return str(self.manager("LoadUnit", name, more=False))

    def state(self, name: str) -> str:
        """Its ActiveState."""
        facts = self.properties(self.unit(name), "Unit")
        if facts.get("LoadState") != "loaded":
            raise BusError(f"it is {facts.get('LoadState')}", _NO_SUCH_UNIT)
        return str(facts.get("ActiveState"))

    def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All of an interface."""
        address = DBusAddress(path, bus_name=BUS, interface=f"{BUS}.{interface}")
        body = self._ask(Properties(address).get_all())
        return {name: value for name, (_, value) in body[0].items()}

    def manager(self, method: str, name: str, *, more: bool = True) -> Any:
        """StopUnit and StartUnit also want the job's mode."""
        signature, body = ("ss", (name, "replace")) if more else ("s", (name,))
        return self._ask(new_method_call(MANAGER, method, signature, body))[0]

    def _ask(self, message: Any) -> Any:
        left_s = min(ANSWER_S, self._call.left_s)
        if left_s <= 0:
            raise BusError("no time is left")
        try:
            reply = self._connection.send_and_get_reply(message, timeout=left_s)
        except (OSError, TimeoutError) as error:
            raise BusError(why(error)) from error
        if reply.header.message_type is MessageType.error:
            refused = DBusErrorResponse(reply)
            raise BusError(" ".join(map(str, reply.body or ())) or refused.name, refused.name)
        return reply.body


@contextmanager
def _bus(call: Call) -> Iterator[_Bus]:
    """Raise BusError."""
    try:
        connection = open_dbus_connection("SYSTEM", auth_timeout=min(5.0, max(0.1, call.left_s)))
    except (OSError, TimeoutError, ValueError, KeyError, RuntimeError) as error:
        raise BusError(f"no system bus: {why(error)}") from error
    try:
        yield _Bus(connection, call)
    finally:
        connection.close()


def _wait(call: Call, problem: str) -> None:
    if call.left_s <= POLL_S:
        raise Stuck(f"{problem}: the time is over")
    time.sleep(POLL_S)
