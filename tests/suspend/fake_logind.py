"""A logind and a systemd for tests, as a program of its own on a private bus: what memscaler asks of them, no more.

python fake_logind.py BUS_ADDRESS STATE_FILE

STATE_FILE is JSON, read at each call: how they answer. The program appends what was asked to STATE_FILE.log, and how
long "the machine" has slept to STATE_FILE.asleep. Signatures and error names are those of systemd 252.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.threading import DBusRouter, open_dbus_connection

MANAGER = "org.freedesktop.login1.Manager"
SYSTEMD = "org.freedesktop.systemd1.Manager"
EMITTER = DBusAddress("/org/freedesktop/login1", None, MANAGER)
ROOT_CHECK = 1


class Refuse(Exception):
    """An error of D-Bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Fake:
    """Both programs."""

    def __init__(self, connection: Any, state: Path) -> None:
        self.connection = connection
        self.file = state
        self.timers: set[str] = set()
        self.jobs: list[tuple[int, str, str, str, str, str]] = []
        self.busy = False
        self.asleep_s = 0.0

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    def note(self, *what: Any) -> None:
        with self.file.with_suffix(".log").open("a") as log:
            log.write(json.dumps(what) + "\n")

    def answer(self, member: str, path: str, body: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:  # noqa: C901, PLR0911
        match member:
            case "CanSuspend":
                return "s", (self.state.get("can", "yes"),)
            case "ListInhibitors":
                return "a(ssssuu)", (list(map(tuple, self.state.get("inhibitors", []))),)
            case "ListSessions":
                rows = self.state.get("sessions", {})
                found = [
                    (name, 1000, s["user"], "", f"/org/freedesktop/login1/session/{name}") for name, s in rows.items()
                ]
                return "a(susso)", (found,)
            case "GetAll":
                return "a{sv}", (self.session(path),)
            case "SuspendWithFlags" | "Suspend":
                self.note(member, *body)
                self.suspend(body[0] if member == "SuspendWithFlags" else ROOT_CHECK)
                return "", ()
            case "StartTransientUnit":
                name, _mode, properties, more = body
                if name in self.timers:
                    raise Refuse("org.freedesktop.systemd1.UnitExists", f"Unit {name} was already loaded")
                self.timers.add(name)
                told = {key: value[1] for key, value in properties}
                self.note("timer", name, told["TimersCalendar"], told["WakeSystem"], [unit for unit, _ in more])
                return "o", ("/org/freedesktop/systemd1/job/1",)
            case "StopUnit":
                self.note("stop", body[0])
                if body[0].endswith(".timer") and body[0] not in self.timers:
                    raise Refuse("org.freedesktop.systemd1.NoSuchUnit", f"Unit {body[0]} not loaded.")
                # as systemd does it: the job is done a little later
                threading.Timer(0.1, self.timers.discard, [body[0]]).start()
                return "o", ("/org/freedesktop/systemd1/job/2",)
            case "ListJobs":
                return "a(usssoo)", (self.jobs,)
            case "Cancel":
                self.note("cancel", path)
                self.jobs, self.busy = [], False
                return "", ()
            case _:
                raise Refuse("org.freedesktop.DBus.Error.UnknownMethod", f"no {member}")

    def session(self, path: str) -> dict[str, Any]:
        told = self.state.get("sessions", {}).get(path.rsplit("/", 1)[1])
        if told is None or told.get("gone"):
            raise Refuse("org.freedesktop.DBus.Error.UnknownObject", f"Unknown object '{path}'.")
        kinds = {"Class": "s", "State": "s", "Service": "s", "TTY": "s", "Remote": "b", "IdleHint": "b"}
        return {key: (kind, told[key]) for key, kind in kinds.items() if key in told}

    def suspend(self, flags: int) -> None:
        state = self.state
        held = [row for row in state.get("inhibitors", []) if "sleep" in row[0].split(":") and row[3] == "block"]
        held += state.get("late_inhibitors", [])
        held = [row for row in held if row[4] != 0]  # never a user's own against that user
        if held and flags & ROOT_CHECK:
            raise Refuse("org.freedesktop.DBus.Error.AccessDenied", f'Operation inhibited by "{held[0][1]}".')
        if self.busy:
            raise Refuse(
                "org.freedesktop.login1.OperationInProgress",
                "There's already a shutdown or sleep operation in progress",
            )
        if refuse := state.get("refuse"):
            raise Refuse(*refuse)
        self.busy = True
        threading.Thread(target=self.sleep, args=(state.get("sleep", "deep"), state.get("slept_s", 3600.0))).start()

    def sleep(self, how: str, slept_s: float) -> None:
        """deep: it sleeps; fails: the job fails; hangs: the job does not end; lost: no signal when it resumes."""
        self.signal(True)
        self.jobs = [(7, "suspend.target", "start", "waiting", "/org/freedesktop/systemd1/job/7", "/x")]
        time.sleep(0.1)
        if how == "hangs":
            return
        if how in ("deep", "lost"):
            self.asleep_s += slept_s
            draft = self.file.with_suffix(".asleep.new")
            draft.write_text(str(self.asleep_s))
            draft.replace(self.file.with_suffix(".asleep"))
        self.jobs, self.busy = [], False
        self.note("resumed" if how in ("deep", "lost") else "failed")
        if how != "lost":
            time.sleep(0.1)  # what has to resume after the kernel
            self.signal(False)

    def signal(self, going: bool) -> None:
        self.connection.send(new_signal(EMITTER, "PrepareForSleep", "b", (going,)))


def main(address: str, state: str) -> None:
    connection = open_dbus_connection(address)
    with DBusRouter(connection) as router:
        for name in ("org.freedesktop.login1", "org.freedesktop.systemd1"):
            reply = router.send_and_get_reply(message_bus.RequestName(name))
            assert reply.body == (1,), reply
    fake = Fake(connection, Path(state))
    print("ready", flush=True)
    while True:
        message = connection.receive()
        if message.header.message_type is not MessageType.method_call:
            continue
        member = message.header.fields[HeaderFields.member]
        try:
            signature, body = fake.answer(member, message.header.fields[HeaderFields.path], message.body)
            connection.send(new_method_return(message, signature or None, body))
        except Refuse as error:
            connection.send(new_error(message, error.name, "s", (str(error),)))


if __name__ == "__main__":
    main(*sys.argv[1:])
