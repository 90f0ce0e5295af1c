"""The next wake by itself: a timer of systemd with WakeSystem=yes, which needs no rights of ours on the clock chip.

It is a transient unit: it is gone after a reboot, and `systemctl list-timers` shows it. What it starts does nothing.
"""

from __future__ import annotations

import datetime as dt
import time

from memscaler.sleep.logind import SYSTEMD, Bus, BusError

TIMER, SERVICE = "memscaler-wake.timer", "memscaler-wake.service"
CALENDAR = "%Y-%m-%d %H:%M:%S UTC"
DONE_S = 5.0  # for the unit of an older alarm to go away


def set_alarm(bus: Bus, unix_s: float) -> None:
    """Wake the machine at this time if it sleeps; instead of an older alarm. Raise NoBus or BusError."""
    cancel_alarm(bus)
    when = dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime(CALENDAR)
    about = "Wake this machine for what memscaler was told of"
    timer = [
        ("Description", ("s", about)),
        ("TimersCalendar", ("a(ss)", [("OnCalendar", when)])),
        ("AccuracyUSec", ("t", 1_000_000)),
        ("WakeSystem", ("b", True)),
        ("RemainAfterElapse", ("b", False)),
    ]
    service = [
        ("Description", ("s", about)),
        ("Type", ("s", "oneshot")),
        ("ExecStart", ("a(sasb)", [("/bin/true", ["/bin/true"], False)])),
    ]
    end_s = time.monotonic() + DONE_S
    while True:
        try:
            bus.call(SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", (TIMER, "replace", timer, [(SERVICE, service)]))
        except BusError as error:
            # Stopping the older one is a job, and may not be done yet.
            if error.name != "org.freedesktop.systemd1.UnitExists" or time.monotonic() > end_s:
                raise
            time.sleep(0.05)
        else:
            return


def cancel_alarm(bus: Bus) -> None:
    """If one is set. Raise NoBus or BusError."""
    try:
        bus.call(SYSTEMD, "StopUnit", "ss", (TIMER, "replace"))
    except BusError as error:
        if error.name != "org.freedesktop.systemd1.NoSuchUnit":
            raise
