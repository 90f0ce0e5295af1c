"""A real park and wake of each GPU, for `doctor --probe`: with the levers, the journal and the guardian of the daemon.

    lock -> guardian -> for each idle GPU: journal -> driver call -> read back until down -> undo -> journal released

The lock keeps a daemon from starting meanwhile. Whatever happens, the undo follows: on Ctrl-C and on the first sign of
work at once; if this process is killed, the guardian wakes what the journal names, or else `memscaler restore`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memscaler.core.errors import DaemonRunning, GpuError, GpuPermission, GpuUnsupported, MemscalerError, UsageError
from memscaler.daemon import lock
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import NEEDS_ROOT, Result, Verdict, failed, passed, unknown
from memscaler.daemon.guardian import JOURNAL, Guardian
from memscaler.daemon.targets import wanted_lever
from memscaler.gpu.capability import choose
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import Lever
from memscaler.gpu.restore import restore

POLL_S = 0.01
UNDO_PAUSES_S = (0.02, 0.1, 0.5)
RESTORE = "sudo memscaler restore"
LATER = "try again while a server is loaded and quiet"
PROBE = "doctor --probe"


@dataclass(frozen=True, slots=True)
class _Bench:
    """What one try needs."""

    context: Context
    driver: Driver
    journal: Journal
    device: Device

    @property
    def name(self) -> str:
        return f"gpu{self.device.identity.index}"


def park_and_wake(context: Context) -> Iterator[Verdict]:
    """Every GPU, one after the other."""
    if not (context.is_root and context.probe):
        yield unknown("not tried", NEEDS_ROOT.replace("doctor", PROBE))
        return
    try:
        driver = context.driver()
    except GpuError as error:
        yield unknown(f"not tried: {error}", "see MS-DRIVER-02")
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
                yield _probe(_Bench(context, driver, journal, device))
    finally:
        os.close(held)


@contextlib.contextmanager
def _guarded(context: Context, journal: Journal) -> Iterator[None]:
    """While a guardian watches. One that is not told good-bye wakes what is left."""
    guardian = Guardian(context.settings.runtime_dir, context.environment)
    before = set(journal.entries())
    try:
        if not guardian.wait_ready():
            raise MemscalerError("not tried: the guardian process does not start", hint="see what it says above")
        yield
    finally:
        guardian.dismiss() if set(journal.entries()) <= before else guardian.close()


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
            if verdict.result is not Result.FAIL or verdict.remedy == RESTORE:
                return verdict
            reasons.append(verdict.seen)
    except _NotTried as error:
        return unknown(f"not tried: {error}", error.remedy, bench.name)
    except (GpuUnsupported, UsageError) as error:
        return unknown(f"not tried: {error}", "see MS-GPU-03", bench.name)
    except GpuError as error:
        return unknown(f"not tried: {error}", error.hint or "see `dmesg | grep -i nvrm`", bench.name)
    except OSError as error:
        return unknown(f"not tried: the journal cannot be written ({error.strerror})", "see MS-UNIT-02", bench.name)
    return failed("; ".join(reasons), "this GPU cannot be parked here: see MS-GPU-03 and MS-RIVAL-01", bench.name)


def _levers(bench: _Bench) -> tuple[Lever, ...]:
    """Those to try. Raise _NotTried, or GpuError."""
    if bench.context.stop.is_set():
        raise _NotTried("interrupted", f"sudo memscaler {PROBE}")
    if bench.journal.entry(bench.device.identity.uuid) is not None:
        raise _NotTried("it was left parked by a memscaler that is gone", RESTORE)
    choice = choose(bench.device, wanted_lever(bench.device, bench.driver, bench.context.settings))
    if not choice.levers:
        raise _NotTried(f"no lever ({choice.why})", "see MS-GPU-03")
    busy = bench.device.utilization_ratio()
    if busy is None:
        raise _NotTried("the driver does not tell whether it works", "see `memscaler gpus`")
    if busy:
        raise _NotTried(f"it is at work ({busy:.0%})", "try again while it is idle")
    return choice.levers


def _try(bench: _Bench, lever: Lever) -> Verdict:
    """Park, look, wake, look. Raise _NotTried, or GpuError while nothing is done yet."""
    if lever.is_down():
        raise _NotTried(f"its {lever.name} is as low as it gets already", LATER)
    bench.journal.record(bench.device.identity, lever.name, lever.target)
    down_s, up_s, refusal, applied = None, None, "", True
    try:
        lever.apply()
        down_s = _wait(bench, lever.is_down, until_disturbed=True)
    except GpuError as error:
        refusal = f"{error} ({error.hint})" if error.hint else str(error)
        applied = not isinstance(error, GpuPermission | GpuUnsupported)  # else the driver has done nothing
    finally:
        up_s = _wake(bench, lever) if applied else _forget(bench)
    if up_s is None:
        return failed(f"{lever.name}: it could not be woken again", RESTORE, bench.name)
    return _outcome(bench, lever, refusal, down_s, up_s)


def _outcome(bench: _Bench, lever: Lever, refusal: str, down_s: float | None, up_s: float) -> Verdict:
    """What is to be said about a GPU that is awake again."""
    if down_s is not None:
        seen = f"{lever.describe()} in {down_s * 1000:.0f} ms, awake again in {up_s * 1000:.0f} ms"
        return passed(seen, bench.name)
    if bench.context.stop.is_set():
        return unknown("interrupted; it is awake again", f"sudo memscaler {PROBE}", bench.name)
    if not refusal and _works(bench):
        return unknown("work came in between; it is awake again", "try again while it is idle", bench.name)
    seen = refusal or f"the driver reports success, but nothing moved within {_settle_s(bench):g} s"
    return failed(f"{lever.name}: {seen}", "the next lever is tried", bench.name)


def _forget(bench: _Bench) -> float:
    bench.journal.release(bench.device.identity.uuid)
    return 0.0


def _wake(bench: _Bench, lever: Lever) -> float | None:
    """Undo, by all means. Seconds until its clocks were seen to rise; None: it may be parked still."""
    began_s = time.monotonic()
    for pause_s in (0.0, *UNDO_PAUSES_S):
        time.sleep(pause_s)
        try:
            lever.undo()
        except GpuError:
            continue
        bench.journal.release(bench.device.identity.uuid)
        break
    else:
        if not restore(bench.journal, bench.driver).ok:
            return None
    _wait(bench, lambda: not lever.is_down(), until_disturbed=False)
    return time.monotonic() - began_s


def _wait(bench: _Bench, is_so: Callable[[], bool], *, until_disturbed: bool) -> float | None:
    """Seconds until it is so; None if that takes too long, or if somebody interrupts."""
    began_s = time.monotonic()
    while (waited_s := time.monotonic() - began_s) < _settle_s(bench):
        if until_disturbed and (bench.context.stop.is_set() or _works(bench)):
            return None
        with contextlib.suppress(GpuError):
            if is_so():
                return waited_s
        time.sleep(POLL_S)
    return None


def _works(bench: _Bench) -> bool:
    """True also if nobody can tell."""
    try:
        return bool(bench.device.utilization_ratio())
    except GpuError:
        return True


def _settle_s(bench: _Bench) -> float:
    return bench.context.settings.settle_timeout_s
