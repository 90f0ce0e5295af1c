"""What keeps the machine up: looked at here, one sentence for each gate that is closed.

Doubt keeps it up: what cannot be found out counts as closed. An operator's request passes those that ask whether
anybody might still want the machine, for the operator has said it; not those that protect others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memscaler.config.hours import Window, within
from memscaler.config.stages import Suspend
from memscaler.kernel.processes import PROC
from memscaler.sleep.logind import BusError, Inhibitor, Logind, NoBus, Session, why_not
from memscaler.sleep.machine import LOOK_AGAIN_S, Look, Looked

SOON_S = 300.0  # not worth it if the alarm is as near as this
BUSY_COMMAND_S = 10.0
STALE_S = 4 * LOOK_AGAIN_S  # an average over a longer time says nothing of now
HELD = frozenset({"sleep", "idle"})  # who inhibits "idle" does not want to be suspended for being quiet
PEOPLE = "user"  # and "user-early" and so on; not greeters, lock screens, and systemd's own managers
IDLE_FIELDS = (3, 4)  # of a line of /proc/stat: idle, and waiting for a disk
SSH_TITLES = ("sshd: ", "sshd-session: ")


@dataclass(frozen=True, slots=True)
class Rates:
    """Averages since the look before. load: CPUs at work; network_bytes_per_s: all interfaces but loopback."""

    load: float
    network_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """ssh: who is logged in by it. rates: None if there was no look before. busy: sentences, of the commands."""

    can_suspend: str = "yes"
    inhibitors: tuple[Inhibitor, ...] = ()
    sessions: tuple[Session, ...] = ()
    ssh: tuple[str, ...] = ()
    rates: Rates | None = None
    busy: tuple[str, ...] = ()


def closed_gates(seen: Seen, rule: Suspend, now_unix_s: float, look: Look) -> tuple[str, ...]:
    """Pure: why it is not to be suspended."""
    force, asked = look.request is not None and look.request.force, look.request is not None
    found = [_cannot(seen.can_suspend)]
    if rule.inhibitors and not force:
        found += [_inhibits(each, asked=asked) for each in seen.inhibitors]
    if not asked:
        found += [_user(each, rule) for each in seen.sessions]
        found += [_ssh(seen)] * rule.ssh
        found += seen.busy
        found += [_hours(rule.never, now_unix_s, "never"), _hours(rule.wake_at, now_unix_s, "wake_at")]
        found += [] if look.again else list(_rates(seen.rates, rule))
    alarm = look.request.wake_unix_s if look.request else next_alarm(rule.wake_at, now_unix_s)
    if alarm is not None and alarm - now_unix_s < (SOON_S if not asked else rule.timeout_s):
        found.append(f"it is to be up again at {clock(alarm)}, which is too soon")
    return tuple(dict.fromkeys(filter(None, found)))


def next_alarm(windows: Iterable[Window], now_unix_s: float) -> float | None:
    """The next beginning of such a window."""
    import datetime as dt

    now = dt.datetime.fromtimestamp(now_unix_s)  # noqa: DTZ006  # local time is what people mean
    begins = (begin for window in windows for begin, _end in window.spans(now))
    return min((begin for begin in begins if begin > now_unix_s), default=None)


def clock(unix_s: float) -> str:
    """Local time, for people."""
    return time.strftime("%a %H:%M", time.localtime(unix_s))


def _cannot(said: str) -> str:
    return {
        "yes": "",
        "na": "this machine cannot suspend (logind says so; see /sys/power/state)",
        "no": "logind does not allow it",
        "challenge": "logind wants a password for it (polkit): run memscaler as root",
    }.get(said, f"whether this machine can suspend is not known: {said}")


def _inhibits(each: Inhibitor, *, asked: bool) -> str:
    what = set(each.what.split(":")) & ({"sleep"} if asked else HELD)
    if not what or each.mode == "delay":
        return ""
    return f"{each.who or f'pid {each.pid}'} inhibits {' and '.join(sorted(what))}" + f": {each.why}" * bool(each.why)


def _user(each: Session, rule: Suspend) -> str:
    if (
        rule.users == "ignore"
        or each.kind.partition("-")[0] != PEOPLE
        or each.state == "closing"
        or each.service.startswith("sshd")
    ):
        return ""  # sshd's have a gate of their own
    if rule.users == "active" and each.is_idle:
        return ""
    where = f" on {each.tty}" * bool(each.tty) + " from elsewhere" * each.is_remote
    return f"{each.user} is logged in{where}" + " and not idle" * (rule.users == "active")


def _ssh(seen: Seen) -> str:
    sessions = [each.user for each in seen.sessions if each.service.startswith("sshd") and each.state != "closing"]
    who = sorted({*seen.ssh, *sessions})
    return f"logged in by SSH: {', '.join(who)}" if who else ""


def _hours(windows: tuple[Window, ...], now_unix_s: float, name: str) -> str:
    inside, until = within(windows, now_unix_s)
    return f"{name} until {clock(until) if until else 'ever'}" * inside


def _rates(rates: Rates | None, rule: Suspend) -> Iterable[str]:
    if not rule.cpu_load and not rule.network_bytes_per_s:
        return
    if rates is None:
        yield "its load is being measured"
        return
    if rule.cpu_load and rates.load >= rule.cpu_load:
        yield f"{rates.load:.1f} CPUs are at work (cpu_load = {rule.cpu_load:g})"
    if rule.network_bytes_per_s and rates.network_bytes_per_s >= rule.network_bytes_per_s:
        most = f"network = {rule.network_bytes_per_s / 1000:g} kB/s"
        yield f"{rates.network_bytes_per_s / 1000:.0f} kB/s go over the network ({most})"


# ---- looking -------------------------------------------------------------------------------------------------------


class Gates:
    """Looks. For one thread."""

    def __init__(self, logind: Logind, proc: Path = PROC) -> None:
        self._logind = logind
        self._proc = proc
        self._meter = Meter(proc)

    def look(self, rule: Suspend, look: Look) -> Looked:
        """Takes as long as logind and the commands of `busy` take."""
        try:
            seen = self._seen(rule, look)
        except (NoBus, BusError) as error:
            return Looked((why_not(error),))
        except (ValueError, TypeError) as error:
            return Looked((f"what logind says makes no sense: {error}",))
        now_unix_s = time.time()
        return Looked(closed_gates(seen, rule, now_unix_s, look), next_alarm(rule.wake_at, now_unix_s))

    def _seen(self, rule: Suspend, look: Look) -> Seen:
        """Of a request only what counts for it is looked at."""
        can_suspend, inhibitors = self._logind.can_suspend(), self._logind.inhibitors()
        if look.request:
            return Seen(can_suspend, inhibitors)
        ssh = ssh_logins(self._proc) if rule.ssh else ()
        rates = None if look.again else self._meter.read()
        busy = tuple(filter(None, map(is_busy, rule.busy)))
        return Seen(can_suspend, inhibitors, self._logind.sessions(), ssh, rates, busy)


class Meter:
    """Load and traffic since the last look, if that is not too long ago."""

    def __init__(self, proc: Path = PROC, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._clock_s = proc, clock_s
        self._before: tuple[float, float, int] | None = None

    def read(self) -> Rates | None:
        """None: there was no look shortly before, or this one failed."""
        try:
            now = (self._clock_s(), cpu_s(self._proc), network_bytes(self._proc))
        except (OSError, ValueError, IndexError):
            self._before = None
            return None
        before = self._before
        if before is not None and now[0] - before[0] < 1.0:
            return None
        self._before = now
        if before is None or now[0] - before[0] > STALE_S:
            return None
        seconds = now[0] - before[0]
        return Rates((now[1] - before[1]) / seconds, (now[2] - before[2]) / seconds)


def cpu_s(proc: Path) -> float:
    """Seconds that all CPUs together were at work since the machine booted. Raise OSError, ValueError, IndexError."""
    fields = (proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]  # guests are in user
    if len(fields) <= max(IDLE_FIELDS):
        raise ValueError("no figures")
    busy = sum(int(field) for at, field in enumerate(fields) if at not in IDLE_FIELDS)
    return busy / float(os.sysconf("SC_CLK_TCK"))


def network_bytes(proc: Path) -> int:
    """Received and sent by all interfaces but loopback since they are there. Raise OSError, ValueError, IndexError."""
    total = 0
    for line in (proc / "self/net/dev").read_text(encoding="utf-8").splitlines()[2:]:
        name, _, figures = line.partition(":")
        if name.strip() != "lo":
            fields = figures.split()
            total += int(fields[0]) + int(fields[8])
    return total


def ssh_logins(proc: Path) -> tuple[str, ...]:
    """The users of SSH connections, with a terminal or without, by the titles that sshd gives its processes.

    So those count that logind knows nothing of (UsePAM no, no libpam-systemd).
    """
    users = set()
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                title = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
                start = next((start for start in SSH_TITLES if title.startswith(start)), "")
                user = title[len(start) :].partition("@")[0]
                # "sshd: eve@pts/0", "sshd: eve@notty", "sshd: eve" (a tunnel only); not "sshd: eve [priv]" and
                # "sshd: [accepted]" (nobody yet), "sshd: /usr/sbin/sshd -D [listener]"
                if start and user and not set(user) & set(" [/"):
                    users.add(user)
    return tuple(sorted(users))


def is_busy(command: tuple[str, ...]) -> str:
    """A sentence if it ends with 0; also if it does not end in time, and if it cannot be run."""
    name = f"`{' '.join(command)}`"
    try:
        process = subprocess.Popen(  # noqa: S603  # it is the operator's own, from root's configuration
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"{name} cannot be run: {error.strerror or error}"
    try:
        return f"{name} says that it is busy" if process.wait(BUSY_COMMAND_S) == 0 else ""
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{name} did not end in {BUSY_COMMAND_S:.0f} s"
