"""A real park and wake of each GPU, for `doctor --probe`: with the levers, the journal and the guardian of the daemon.

    lock -> guardian -> for each idle GPU of the configuration, while nobody is connected to its servers: a trial

The lock keeps a daemon from starting meanwhile. What a trial is, and why none leaves a GPU parked: daemon/trial.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from memscaler.config.schema import Settings
from memscaler.core.errors import DaemonRunning, GpuError, GpuUnsupported, UsageError
from memscaler.daemon import lock
from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.clients import Unclear, clients_of, governed
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import NEEDS_ROOT, Verdict, failed, passed, unknown, warned
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.targets import wanted_lever
from memscaler.daemon.trial import IDLE, RESTORE_ALL, NotTried, Parked, Trial, Woken, guarded
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import Lever

NEXT = "the next lever is tried"
LATER = "try again while a server is loaded and quiet"
AGAIN = "sudo memscaler doctor --probe"


def park_and_wake(context: Context) -> Iterator[Verdict]:
    """Every GPU that the configuration governs, one after the other."""
    if not (context.is_root and context.probe):
        yield unknown("not tried", NEEDS_ROOT.replace("doctor", "doctor --probe"))
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
        with guarded(runtime_dir, context.environment, journal):
            for device in driver.gpus:
                if device.identity.uuid in mine:
                    yield _alone(context, driver, journal, device, founds)
                else:
                    remedy = "name it in a [[watch]] table to have it governed, and tried"
                    yield unknown("not tried: no watch names it", remedy, _name(device))
    finally:
        os.close(held)


def _alone(context: Context, driver: Driver, journal: Journal, device: Device, founds: Iterable[Found]) -> Verdict:
    """One GPU, as long as nobody is connected to its servers."""
    try:
        with clients_of(device, founds, driver) as clients:
            trial = Trial(driver, journal, device, clients, context.stop, context.settings.settle_timeout_s)
            return _probe(trial, context.settings)
    except OSError as error:
        seen = f"not tried: who is connected to its servers cannot be seen ({error.strerror or error})"
        return unknown(seen, "try again", _name(device))


def _probe(trial: Trial, settings: Settings) -> Verdict:
    """One GPU, with the levers that it has, until one works."""
    reasons = []
    try:
        for lever in trial.levers(wanted_lever(trial.device, trial.driver, settings), AGAIN):
            verdict = _try(trial, lever)
            if verdict.remedy != NEXT:
                return verdict
            reasons.append(verdict.seen)
    except NotTried as error:
        return unknown(f"not tried: {error}", error.remedy, trial.name)
    except (GpuUnsupported, UsageError) as error:
        return unknown(f"not tried: {error}", "see MS-GPU-03", trial.name)
    except GpuError as error:
        return unknown(f"not tried: {error}", error.hint or "see `dmesg | grep -i nvrm`", trial.name)
    return failed("; ".join(reasons), "this GPU cannot be parked here: see MS-GPU-03 and MS-RIVAL-01", trial.name)


def _try(trial: Trial, lever: Lever) -> Verdict:
    """Park, look, wake, look. Raise NotTried, or GpuError while nothing is done yet."""
    if lever.is_down():
        raise NotTried(f"its {lever.name} is as low as it gets already", LATER)
    parked, woken = trial.park_and_wake(lever)
    return _asleep(trial, lever, parked) if woken.seconds is None else _outcome(trial, lever, parked, woken)


def _outcome(trial: Trial, lever: Lever, parked: Parked, woken: Woken) -> Verdict:
    """What is to be said about a GPU that is awake again."""
    if woken.by:
        seen = f"{lever.name}: its undo reported success without effect; {woken.by} has woken it"
        return warned(seen, "see MS-RIVAL-01; without another program it is the driver's fault", trial.name)
    if parked.down_s is not None:
        seen = (
            f"{lever.describe()} in {parked.down_s * 1000:.0f} ms, awake again in {(woken.seconds or 0) * 1000:.0f} ms"
        )
        return passed(seen, trial.name)
    if parked.disturbance:
        remedy = AGAIN if trial.stop.is_set() else IDLE
        return unknown(f"{parked.disturbance}; it is awake again", remedy, trial.name)
    seen = parked.refusal or f"the driver reports success, but nothing moved within {trial.settle_s:g} s"
    return failed(f"{lever.name}: {seen}", NEXT, trial.name)


def _asleep(trial: Trial, lever: Lever, parked: Parked) -> Verdict:
    """What is to be said about a GPU whose clocks were not seen to rise."""
    if not trial.occupied(parked.used_bytes):  # it may be down by right
        return unknown("its server ended meanwhile, so nobody can see whether it woke", RESTORE_ALL, trial.name)
    return failed(f"{lever.name}: every undo was tried, but its clocks stay down", RESTORE_ALL, trial.name)


def _name(device: Device) -> str:
    return f"gpu{device.identity.index}"
