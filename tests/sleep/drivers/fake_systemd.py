"""systemd's manager on a private bus: units with the properties and the methods that stopping and starting needs.

Run as `python fake_systemd.py FOLDER` with DBUS_SYSTEM_BUS_ADDRESS. `units.json` in the folder: name -> {"command",
"properties", "stop_s", "start"}; what is active is a real process. Names and signatures: org.freedesktop.systemd1(5).
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

BUS = "org.freedesktop.systemd1"
folder = Path(sys.argv[1])
running: dict[str, subprocess.Popen] = {}
states: dict[str, str] = {}


def units():
    return json.loads((folder / "units.json").read_text())


def note(text):
    with (folder / "calls").open("a") as calls:
        calls.write(text + "\n")


def start(name):
    unit = units()[name]
    if unit.get("start") == "fail":
        states[name] = "failed"
        return
    states[name] = "activating"
    running[name] = subprocess.Popen(unit["command"])
    (folder / f"{name}.pid").write_text(str(running[name].pid))
    states[name] = "active"


def stop(name):
    states[name] = "deactivating"
    time.sleep(units()[name].get("stop_s", 0))
    if name in running:
        running[name].kill()
        running.pop(name).wait()
    states[name] = "inactive"


def properties(path, interface):
    name = bytes.fromhex(path.rpartition("/u")[2]).decode()
    unit = units().get(name)
    if interface.endswith(".Service"):
        pid = running[name].pid if name in running else 0
        told = {"MainPID": ("u", pid), "Delegate": ("b", False)}
    else:
        told = {
            "LoadState": ("s", "loaded" if unit else "not-found"),
            "ActiveState": ("s", states.get(name, "inactive")),
            "CanStart": ("b", True),
            "CanStop": ("b", True),
            "RefuseManualStop": ("b", False),
            "Transient": ("b", False),
        }
    for key, value in (unit or {}).get("properties", {}).items():
        if key in told:
            told[key] = (told[key][0], value)
    return told


def answer(message):
    member = message.header.fields[HeaderFields.member]
    path = message.header.fields[HeaderFields.path]
    if member == "GetAll":
        return new_method_return(message, "a{sv}", (properties(path, message.body[0]),))
    name = message.body[0]
    if member == "LoadUnit":
        return new_method_return(message, "o", ("/org/freedesktop/systemd1/unit/u" + name.encode().hex(),))
    note(f"{member} {name}")
    if name not in units():
        return new_error(message, f"{BUS}.NoSuchUnit", "s", (f"Unit {name} not found.",))
    if (folder / "refuses").exists():
        return new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "s", ("Permission denied",))
    threading.Thread(target={"StopUnit": stop, "StartUnit": start}[member], args=(name,), daemon=True).start()
    time.sleep(0.05)  # the job is under way
    return new_method_return(message, "o", ("/org/freedesktop/systemd1/job/1",))


for each in units():
    if units()[each].get("runs", True):
        start(each)
connection = open_dbus_connection("SYSTEM")
connection.send_and_get_reply(message_bus.RequestName(BUS))
(folder / "ready").touch()
while True:
    received = connection.receive()
    if received.header.message_type is MessageType.method_call and HeaderFields.interface in received.header.fields:
        connection.send(answer(received))
