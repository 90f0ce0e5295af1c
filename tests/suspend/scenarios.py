"""What is tried on a machine with real systemd that really sleeps; each with a server that is a real process.

Who calls this has said which servers there are (here: one), and does with them what the sleeper's loop does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jeepney import new_method_call

from memscaler.config.stages import Suspend
from memscaler.core.stages import MachineSleep, Rung
from memscaler.daemon.child_words import Done
from memscaler.sleep.link import Do
from memscaler.sleep.logind import MANAGER, Bus, Logind
from memscaler.sleep.machine import Back, BringBack, Prepare, Prepared, Quiet
from memscaler.sleep.suspending import Report, Slept, Suspending

WISHES = Path("/dev/ttyS1")  # tools/suspend/waker.py reads it
DROP_IN = Path("/run/systemd/system/systemd-suspend.service.d/test.conf")
STATS = Path("/sys/power/suspend_stats")
PATIENCE_S = 240.0  # emulated, on a machine that does other things
ALONE = Suspend(cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=0.0, timeout_s=60.0)

Told = list[str]


class Machine:
    """This machine with one server, which is stopped before and started after."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.times_s: dict[str, float] = {}
        self.server = server()
        self.starts = 1
        self.suspending = Suspending(Path(tempfile.mkdtemp()), self._report)
        self.suspending.start()

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        self.times_s.setdefault(type(report).__name__, time.monotonic())
        if isinstance(report, (Prepare, BringBack)):  # its thread does not wait for this
            threading.Thread(target=self._do, args=(report,)).start()

    def _do(self, report: Prepare | BringBack) -> None:
        if isinstance(report, Prepare):
            self.server.terminate()
            self.server.wait()
            self.suspending.tell(Prepared())
        else:
            if self.server.poll() is not None:
                self.server = server()
                self.starts += 1
            self.times_s["back"] = time.monotonic()
            self.suspending.tell(Back())

    def said(self, kind: type) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def told(self) -> MachineSleep:
        return (self.said(MachineSleep) or [MachineSleep()])[-1]

    def quiet(self, rule: Suspend = ALONE) -> None:
        """So it goes down of itself, unless a gate is closed."""
        self.suspending.configure(0.0, rule)
        self.suspending.tell(Quiet(time.monotonic()))

    def wait_over(self) -> None:
        """It was to go down, and all is as before."""
        eventually(lambda: self.said(BringBack) and self.told.rung is Rung.UP and "back" in self.times_s, self.words)
        assert self.server.poll() is None, "the server runs"
        self.suspending.tell(Quiet(None, "the test is over"))

    def words(self) -> str:
        return f"{self.told}, {[type(report).__name__ for report in self.reports]}"


@contextlib.contextmanager
def a_machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        yield machine
    finally:
        machine.suspending.close()
        machine.server.kill()
        machine.server.wait()


def server() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "100000"])


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def eventually(holds: Callable[[], Any], what: Callable[[], object] = str) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {PATIENCE_S} s: {what()}")


def wish(how: str) -> None:
    """Who is to wake this machine the next time: "monitor" or "alarm"."""
    with WISHES.open("w") as port:
        port.write(f"{how}\n")


def successes() -> int:
    """The kernel's count of suspends."""
    return int((STATS / "success").read_text())


@contextlib.contextmanager
def changed(*lines: str) -> Iterator[None]:
    """The service that suspends, with a drop-in."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("\n".join(("[Service]", *lines, "")))
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        DROP_IN.unlink()
        run("systemctl", "daemon-reload")
        subprocess.run(["systemctl", "reset-failed"], check=False)


# ---- the scenarios -------------------------------------------------------------------------------------------------


def monitor(told: Told) -> None:
    """A quiet machine sleeps (S3), is woken from outside, and its server is back."""
    assert "[deep]" in Path("/sys/power/mem_sleep").read_text()
    before = successes()
    wish("monitor")
    with a_machine() as machine:
        machine.quiet()
        machine.wait_over()
        assert successes() == before + 1
        (slept,) = machine.said(Slept)
        assert slept.slept_s > 1.0
        assert (machine.told.suspends, machine.told.failed, machine.starts) == (1, 0, 2)
        down_s = machine.times_s["back"] - machine.times_s["Prepare"]
        back_s = machine.times_s["back"] - machine.times_s["Slept"]
        told.append(f"{machine.told.last}; awake {down_s:.1f} s between stopping and having the server; {back_s:.2f} s of it "
                    "after logind's word")  # fmt: skip


def alarm(told: Told) -> None:
    """An operator's alarm, a timer of systemd, wakes it."""
    wish("alarm")
    with a_machine() as machine:
        machine.suspending.configure(None, Suspend(cpu_load=0.0, network_bytes_per_s=0.0, timeout_s=30.0))
        machine.suspending.tell(Quiet(time.monotonic()))
        alarm_s = time.time() + 60.0
        machine.suspending.ask(Do(1, "suspend", wake_unix_s=alarm_s))
        machine.wait_over()
        assert machine.said(Done)[0].ok
        assert machine.told.last.endswith("woken by its alarm"), machine.told.last
        late_s = time.time() - alarm_s
        told.append(f"{machine.told.last}; {late_s:.1f} s after the alarm all was as before")
        eventually(lambda: "memscaler-wake.timer" not in run("systemctl", "list-units", "--all", "--plain"))


def inhibitor(told: Told) -> None:
    """Somebody inhibits sleep: the server is not touched; when the lock is gone, the machine sleeps."""
    wish("monitor")
    holder = subprocess.Popen(
        ["systemd-inhibit", "--what=sleep", "--who=apt", "--why=upgrading", "--mode=block", "sleep", "100000"]
    )
    try:
        eventually(lambda: "upgrading" in run("systemd-inhibit", "--list"))
        with a_machine() as machine:
            machine.quiet()
            eventually(lambda: machine.told.why_not == ("apt inhibits sleep: upgrading",), machine.words)
            assert not machine.said(Prepare)
            told.append(machine.told.why_not[0])
            holder.kill()
            holder.wait()
            machine.wait_over()
            assert machine.told.suspends == 1
    finally:
        holder.kill()
        holder.wait()


def refused(told: Told) -> None:
    """Logind refuses, for it is busy with somebody else's suspend, which hangs: the server is straight back."""
    before = successes()
    with changed("ExecStartPre=/bin/sleep 10000", "TimeoutStartSec=infinity"), a_machine() as machine:
        run("systemctl", "suspend")
        try:
            eventually(lambda: "systemd-suspend.service" in run("systemctl", "list-jobs", "--plain"))
            machine.quiet()
            machine.wait_over()
            assert (machine.told.suspends, machine.told.failed, machine.starts) == (0, 1, 2)
            took_s = machine.times_s["back"] - machine.times_s["Prepare"]
            told.append(f"{machine.told.last}; the server was back after {took_s:.1f} s")
        finally:
            bus = Bus()
            Logind(bus).call_off()
            bus.close()
        eventually(lambda: not run("systemctl", "list-jobs", "--plain").count("suspend"))
    assert successes() == before


def user(told: Told) -> None:
    """A session of a person at a terminal keeps it up; ended, it sleeps."""
    person = subprocess.Popen(["sleep", "100000"])
    wish("monitor")
    holder = Session(person.pid)
    try:
        eventually(lambda: "tty1" in run("loginctl", "list-sessions"))
        with a_machine() as machine:
            machine.quiet(Suspend(users="any", cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=0.0))
            eventually(lambda: machine.told.why_not == ("root is logged in on tty1",), machine.words)
            assert not machine.said(Prepare)
            told.append(machine.told.why_not[0])
            holder.close()
            person.kill()
            person.wait()
            machine.wait_over()
            assert machine.told.suspends == 1
    finally:
        holder.close()
        person.kill()
        person.wait()


def fails(told: Told) -> None:
    """The service that suspends fails: the server is straight back."""
    before = successes()
    with changed("ExecStart=", "ExecStart=/bin/false"), a_machine() as machine:
        machine.quiet()
        machine.wait_over()
        assert (machine.told.suspends, machine.told.failed, machine.starts) == (0, 1, 2)
        assert not machine.said(Slept)
        took_s = machine.times_s["back"] - machine.times_s["Prepare"]
        told.append(f"{machine.told.last}; the server was back after {took_s:.1f} s")
    assert successes() == before


def hangs(told: Told) -> None:
    """A hook that hangs: called off after the time limit, the server is back; and the next suspend works."""
    wish("monitor")
    before = successes()
    with a_machine() as machine:
        with changed("ExecStartPre=/bin/sleep 10000", "TimeoutStartSec=infinity"):
            machine.quiet(Suspend(cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=0.0, timeout_s=10.0))
            machine.wait_over()
            assert (machine.told.suspends, machine.told.failed, machine.starts) == (0, 1, 2)
            told.append(machine.told.last)
            eventually(lambda: not run("systemctl", "list-jobs", "--plain").count("suspend"))
        machine.reports.clear()
        machine.times_s.clear()
        assert successes() == before
        machine.suspending.tell(Quiet(time.monotonic()))
        machine.suspending.ask(Do(1, "suspend"))
        machine.wait_over()
        assert machine.told.suspends == 1, machine.words()
        assert successes() == before + 1
        told.append(f"then {machine.told.last}")


def others(told: Told) -> None:
    """`systemctl suspend` of somebody else: the server stays, and it is told that everything is to be verified."""
    wish("monitor")
    with a_machine() as machine:
        machine.suspending.configure(None, ALONE)
        eventually(machine.suspending._bus.fd)  # its signals are asked for
        run("systemctl", "suspend")
        eventually(lambda: machine.said(Slept), machine.words)
        assert machine.starts == 1
        assert machine.server.poll() is None
        assert not machine.said(BringBack)
        told.append(machine.told.last)


class Session:
    """One of logind's, as PAM makes them (libpam-systemd is not in this root); it ends with close()."""

    def __init__(self, leader: int) -> None:
        from jeepney.io.blocking import open_dbus_connection

        self._connection = open_dbus_connection("SYSTEM", enable_fds=True)
        body = (0, leader, "login", "tty", "user", "", "", 0, "tty1", "", False, "", "", [])
        message = new_method_call(MANAGER, "CreateSession", "uusssssussbssa(sv)", body)
        reply = self._connection.send_and_get_reply(message)
        assert len(reply.body) > 4, reply.body
        self._fifo = reply.body[3].to_raw_fd()

    def close(self) -> None:
        """Once or more."""
        if self._fifo >= 0:
            os.close(self._fifo)
            self._connection.close()
            self._fifo = -1


def governor(told: Told) -> None:
    """The daemon with its unit's rights: sleeps when quiet, everything is as before; an operator's words."""
    from tests.suspend import governor as whole

    whole.governor(told, wish)


SCENARIOS: dict[str, Callable[[Told], None]] = {
    each.__name__: each for each in (monitor, alarm, inhibitor, refused, user, fails, hangs, others, governor)
}
