"""A real park and wake of each GPU, for `doctor --probe`: with the levers, the journal and the guardian of the daemon.

    lock -> guardian -> for each idle GPU of the configuration, while nobody is connected to its servers:
        journal -> driver call -> read back until down -> undo -> read back until up -> journal released

The lock keeps a daemon from starting meanwhile. Whatever happens, the undo follows: on Ctrl-C, on the first sign of
work and on the first client at once; if this process is killed or stands still, the guardian wakes what the journal
names, or else `memscaler restore`. An undo that reports success proves nothing: only clocks that rise do.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from memscaler.core.errors import DaemonRunning, GpuError, GpuPermission, GpuUnsupported, MemscalerError, UsageError
from memscaler.daemon import lock
from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.clients import Clients, Unclear, clients_of, governed
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import NEEDS_ROOT, Verdict, failed, passed, unknown, warned
from memscaler.daemon.guardian import JOURNAL, Guardian
from memscaler.daemon.targets import wanted_lever
from memscaler.gpu.capability import choose
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import EveryLever, Lever, rebuild

POLL_S = 0.01
UNDO_PAUSES_S = (0.0, 0.02, 0.1, 0.5)
ON_ITS_WAY_S = 0.5  # a park that was called off may still take effect
SAME_OCCUPANT = 0.9  # of the memory used: what kept the clocks up is still there
RESTORE = "sudo memscaler restore"
RESTORE_ALL = "sudo memscaler restore --all; if its clocks stay down, reboot"
NEXT = "the next lever is tried"
IDLE = "try again while it is idle"
LATER = "try again while a server is loaded and quiet"
PROBE = "doctor --probe"


@dataclass(frozen=True, slots=True)
class _Bench:
    """What one try needs."""

    context: Context
    driver: Driver
    journal: Journal
    device: Device
    clients: Clients

    @property
    def name(self) -> str:
        return _name(self.device)

    @property
    def uuid(self) -> str:
        return self.device.identity.uuid


@dataclass(frozen=True, slots=True)
class _Parked:
    """How a park went. down_s: seconds until the clocks were down, None: not seen. Else what came in between, or why.

    used_bytes: of the GPU's memory, before.
    """

    used_bytes: int | None
    down_s: float | None = None
    disturbance: str = ""
    refusal: str = ""
    applied: bool = True


@dataclass(frozen=True, slots=True)
class _Woken:
    """seconds: until the clocks were seen to rise; None: they were not. by: what did it, "" if the first undo did."""

    seconds: float | None
    by: str = ""


def park_and_wake(context: Context) -> Iterator[Verdict]:
    """Every GPU that the configuration governs, one after the other."""
    if not (context.is_root and context.probe):
        yield unknown("not tried", NEEDS_ROOT.replace("doctor", PROBE))
        return
    try:
        driver = context.driver()
        mine, founds = governed(context, driver), context.founds()
    except GpuError as error:
        yield unknown(f"not tried: {error}", "see MS-DRIVER-02")
        return
    except Unclear as error:
        yield unknown(f"not tried: {error}", error.remedy)
        return
    runtime_dir = context.settings.runtime_dir
    lock.prepare_runtime_dir(runtime_dir)
    try:
        held = lock.acquire(runtime_dir)
    except DaemonRunning as error:
        yield unknown(f"not tried: a daemon governs (pid {error.pid})", "`memscaler park` tries it with that")
        return
    try:
        journal = Journal(runtime_dir / JOURNAL)
        with _guarded(context, journal):
            for device in driver.gpus:
                if device.identity.uuid in mine:
                    yield _alone(context, driver, journal, device, founds)
                else:
                    remedy = "name it in a [[watch]] table to have it governed, and tried"
                    yield unknown("not tried: no watch names it", remedy, _name(device))
    finally:
        os.close(held)


@contextlib.contextmanager
def _guarded(context: Context, journal: Journal) -> Iterator[None]:
    """While a guardian watches. One that is not told good-bye wakes what is left."""
    guardian = Guardian(context.settings.runtime_dir, context.environment, watch_standstill=True)
    before = set(journal.entries())
    try:
        if not guardian.wait_ready():
            raise MemscalerError("not tried: the guardian process does not start", hint="see what it says above")
        yield
    finally:
        guardian.dismiss() if set(journal.entries()) <= before else guardian.close()


def _alone(context: Context, driver: Driver, journal: Journal, device: Device, founds: Iterable[Found]) -> Verdict:
    """One GPU, as long as nobody is connected to its servers."""
    try:
        with clients_of(device, founds, driver) as clients:
            return _probe(_Bench(context, driver, journal, device, clients))
    except OSError as error:
        seen = f"not tried: who is connected to its servers cannot be seen ({error.strerror or error})"
        return unknown(seen, "try again", _name(device))


class _NotTried(Exception):
    """Something speaks against it; the message says what."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def _probe(bench: _Bench) -> Verdict:
    """One GPU, with the levers that it has, until one works."""
    reasons = []
    try:
        for lever in _levers(bench):
            verdict = _try(bench, lever)
            if verdict.remedy != NEXT:
                return verdict
            reasons.append(verdict.seen)
    except _NotTried as error:
        return unknown(f"not tried: {error}", error.remedy, bench.name)
    except (GpuUnsupported, UsageError) as error:
        return unknown(f"not tried: {error}", "see MS-GPU-03", bench.name)
    except GpuError as error:
        return unknown(f"not tried: {error}", error.hint or "see `dmesg | grep -i nvrm`", bench.name)
    return failed("; ".join(reasons), "this GPU cannot be parked here: see MS-GPU-03 and MS-RIVAL-01", bench.name)


def _levers(bench: _Bench) -> tuple[Lever, ...]:
    """Those to try. Raise _NotTried, or GpuError."""
    if bench.context.stop.is_set():
        raise _NotTried("interrupted", f"sudo memscaler {PROBE}")
    if bench.journal.entry(bench.uuid) is not None:
        raise _NotTried("it was left parked by a memscaler that is gone", RESTORE)
    choice = choose(bench.device, wanted_lever(bench.device, bench.driver, bench.context.settings))
    if not choice.levers:
        raise _NotTried(f"no lever ({choice.why})", "see MS-GPU-03")
    busy = bench.device.utilization_ratio()
    if busy is None:
        raise _NotTried("the driver does not tell whether it works", "see `memscaler gpus`")
    if busy:
        raise _NotTried(f"it is at work ({busy:.0%})", IDLE)
    if port := bench.clients.connected():
        raise _NotTried(f"a client is connected to port {port}", "try again when nobody is")
    return choice.levers


def _try(bench: _Bench, lever: Lever) -> Verdict:
    """Park, look, wake, look. Raise _NotTried, or GpuError while nothing is done yet."""
    if lever.is_down():
        raise _NotTried(f"its {lever.name} is as low as it gets already", LATER)
    parked, woken = _Parked(bench.device.memory_used_bytes()), _Woken(0.0)
    try:
        bench.journal.record(bench.device.identity, lever.name, lever.target)
    except OSError as error:
        raise _NotTried(f"the journal cannot be written ({error.strerror})", "see MS-UNIT-02") from error
    try:
        parked = _park(bench, lever, parked)
    finally:
        if parked.applied:
            woken = _wake(bench, lever, parked)
        if woken.seconds is not None:  # else the guardian is left something to do
            bench.journal.release(bench.uuid)
    return _outcome(bench, lever, parked, woken) if woken.seconds is not None else _asleep(bench, lever, parked)


def _park(bench: _Bench, lever: Lever, before: _Parked) -> _Parked:
    """Until the clocks are down, or something comes in between."""
    began_s, disturbance = time.monotonic(), ""
    try:
        lever.apply()
        while not (disturbance := _disturbance(bench)) and time.monotonic() < began_s + _settle_s(bench):
            with contextlib.suppress(GpuError):
                if lever.is_down():
                    return replace(before, down_s=time.monotonic() - began_s)
            time.sleep(POLL_S)
    except GpuError as error:
        applied = not isinstance(error, GpuPermission | GpuUnsupported)  # else the driver has done nothing
        return replace(before, refusal=f"{error} ({error.hint})" if error.hint else str(error), applied=applied)
    return replace(before, disturbance=disturbance)


def _disturbance(bench: _Bench) -> str:
    """What came in between."""
    if bench.context.stop.is_set():
        return "interrupted"
    if bench.journal.entry(bench.uuid) is None:
        return "this process stood still, so its guardian has stepped in"
    try:
        if bench.device.utilization_ratio() != 0:  # also if nobody can tell
            return "work came in between"
        return "a client came in between" if bench.clients.connected() else ""
    except (GpuError, OSError):
        return "work may have come in between"


def _outcome(bench: _Bench, lever: Lever, parked: _Parked, woken: _Woken) -> Verdict:
    """What is to be said about a GPU that is awake again."""
    if woken.by:
        seen = f"{lever.name}: its undo reported success without effect; {woken.by} has woken it"
        return warned(seen, "see MS-RIVAL-01; without another program it is the driver's fault", bench.name)
    if parked.down_s is not None:
        seen = (
            f"{lever.describe()} in {parked.down_s * 1000:.0f} ms, awake again in {(woken.seconds or 0) * 1000:.0f} ms"
        )
        return passed(seen, bench.name)
    if parked.disturbance:
        remedy = f"sudo memscaler {PROBE}" if bench.context.stop.is_set() else IDLE
        return unknown(f"{parked.disturbance}; it is awake again", remedy, bench.name)
    seen = parked.refusal or f"the driver reports success, but nothing moved within {_settle_s(bench):g} s"
    return failed(f"{lever.name}: {seen}", NEXT, bench.name)


def _asleep(bench: _Bench, lever: Lever, parked: _Parked) -> Verdict:
    """What is to be said about a GPU whose clocks were not seen to rise."""
    if not _occupied(bench, parked.used_bytes):  # it may be down by right
        return unknown("its server ended meanwhile, so nobody can see whether it woke", RESTORE_ALL, bench.name)
    return failed(f"{lever.name}: every undo was tried, but its clocks stay down", RESTORE_ALL, bench.name)


def _occupied(bench: _Bench, used_bytes: int | None) -> bool:
    """True if something keeps its clocks up, or nobody can tell."""
    try:
        now_bytes = bench.device.memory_used_bytes()
        return bench.device.in_use() or not used_bytes or now_bytes is None or now_bytes >= used_bytes * SAME_OCCUPANT
    except GpuError:
        return True


# ---- wake -----------------------------------------------------------------------------------------------------------


def _wake(bench: _Bench, lever: Lever, parked: _Parked) -> _Woken:
    """Undo until its clocks are seen to rise: again with a fresh handle, then with all that could hold them down."""
    began_s = time.monotonic()
    means: tuple[tuple[str, Callable[[], tuple[Lever, Lever]]], ...] = (
        ("", lambda: (lever, lever)),
        ("a second undo", partial(_afresh, bench, lever.name, every=False)),
        ("the reset of every lever", partial(_afresh, bench, lever.name, every=True)),
    )
    bench.driver.use(bench.uuid)
    try:
        in_vain = False
        for by, fetch in means:
            moved = _undone(fetch)
            if moved is not None and _rises(bench, moved, parked):
                return _Woken(time.monotonic() - began_s, by if in_vain else "")
            in_vain |= moved is not None
    finally:
        bench.driver.disuse(bench.uuid)
    return _Woken(None)


def _afresh(bench: _Bench, name: str, *, every: bool) -> tuple[Lever, Lever]:
    """(what undoes, what moves), with a handle that cannot be stale. Raise GpuError."""
    device = bench.driver.reopen(bench.uuid)
    moved = rebuild(device, name)
    return EveryLever(device) if every else moved, moved


def _undone(fetch: Callable[[], tuple[Lever, Lever]]) -> Lever | None:
    """The lever whose undo was reported as a success; None if none was."""
    for pause_s in UNDO_PAUSES_S:
        time.sleep(pause_s)
        with contextlib.suppress(GpuError):
            undoing, moved = fetch()
            undoing.undo()
            return moved
    return None


def _rises(bench: _Bench, lever: Lever, parked: _Parked) -> bool:
    """Seen to be up. Where it was not seen to be down, the park may still be on its way: then it has to stay up."""
    if parked.down_s is None:
        time.sleep(min(_settle_s(bench), ON_ITS_WAY_S))
    end_s = time.monotonic() + _settle_s(bench)
    while True:
        with contextlib.suppress(GpuError):
            if not lever.is_down():
                return True
        if time.monotonic() >= end_s:
            return False
        time.sleep(POLL_S)


def _settle_s(bench: _Bench) -> float:
    return bench.context.settings.settle_timeout_s


def _name(device: Device) -> str:
    return f"gpu{device.identity.index}"
