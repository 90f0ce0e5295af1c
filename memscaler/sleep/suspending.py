"""The machine's own stage: decides, has the servers taken down, suspends by logind, and has them brought back.

A thread of its own. Its methods may be called from any thread and never block; what it has to say goes to `report`,
from its thread. The decisions are in machine.py, which has the events and the actions.

For who runs the servers (run.py):

    suspending = Suspending(runtime_dir, report)
    suspending.start()
    suspending.configure(after_s, settings.suspend)   # at the start and after a reload; after_s None: not wanted
    suspending.tell(Quiet(since_s))                   # all quiet since (time.monotonic()); Quiet(None, "8080 is used")
    suspending.ask(do)                                # link.Do: "suspend", "never", "allow"; Done follows
    suspending.close()                                # at the end; what is down stays the caller's to bring back

    report(Prepare(why, force))       take the servers down as settings.suspend.servers says, then tell(Prepared()), or
                                      tell(NotPrepared(why)) if that failed or a client came (force: clients do not
                                      matter); then BringBack follows
    report(BringBack(why, slept_s))   leave every stage of every server, also of those that were down before; then
                                      tell(Back()), also if one could not be brought back (it is STUCK, an alarm).
                                      slept_s None: the machine did not sleep
    report(Slept(slept_s))            the machine was suspended and is up again, by us or by others: verify everything
    report(MachineSleep(...))         on every change
    report(Done(...))                 the answer to `ask`
"""

from __future__ import annotations

import json
import math
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from memscaler.config.stages import Suspend as SuspendSettings
from memscaler.core.stages import MachineSleep
from memscaler.daemon.child_words import Done
from memscaler.daemon.mailbox import Mailbox
from memscaler.files import read_own, write_own
from memscaler.sleep import alarm, logind
from memscaler.sleep.gates import Gates
from memscaler.sleep.link import Do
from memscaler.sleep.logind import Bus, BusError, Logind, NoBus, why_not
from memscaler.sleep.machine import (
    Action,
    Allow,
    Answer,
    BringBack,
    CallOff,
    Event,
    Look,
    Never,
    NotPrepared,
    Now,
    Policy,
    Prepare,
    Refused,
    Resumed,
    Standing,
    State,
    Suspend,
    Tick,
    Wanted,
    step,
)
from memscaler.sleep.machine_told import document
from memscaler.sleep.told import who

SLEPT_S = 0.5  # less may come from reading two clocks one after the other
SIGNAL_S = 20.0  # for logind's word after the clock has jumped: the driver's own resume comes before it
RECONNECT_S = 10.0
WATCH_S = 1.0  # between looks at the clock while a suspend is under way: a lost signal costs no more than SIGNAL_S
ALARM_S = 120.0  # a machine's firmware takes its time
BROKEN_S = 1.0  # after an error of our own: it may come again
NEVER = "suspend-never.json"
NEVER_BYTES = 4096
STATS = Path("/sys/power/suspend_stats")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Slept:
    """The machine was suspended for so long, and is up."""

    slept_s: float


Report = Prepare | BringBack | Slept | MachineSleep | Done


@dataclass(frozen=True, slots=True)
class _Configure:
    after_s: float | None
    rule: SuspendSettings


class _End:
    pass


class Suspending:
    """See above. report: must not block and must not raise."""

    def __init__(
        self, runtime_dir: Path, report: Callable[[Report], None], asleep_s: Callable[[], float] = logind.asleep_s
    ) -> None:
        """runtime_dir: where an operator's `never` is kept. asleep_s: of the machine, since it booted."""
        self._report = report
        self._never_file = runtime_dir / NEVER
        self._clock_asleep_s = asleep_s
        self._bus = Bus()
        self._logind = Logind(self._bus)
        self._gates = Gates(self._logind)
        self._mailbox = Mailbox()
        self._rule, self._policy = SuspendSettings(), Policy()
        now = _now()
        self._standing = Standing(now, awake_s=-math.inf, never=self._read_never(now.unix_s))
        self._due_s: float | None = None
        self._told: MachineSleep | None = None
        self._asked: Do | None = None  # the one that the standing's request comes from, until it is answered
        self._asleep_s = asleep_s()
        self._jumped_s: float | None = None  # since when the clock says that it has slept, and logind nothing
        self._connect_s = 0.0  # not before
        self._no_bus, self._bus_missed = "", False  # why there is none; whether an operator has been told
        self._thread = threading.Thread(target=self._run, name="suspending", daemon=True)

    def start(self) -> None:
        """Once."""
        self._thread.start()

    def configure(self, after_s: float | None, rule: SuspendSettings) -> None:
        """after_s: of the [[stage]] that suspends; None: there is none, and only operators want it."""
        self._mailbox.put(_Configure(after_s, rule))

    def tell(self, event: Event) -> None:
        """Quiet, Prepared, NotPrepared or Back."""
        self._mailbox.put(event)

    def ask(self, do: Do) -> None:
        """Of an operator. Done is reported, at once or when the gates have been looked at."""
        self._mailbox.put(do)

    def close(self, timeout_s: float = 2.0) -> None:
        """Suspends nothing from now on."""
        self._mailbox.put(_End())
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._connect()
        self._quietly(lambda: alarm.cancel_alarm(self._bus))  # of one who has ended without
        self._feed(Tick())
        while True:
            try:
                if not self._turn():
                    break
            except Exception as error:  # whatever it is, servers that are down for us must come back
                log.exception("suspend.broken")
                time.sleep(BROKEN_S)
                self._feed(NotPrepared(f"an error of memscaler: {error}", failed=True))
                self._feed(Refused(f"an error of memscaler: {error}"))
        if self._standing.alarm_unix_s is not None:
            self._quietly(lambda: alarm.cancel_alarm(self._bus))
        self._bus.close()

    def _turn(self) -> bool:
        """Wait for something, and do what follows; False at the end."""
        self._wait()
        self._connect()
        for message in self._mailbox.drain():
            match message:
                case _End():
                    return False
                case _Configure(after_s, rule):
                    self._rule = rule
                    self._policy = Policy(after_s, rule.timeout_s, rule.min_awake_s)
                    self._feed(Tick())
                case Do():
                    self._do(message)
                case _:
                    self._feed(message)
        self._notice()
        if self._jumped_s is None:  # or it is no longer known what the time awake is
            self._feed(Tick())
        return True

    def _wait(self) -> None:
        now_s = time.monotonic()
        ends = [self._due_s]
        if self._standing.state is State.GOING or self._jumped_s is not None:
            ends.append(now_s + WATCH_S)
        if self._bus.fd() is None and self._policy.after_s is not None:
            ends.append(max(self._connect_s, now_s))
        end_s = min((each for each in ends if each is not None), default=None)
        poll = select.poll()
        for fd in (self._mailbox.fd, self._bus.fd()):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll(None if end_s is None else max(0.0, end_s - now_s) * 1000 + 1)

    def _connect(self) -> None:
        """The signals must have been asked for before the machine sleeps. Without a bus it is tried again, seldom."""
        now_s = time.monotonic()
        if self._bus.fd() is not None or now_s < self._connect_s:
            return
        self._connect_s = now_s + RECONNECT_S
        try:
            self._logind.listen()
            self._no_bus, self._bus_missed = "", False
        except (NoBus, BusError) as error:
            self._no_bus, news = why_not(error), self._policy.after_s is not None and not self._bus_missed
            self._bus_missed = self._bus_missed or news
            level = log.warning if news else log.debug  # it is tried again every few seconds
            level("suspend.no_bus", error=str(error), hint=error.hint)

    def _notice(self) -> None:
        """Whether the machine has slept: logind's word, and the clocks where that is missing."""
        try:
            for going in self._logind.going():
                if not going:
                    self._resumed()
        except (NoBus, BusError) as error:
            log.warning("suspend.bus_lost", error=str(error))
        now_s = time.monotonic()
        if self._clock_asleep_s() - self._asleep_s < SLEPT_S:
            return
        if self._jumped_s is None:
            self._jumped_s = now_s
        if self._bus.fd() is None or now_s >= self._jumped_s + SIGNAL_S:
            self._resumed()

    def _resumed(self) -> None:
        """The machine is up, or was all the time."""
        before_s, self._asleep_s = self._asleep_s, self._clock_asleep_s()
        self._jumped_s = None
        slept_s = self._asleep_s - before_s
        if slept_s < SLEPT_S:
            self._feed(Resumed(0.0, why_failed(STATS)))
            return
        due = self._standing.alarm_unix_s
        by_alarm = due is not None and due - 5.0 <= time.time() <= due + ALARM_S
        log.info("suspend.resumed", slept_s=round(slept_s, 1), by="alarm" if by_alarm else "")
        self._report(Slept(slept_s))
        self._feed(Resumed(slept_s, "woken by its alarm" if by_alarm else ""))

    def _do(self, do: Do) -> None:
        now_s = time.time()
        match do.what:
            case "suspend" if self._asked:
                self._report(Done(do.id, ok=False, error="somebody else has just asked for it"))
            case "suspend":
                self._asked = do
                self._feed(Wanted(do.wake_unix_s, do.force, do.by))
            case "never":
                until_s = None if do.for_s is None else now_s + do.for_s
                reason = (do.reason or "an operator said so") + f" ({who(do.by)})" * bool(do.by)
                self._keep_never(Never(reason, until_s))
                log.info("suspend.never", reason=reason, until_unix_s=until_s)
                self._feed(Never(reason, until_s))
                self._report(Done(do.id, document={"never": reason, "until_unix_s": until_s}))
            case "allow":
                was = self._standing.never
                self._keep_never(None)
                log.info("suspend.allowed", by=do.by)
                self._feed(Allow())
                self._report(Done(do.id, document={"ended": was.reason if was else None}))
            case _:
                self._report(Done(do.id, ok=False, error=f"{do.what}: not for the machine"))

    # ---- events and actions ----------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """With all that follows at once."""
        waiting: list[Event] = [event]
        while waiting:
            event = waiting.pop(0)
            now = _now()
            taken = step(self._standing, event, now, self._policy)
            self._standing, self._due_s = taken.standing, taken.due_s
            for action in taken.actions:
                follows = self._act(action)
                if follows is not None:
                    waiting.append(follows)
        told = document(self._standing, _now(), self._policy, self._no_bus)
        if told != self._told:
            self._told = told
            self._report(told)

    def _act(self, action: Action) -> Event | None:
        match action:
            case Look():
                return self._gates.look(self._rule, action)
            case Suspend():
                return self._suspend(action)
            case Answer(refused):
                self._answer(refused)
            case CallOff():
                log.warning("suspend.called_off", timeout_s=self._policy.timeout_s)
                self._quietly(self._logind.call_off)
            case Prepare():
                log.info("suspend.prepare", why=action.why)
                self._report(action)
            case BringBack():
                log.info("suspend.bring_back", why=action.why, slept_s=action.slept_s)
                self._quietly(lambda: alarm.cancel_alarm(self._bus))
                self._report(action)
        return None

    def _suspend(self, action: Suspend) -> Event | None:
        """Nobody is asked without the alarm: who is to be up at eight must not sleep until noon."""
        try:
            if action.wake_unix_s is not None:
                alarm.set_alarm(self._bus, action.wake_unix_s)
            self._asleep_s = self._clock_asleep_s()
            self._logind.suspend(force=action.force)
        except (NoBus, BusError) as error:
            log.warning("suspend.refused", error=str(error))
            return Refused(str(error).rstrip("."))
        log.info("suspend.asked", wake_unix_s=action.wake_unix_s)
        return None

    def _answer(self, refused: tuple[str, ...]) -> None:
        do, self._asked = self._asked, None
        if do is None:
            return
        if refused:
            hint = "`memscaler suspend now --force` does not ask who uses the machine or inhibits sleep"
            error = "the machine is not suspended: " + "; ".join(refused)
            self._report(Done(do.id, ok=False, error=error, hint="" if do.force else hint))
        else:
            told = {"suspending": True, "alarm_unix_s": do.wake_unix_s}
            self._report(Done(do.id, document=told))

    def _quietly(self, call: Callable[[], object]) -> None:
        """What cannot be helped if it fails."""
        try:
            call()
        except (NoBus, BusError) as error:
            log.debug("suspend.bus", error=str(error))

    # ---- never -----------------------------------------------------------------------------------------------------

    def _keep_never(self, never: Never | None) -> None:
        """It holds for the next process, too, until the machine boots."""
        try:
            if never is None:
                self._never_file.unlink(missing_ok=True)
            else:
                told = {"reason": never.reason, "until_unix_s": never.until_unix_s}
                write_own(self._never_file, json.dumps(told).encode())
        except OSError as error:
            log.warning("suspend.never_not_kept", error=str(error))

    def _read_never(self, now_unix_s: float) -> Never | None:
        try:
            told = json.loads(read_own(self._never_file, NEVER_BYTES))
            until_s = told["until_unix_s"]
            never = Never(str(told["reason"]), None if until_s is None else float(until_s))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("suspend.never_not_read", error=str(error))
            return Never(f"{self._never_file.name} cannot be read")  # doubt keeps it up
        is_over = never.until_unix_s is not None and never.until_unix_s <= now_unix_s
        return None if is_over else never


def why_failed(stats: Path) -> str:
    """What the kernel says of the last suspend that did not succeed; else where to look."""
    said = {}
    for name in ("last_failed_dev", "last_failed_step"):
        with suppress(OSError):
            lines = (stats / name).read_text(encoding="utf-8", errors="replace").split()
            said[name] = lines[-1] if lines else ""
    step_name, device = said.get("last_failed_step", ""), said.get("last_failed_dev", "")
    if step_name or device:
        return f"the kernel did not suspend ({' of '.join(filter(None, (step_name, device)))})"
    return "the suspend failed (journalctl -u systemd-suspend tells why)"


def _now() -> Now:
    return Now(time.monotonic(), time.time())
