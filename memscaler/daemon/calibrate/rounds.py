"""The rounds of one GPU: park, stay until the power has settled, wake, wait until all is as before; and once more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from memscaler.core.calibration import Marks, Round, measured, spread
from memscaler.core.errors import GpuError
from memscaler.daemon.calibrate.sampler import Sampler, is_back
from memscaler.daemon.trial import IDLE, LOOK_S, RESTORE_ALL, Parked, Trial, Woken
from memscaler.gpu.levers import Lever

BARE_MOST_BYTES = 1 << 30  # that the driver keeps for itself where no process has a context
CALM_SHARE = 0.5  # of the time that a GPU stays parked or awake: the rest of it the power may settle
STEP_S = LOOK_S / 2
BLIND_S = 3.0  # between two samples, of which there are fifty a second unless the driver is slow


class Stopped(Exception):
    """It could not be measured; the message says why. denied: it is the right that is missing."""

    def __init__(self, reason: str, remedy: str, *, denied: bool = False) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.denied = denied


class TryNext(Stopped):
    """This lever does not work here; the next one may."""


@dataclass(slots=True)
class Rounds:
    """trial: with the sampler's take_if_due as its pause. hold_s: how long each round stays parked, and awake.

    allowed: why no round may begin now, "" if it may. tell: progress for people.
    """

    trial: Trial
    sampler: Sampler
    hold_s: float
    allowed: Callable[[], str]
    tell: Callable[[str], None]

    def measure(self, lever: Lever, count: int) -> list[Round]:
        """Raise Stopped, TryNext, NotTried or GpuError; the GPU is awake then, or said to be not."""
        took_s = 2 * self.hold_s
        self.tell(f"{count} round{'s' * (count != 1)} of {took_s:.0f} s and more; first {self.hold_s:g} s awake")
        self._stay_awake()
        rounds: list[Round] = []
        for number in range(count):
            self.tell(f"round {number + 1} of {count}")
            rounds.append(self._round(lever))
            self.sampler.forget(self.sampler.samples[-1].at_s - self.hold_s * CALM_SHARE)
        return rounds

    def bare_w(self) -> float | None:
        """Watts, if no process has a context, as far as can be seen."""
        used_bytes = self.trial.device.memory_used_bytes()
        if self.trial.device.in_use() or used_bytes is None or used_bytes > BARE_MOST_BYTES:
            return None
        self.tell("no model is loaded")
        self._stay_awake()
        calm_s = time.monotonic() - self.hold_s * CALM_SHARE
        readings = spread(each.power_w for each in self.sampler.samples if each.at_s >= calm_s)
        return None if self.trial.device.in_use() or readings is None else readings.median

    def _round(self, lever: Lever) -> Round:
        if (reason := self.allowed()) or (reason := self.trial.disturbance()):
            raise Stopped(f"{reason}; it is awake", IDLE)
        clock, sampler = self.sampler.clock_of(lever), self.sampler
        before = clock()
        sampler.take()
        begun_s, down_gap_s = sampler.samples[-1].at_s, 0.0

        def stay(parked: Parked) -> str:
            nonlocal down_gap_s
            down_gap_s = _since(sampler.looked_s, parked.began_s)
            sampler.take()
            return self._stay(lambda: "")

        parked, woken = self.trial.park_and_wake(lever, stay)
        up_s = time.monotonic()
        self._judge(lever, parked, woken)
        assert parked.down_s is not None and woken.seconds is not None  # noqa: S101, PT018  # judged
        up_gap_s = _since(sampler.looked_s, woken.began_s, up_s)
        back_s, back_gap_s = self._wait_until_back(clock, before)
        if disturbance := self._stay(lambda: "") or self._disturbed(lever, begun_s):
            raise Stopped(f"{disturbance}; nothing of this is kept", IDLE)
        marks = Marks(
            park_s=parked.began_s,
            down_s=parked.began_s + parked.down_s,
            wake_s=woken.began_s,
            up_s=woken.began_s + woken.seconds,
            back_s=back_s,
            end_s=sampler.samples[-1].at_s,
            calm_s=self.hold_s * CALM_SHARE,
            resolution_s=max(down_gap_s, up_gap_s, back_gap_s),
        )
        return measured(sampler.samples, marks)

    def _disturbed(self, lever: Lever, begun_s: float) -> str:
        """At the end of a round: what else may have been measured than its own park and wake, "" if nothing."""
        looked_s = [each.at_s for each in self.sampler.samples if each.at_s >= begun_s]
        looks = itertools.pairwise([*looked_s, time.monotonic()])
        if max(now_s - before_s for before_s, now_s in looks) > BLIND_S:
            return f"nobody could look at it for more than {BLIND_S:g} s, this process stood still"
        if lever.is_down():
            return "somebody else has lowered its clocks"
        return self.allowed()

    def _judge(self, lever: Lever, parked: Parked, woken: Woken) -> None:
        """Raise Stopped unless it was parked, undisturbed, and woken by the first undo."""
        if woken.seconds is None:
            if problem := _silence(self.trial):
                reason = f"it does not answer any more ({problem}), so nobody can see whether it woke"
            elif not self.trial.occupied(parked.used_bytes):
                reason = "its server ended meanwhile, so nobody can see whether it woke"
            else:
                reason = "every undo was tried, but its clocks stay down"
            raise Stopped(f"{lever.name}: {reason}", RESTORE_ALL)
        if woken.by:
            reason = f"its undo reported success without effect; {woken.by} has woken it"
            raise Stopped(f"{lever.name}: {reason}", "see MS-RIVAL-01 in docs/troubleshooting.md")
        if parked.disturbance:
            raise Stopped(f"{parked.disturbance}; it is awake again", IDLE)
        if parked.refusal:
            raise TryNext(f"{lever.name}: {parked.refusal}", "see MS-GPU-03", denied=parked.denied)
        if parked.down_s is None:
            seen = f"the driver reports success, but nothing moved within {self.trial.settle_s:g} s"
            raise TryNext(f"{lever.name}: {seen}", "see MS-GPU-03 and MS-RIVAL-01")

    def _wait_until_back(self, clock: Callable[[], float | None], before: float | None) -> tuple[float | None, float]:
        """When the clock was seen where it had been, and for how long nobody had looked; None: not in time."""
        last_s, end_s = time.monotonic(), time.monotonic() + self.trial.settle_s
        while before is not None and time.monotonic() < end_s:
            back, now_s = is_back(clock(), before), time.monotonic()
            if back:
                return now_s, now_s - last_s
            last_s = now_s
            self.sampler.take_if_due()
        return None, 0.0

    def _stay_awake(self) -> None:
        """Before the first round: what was before may still show in its power."""
        if disturbance := self._stay(self.allowed):
            raise Stopped(f"{disturbance}; it is awake", IDLE)

    def _stay(self, allowed: Callable[[], str]) -> str:
        """For hold_s, or until something comes in between: what."""
        end_s, reason = time.monotonic() + self.hold_s, allowed()
        while not reason and time.monotonic() < end_s:
            reason = self.trial.disturbance()
            self.sampler.take_if_due()
            time.sleep(STEP_S)
        return reason


def _silence(trial: Trial) -> str:
    """Why a GPU does not answer, "" if it does."""
    try:
        trial.device.utilization_ratio()
    except GpuError as error:
        return str(error)
    return ""


def _since(looked_s: float, began_s: float, now_s: float | None = None) -> float:
    """The time in which nobody looked: since the last look, or since the driver call began."""
    return (time.monotonic() if now_s is None else now_s) - max(looked_s, began_s)
