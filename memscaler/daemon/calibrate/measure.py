"""Each GPU that is to be measured, one after the other; what is known is written down after each.

    lock, or a daemon that has let go of the driver -> guardian -> for each GPU: rounds -> calibration.json

A daemon that governs is not joined: it would park and wake the same GPU, and only it hears its doorbell. While it has
let go of the driver (`memscaler release`) nobody governs, and while we hold the lock of who calibrates nobody begins:
it refuses to resume. What another memscaler parks all the same (of another runtime directory, say) ends a round.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from memscaler import __version__
from memscaler.core.calibration import Calibration, Round, summary
from memscaler.core.errors import DaemonRunning, GpuError, MemscalerError, Unavailable, UsageError
from memscaler.core.snapshot import Identity
from memscaler.daemon import lock
from memscaler.daemon.calibrate.rounds import Rounds, Stopped, TryNext
from memscaler.daemon.calibrate.sampler import Sampler
from memscaler.daemon.doctor.clients import Unclear, clients_of, governed
from memscaler.daemon.doctor.context import Context, NoAnswer
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.targets import wanted_lever
from memscaler.daemon.trial import NotTried, Trial, guarded
from memscaler.gpu.inventory import Device, Driver, resolve
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import Lever
from memscaler.history import calibration as kept

AGAIN = "sudo memscaler calibrate"
LOAD = "load a model and leave it alone, then run again"
BESIDE = "memscaler release && memscaler calibrate ...; memscaler resume"
DENIED = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """gpus: as an operator names them; none: those that the configuration governs."""

    gpus: tuple[str, ...]
    rounds: int
    hold_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of one GPU. problem: why it was not measured, "" if it was. last: the last round. exit_code: 0 if all is well.

    clients_looked_for: False: no port is known behind which it works; None: it did not come to that.
    """

    identity: Identity
    calibration: Calibration | None = None
    problem: str = ""
    remedy: str = ""
    last: Round | None = None
    exit_code: int = 0
    clients_looked_for: bool | None = None


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all GPUs share. allowed: why no round may begin now, "" if it may. watch: a sampler that must stay alive."""

    context: Context
    wanted: Wanted
    driver: Driver
    journal: Journal
    allowed: Callable[[], str]
    tell: Callable[[str], None]
    watch: Callable[[Sampler | None], None]


def calibrate(
    context: Context, wanted: Wanted, tell: Callable[[str], None], watch: Callable[[Sampler | None], None]
) -> Iterator[Result]:
    """Raise MemscalerError for what keeps all of it from beginning. watch: called when the driver begins to be used."""
    driver = _driver(context)
    devices = _devices(context, driver, wanted)
    runtime_dir = context.settings.runtime_dir
    lock.prepare_runtime_dir(runtime_dir)
    journal = Journal(runtime_dir / JOURNAL)
    with _without_daemon(context) as allowed, guarded(runtime_dir, context.environment, journal):
        bench = _Bench(context, wanted, driver, journal, allowed, tell, watch)
        for device in devices:
            result = _kept(context, _measured(bench, device))
            yield result
            if context.stop.is_set():
                return


def _driver(context: Context) -> Driver:
    try:
        driver = context.driver()
    except NoAnswer as error:
        raise Unavailable(str(error), hint="a driver call hangs; see `dmesg`") from error
    if not driver.gpus:
        lost = "; ".join(f"gpu{gpu.index}: {gpu.reason}" for gpu in driver.lost)
        raise Unavailable("there is no GPU that answers", hint=lost or "see `memscaler doctor`")
    return driver


def _devices(context: Context, driver: Driver, wanted: Wanted) -> tuple[Device, ...]:
    """Raise UsageError, or MemscalerError if nobody can tell which GPUs are governed."""
    if wanted.gpus:
        found = [resolve(spec, driver.gpus, driver.lost) for spec in wanted.gpus]
        return tuple({device.identity.uuid: device for device in found}.values())
    try:
        mine = governed(context, driver)
    except Unclear as error:
        raise MemscalerError(str(error), hint=f"{error.remedy}; or name the GPUs") from error
    except (OSError, NoAnswer) as error:
        raise MemscalerError(f"the servers cannot be looked for: {error}", hint="name the GPUs") from error
    devices = tuple(device for device in driver.gpus if device.identity.uuid in mine)
    if not devices:
        raise UsageError("the configuration governs none of the GPUs that answer", hint="name some: gpu0")
    return devices


@contextlib.contextmanager
def _without_daemon(context: Context) -> Iterator[Callable[[], str]]:
    """While no daemon governs, nor may begin to. Yields what tells why no round may begin, "" if one may.

    Raise DaemonRunning or Calibrating.
    """
    runtime_dir = context.settings.runtime_dir
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(os.close, lock.acquire(runtime_dir))
            allowed, beside = _always, ""
        except DaemonRunning as error:
            lock.refuse_beside_calibration(runtime_dir)
            _refuse_unless_released(context, error.pid)
            allowed, beside = _unless_resumed(context), error.pid
        stack.callback(os.close, lock.acquire_calibration(runtime_dir))
        if beside:  # it may have been resumed just before
            _refuse_unless_released(context, beside)
        yield allowed


def _refuse_unless_released(context: Context, pid: str) -> None:
    if not _is_released(context):
        raise DaemonRunning(pid, hint=f"let go of its GPUs for a few minutes: {BESIDE}")


def _always() -> str:
    return ""


def _unless_resumed(context: Context) -> Callable[[], str]:
    return lambda: "" if _is_released(context) else "the daemon governs again"


def _is_released(context: Context) -> bool:
    try:
        return bool(context.ask_status()["mode"] == "released")
    except (MemscalerError, KeyError):
        return False


# ---- one GPU --------------------------------------------------------------------------------------------------------


def _measured(bench: _Bench, device: Device) -> Result:
    identity = device.identity
    try:
        with clients_of(device, bench.context.founds_now(), bench.driver) as clients:
            settle_s, stop = bench.context.settings.settle_timeout_s, bench.context.stop
            sampler = Sampler(device)
            trial = Trial(bench.driver, bench.journal, device, clients, stop, settle_s, sampler.take_if_due)
            bench.watch(sampler)
            return replace(_with_levers(bench, trial, sampler), clients_looked_for=clients.known)
    except Stopped as error:
        return Result(identity, None, str(error), error.remedy, exit_code=DENIED if error.denied else 1)
    except NotTried as error:
        return Result(identity, None, str(error), error.remedy, exit_code=1)
    except OSError as error:
        seen = f"who is connected to its servers cannot be seen ({error.strerror or error})"
        return Result(identity, None, seen, "try again", exit_code=1)
    except NoAnswer as error:
        return Result(identity, None, str(error), "see `dmesg`", exit_code=1)
    except (GpuError, UsageError) as error:
        return Result(identity, None, str(error), error.hint, exit_code=max(1, error.exit_code))
    finally:
        bench.watch(None)


def _with_levers(bench: _Bench, trial: Trial, sampler: Sampler) -> Result:
    """With the levers that it has, until one works. Raise Stopped, NotTried or GpuError."""
    wanted = wanted_lever(trial.device, bench.driver, bench.context.settings)
    failed: list[TryNext] = []
    hold_s = max(bench.wanted.hold_s, trial.device.capabilities.switch_interval_ms / 1000)
    rounds = Rounds(trial, sampler, hold_s, bench.allowed, lambda text: bench.tell(f"{trial.name}: {text}"))
    for lever in trial.levers(wanted, AGAIN):
        if lever.is_down():
            return _low_already(bench, trial, rounds, lever)
        try:
            found = rounds.measure(lever, bench.wanted.rounds)
        except TryNext as error:
            failed.append(error)
            continue
        about = replace(_about(bench, trial), lever=lever.name, target=lever.target, power_source=sampler.power_source)
        return Result(trial.device.identity, summary(found, about), last=found[-1])
    raise Stopped("; ".join(map(str, failed)), failed[-1].remedy, denied=all(each.denied for each in failed))


def _low_already(bench: _Bench, trial: Trial, rounds: Rounds, lever: Lever) -> Result:
    """Its clocks are down by themselves: without a context that is so with every card."""
    bare_w = rounds.bare_w()
    if bare_w is None:
        reason = f"its {lever.name} is as low as it gets already, so there is nothing to park"
        raise Stopped(reason, f"{LOAD}; a card that does this with a model loaded needs no memscaler")
    about = replace(_about(bench, trial), bare_w=bare_w, bare_unix_s=time.time())
    reason = "no model is loaded, so its clocks are low by themselves: only its bare watts were measured"
    return Result(trial.device.identity, about, reason, LOAD, exit_code=1)


def _about(bench: _Bench, trial: Trial) -> Calibration:
    who = trial.device.identity
    return Calibration(who.uuid, who.name, time.time(), __version__, bench.driver.driver_version)


def _kept(context: Context, result: Result) -> Result:
    """Written down, with what an earlier calibration knows and this one could not see."""
    if (now := result.calibration) is None:
        return result
    before = kept.load(context.settings.kept_in).get(now.uuid)
    if before is not None and now.bare_w is None:
        now = replace(now, bare_w=before.bare_w, bare_unix_s=before.bare_unix_s)
    elif before is not None and before.rounds:  # only the bare watts are new, and complete it
        now = replace(before, bare_w=now.bare_w, bare_unix_s=now.bare_unix_s)
        result = replace(result, problem="", remedy="", exit_code=0)
    result = replace(result, calibration=now)
    try:
        kept.save(context.settings.kept_in, [now])
    except OSError as error:
        where = f"{context.settings.kept_in / kept.FILE}: {error.strerror or error}"
        told = f"{result.problem}; " * bool(result.problem) + f"the figures cannot be written to {where}"
        return replace(result, problem=told, remedy="see state_dir; is the disk full?", exit_code=1)
    return result
