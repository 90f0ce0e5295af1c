"""What happened, kept for telling: the accounts behind the snapshot, and the log. It decides nothing.

Called by the loop after the hand-over of actions, never before, so that telling cannot delay a wake.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import structlog

from memscaler.core import energy
from memscaler.core.calibration import Calibration
from memscaler.core.errors import MemscalerError
from memscaler.core.gpuctl import Gpuctl
from memscaler.core.model import SECOND_NS, GovernorState, LeverResult, Outcome, Phase, Public
from memscaler.core.public import public_state
from memscaler.core.snapshot import (
    GpuReading,
    HoldSnapshot,
    Identity,
    Snapshot,
    Transition,
)
from memscaler.core.stages import Sleep
from memscaler.daemon.gpuctl_book import GpuctlBook
from memscaler.daemon.portrait import About, Facts, Known, gpu_snapshot, kernel_snapshot, watch_snapshot
from memscaler.daemon.rivals import Rival
from memscaler.daemon.sleep_book import SleepBook
from memscaler.gpu.reports import WakeTiming
from memscaler.history.writer import History
from memscaler.kernel.healing import Corrections
from memscaler.kernel.ledger import Ledger
from memscaler.kernel.watch import Watch

Method = TypeVar("Method", bound=Callable[..., Any])


def telling(otherwise: object) -> Callable[[Method], Method]:
    """For what only tells: a mistake in it is logged and answered with `otherwise`. It must not end governing."""

    def wrap(tell: Method) -> Method:
        @functools.wraps(tell)
        def safely(self: Recorder, *arguments: Any) -> Any:
            try:
                return tell(self, *arguments)
            except Exception:
                self.log.exception("telling.failed", what=tell.__name__)
                return otherwise

        return cast("Method", safely)

    return wrap


def _nobody() -> None:
    """Nobody looks."""


def _never(_: str) -> int:
    """No client has done anything."""
    return 0


MOST_TRANSITIONS = 100  # that are told
WAKE_FAILURES = frozenset({Outcome.NO_EFFECT, Outcome.LOST, Outcome.FAILED, Outcome.NEXT_LEVER})


class Recorder:
    """Used by the loop's thread only."""

    def __init__(
        self,
        facts: Facts,
        identities: Mapping[str, Identity],
        log: structlog.typing.FilteringBoundLogger,
        history: History,
        changed: Callable[[], None] = _nobody,
    ) -> None:
        """changed: called after every change of a state; must return at once."""
        now_ns = time.monotonic_ns()
        self._changed = changed
        self._facts, self._history = facts, history
        self._sleep = SleepBook(log, history)
        self._gpuctl = GpuctlBook()
        self.log = log
        self._started_ns, self._started_unix_s = now_ns, time.time()
        self._gpus: dict[str, Known] = {}
        self._calibrated_w: Mapping[str, float] = {}
        self._guardian_restarts = 0
        self._transitions: deque[Transition] = deque(maxlen=MOST_TRANSITIONS)
        self.take_on(identities)

    def take_on(self, identities: Mapping[str, Identity]) -> None:
        """These GPUs are governed from now on."""
        now_ns = time.monotonic_ns()
        for uuid, identity in identities.items():
            account = energy.open_account(Public.AWAKE, now_ns, self._calibrated_w.get(uuid))
            self._gpus[uuid] = Known(identity, None, now_ns, account)
            self._history.take_on(uuid, identity.index, identity.name, account)

    @telling(None)
    def calibrated(self, known: Mapping[str, Calibration]) -> None:
        """What was measured of each GPU; in force from its next park on."""
        self._calibrated_w = {uuid: each.awake_w.median for uuid, each in known.items() if each.awake_w is not None}
        for uuid, mine in self._gpus.items():
            mine.account = energy.calibrate(mine.account, self._calibrated_w.get(uuid))
            if uuid in known and known[uuid].driver_version != self._facts.driver_version:
                hint = "it is used all the same; `memscaler calibrate` measures anew"
                self.log.info(
                    "calibration.of_another_driver", gpu=self._index(uuid), driver=known[uuid].driver_version, hint=hint
                )

    @telling((None, None))
    def watts(self, uuid: str) -> tuple[float | None, float | None]:
        """While awake and quiet, and while parked, as far as is known of this run."""
        mine = self._gpus.get(uuid)
        return (None, None) if mine is None else (mine.account.baseline_w, energy.parked_w(mine.account))

    @telling(None)
    def let_go(self, uuid: str) -> None:
        """This one is not governed any more."""
        gone = self._gpus.pop(uuid)
        self._sleep.let_go(uuid)
        self._history.forget_count(uuid)
        self.log.info("gpu.let_go", gpu=f"gpu{gone.identity.index}")

    # ---- the governor ---------------------------------------------------------------------------------------------

    @telling(())
    def states(self, state: GovernorState, now_ns: int, heard_ns: Callable[[str], int] = _never) -> Sequence[str]:
        """Note every change of a public state. Returns the GPUs that changed.

        heard_ns: tells when a client of a GPU did something last.
        """
        changed = []
        for uuid, gpu in state.gpus.items():
            mine, public = self._gpus[uuid], public_state(gpu)
            if gpu.phase is Phase.COOLING:
                mine.quiet_ns = gpu.since_ns
            if public is mine.public:
                continue
            changed.append(uuid)
            first, was = mine.public is None, mine.public
            mine.public, mine.since_ns = public, now_ns
            mine.states.append((now_ns, str(public)))
            mine.account = energy.observe_state(mine.account, public, now_ns, heard_ns(uuid))
            self._sleep.state(uuid, public, now_ns)
            if gpu.distrust:
                mine.reason = gpu.distrust
            elif public is Public.PARKED:
                mine.reason = "quiet"
            if not gpu.distrust:
                mine.remedy = ""
            if not first:
                mine.transitions[public] += 1
                self._transitions.append(Transition(time.time(), uuid, str(was), str(public), mine.reason))
                self.log.info(
                    "gpu.changed_state", gpu=self._index(uuid), state=str(public), was=str(was), reason=mine.reason
                )
        if changed:
            self._tell_of_change(changed)
        return tuple(changed)

    @telling(None)
    def _tell_of_change(self, changed: Iterable[str]) -> None:
        for uuid in changed:
            mine = self._gpus[uuid]
            self._history.follow(uuid, mine.account, (mine.since_ns - mine.quiet_ns) / SECOND_NS, mine.reason)
        self._changed()

    @telling(None)
    def park_asked(self, uuid: str, seq: int) -> None:
        self.log.debug("gpu.park_asked", gpu=self._index(uuid), seq=seq)

    @telling(None)
    def wake_asked(self, uuid: str, seq: int, reason: str, rang_ns: int) -> None:
        """rang_ns: kernel time of the connection, 0 if it was no doorbell that woke."""
        self._gpus[uuid].reason = reason
        self._gpus[uuid].asked = (seq, reason, rang_ns)

    @telling(None)
    def alarm(self, uuid: str, reason: str) -> None:
        self.log.error("gpu.alarmed", gpu=self._index(uuid), reason=reason)

    # ---- the actuators --------------------------------------------------------------------------------------------

    @telling(None)
    def lever_answered(self, result: LeverResult) -> None:
        mine = self._gpus[result.gpu]
        mine.remedy = result.remedy or mine.remedy
        if result.outcome in WAKE_FAILURES:
            op = "wake" if result.seq == mine.asked[0] else "park"
            self.error(result.gpu, op, result.reason or str(result.outcome))
        elif result.outcome in (Outcome.BUSY, Outcome.NOTHING_TO_GAIN):
            mine.reason = result.reason
            if result.reason not in mine.skips:  # it comes again every idle time, and takes turns with others
                mine.skips.append(result.reason)
                self.log.info("gpu.park_skipped", gpu=self._index(result.gpu), reason=result.reason)
        elif result.outcome is Outcome.APPLIED:
            mine.skips.clear()
            self.log.info("gpu.lever_applied", gpu=self._index(result.gpu), what=result.reason)
        elif result.outcome is Outcome.VERIFIED:
            mine.failed, mine.conflict = ("", ""), ""
            self.log.debug("gpu.park_verified", gpu=self._index(result.gpu))

    @telling(None)
    def woke(self, timing: WakeTiming) -> None:
        """The driver call of a wake returned."""
        mine = self._gpus[timing.gpu]
        seq, reason, rang_ns = mine.asked
        call_us = (timing.driver_call_end_ns - timing.driver_call_start_ns) // 1000
        if seq == timing.seq and rang_ns:
            latency_ns = timing.driver_call_end_ns - rang_ns
            mine.latencies.add(latency_ns / SECOND_NS)
            self._history.woke(timing.gpu, latency_ns / SECOND_NS)
            told = {"latency_us": latency_ns // 1000, "driver_call_us": call_us}
        else:
            told = {"driver_call_us": call_us}
        self.log.info("gpu.woken", gpu=self._index(timing.gpu), reason=reason, **told)

    @telling(None)
    def sampled(self, uuid: str, reading: GpuReading) -> None:
        mine = self._gpus[uuid]
        mine.reading, mine.sampled_ns = reading, reading.at_ns
        mine.account = energy.observe_reading(mine.account, reading)
        if reading.power_w is not None:
            mine.power.append((reading.at_ns, reading.power_w))
        self._history.follow(uuid, mine.account)
        self._sleep.sampled(uuid, reading)

    def oldest_sample_ns(self) -> int:
        """The time of the last sample of that GPU whose last sample is oldest."""
        return min((gpu.sampled_ns for gpu in self._gpus.values()), default=0)

    @telling(None)
    def error(self, uuid: str, op: str, reason: str) -> None:
        mine = self._gpus[uuid]
        mine.errors[op] += 1
        if (op, reason) != mine.failed:  # a wake is tried for ever: once is enough for the log, the metrics count
            mine.failed = (op, reason)
            self.log.warning("driver.failed", gpu=self._index(uuid), op=op, reason=reason, remedy=mine.remedy)

    @telling(None)
    def note(self, uuid: str, event: str, detail: str) -> None:
        if event == "gpu.sample_failed":
            self._gpus[uuid].errors["sample"] += 1
            self._gpus[uuid].reading = None
        self.log.warning(event, gpu=self._index(uuid), detail=detail)

    # ---- the kernel side and the rest -----------------------------------------------------------------------------

    @telling(None)
    def corrected(self, watch: Watch, corrections: Corrections, reason: str) -> None:
        if corrections.added or corrections.removed:
            what = {"added": corrections.added, "removed": corrections.removed}
            self.log.info("connections.corrected", port=watch.port, reason=reason, **what)

    @telling(None)
    def ledger_failed(self, error: str) -> None:
        self.log.error("ledger.failed", err=error)

    @telling(None)
    def guardian_died(self) -> None:
        self._guardian_restarts += 1
        self.log.error("guardian.died", hint="every GPU is kept awake until another one is ready")

    @telling(None)
    def guardian_ready(self, pid: int) -> None:
        self.log.info("guardian.started", pid=pid)

    @telling(None)
    def conflict(self, uuid: str, what: str, find: Callable[[], Iterable[Rival]]) -> None:
        """Another program has changed the clocks of a parked GPU."""
        self._gpus[uuid].conflict = self._gpus[uuid].reason = what
        self._gpus[uuid].errors["conflict"] += 1
        try:
            running = ", ".join(f"{rival.name} (pid {rival.pid})" for rival in find())
        except OSError as error:
            running = f"cannot be told: {error}"
        hint = "let only one program set clocks; see conflict_pause"
        self.log.warning("gpu.overridden", gpu=self._index(uuid), what=what, rivals=running or "none known", hint=hint)

    @telling(None)
    def hook_lost(self, hook: str, problem: str) -> None:
        """Somebody has detached a program of ours. problem: why it could not be attached again, "" if it was."""
        self.log.warning("kernel.hook_lost", hook=hook, attached_again=not problem, problem=problem)

    @telling(None)
    def resumed(self, slept_s: float) -> None:
        self.log.info("machine.resumed", slept_s=round(slept_s, 1))

    @telling(())
    def slept(self, sleep: Sleep) -> Sequence[str]:
        """The sleeper has reported. Answers with the GPUs to sample, because their servers went deeper, or came up."""
        states = {uuid: mine.public for uuid, mine in self._gpus.items() if mine.public is not None}
        changed = self._sleep.told(sleep, states, time.monotonic_ns())
        self._changed()
        return changed

    @telling(None)
    def controlled(self, gpuctl: Gpuctl) -> None:
        """The arbiter has reported."""
        self._gpuctl.told(gpuctl)
        self._changed()

    @telling(None)
    def reloaded(self, changes: Sequence[str], error: MemscalerError | None) -> None:
        if error is None:
            self.log.info("config.reloaded", changes=list(changes))
        else:
            self.log.error("config.refused", err=str(error), hint=error.hint, now="everything stays as it was")

    @telling("")
    def reason_of(self, uuid: str) -> str:
        """Why a GPU is in its state, as far as is known."""
        return self._gpus[uuid].reason

    @telling(None)
    def started(self) -> None:
        self.log.info("memscaler.started", version=self._facts.version, driver=self._facts.driver_version)

    @telling(None)
    def stopping(self, reason: str) -> None:
        self.log.info("memscaler.stopping", reason=reason)

    @telling(None)
    def left_parked(self, uuid: str) -> None:
        self.log.error("gpu.left_parked", gpu=self._index(uuid), hint="run `memscaler restore`")

    @telling("")
    def summary(self, state: GovernorState) -> str:
        """One line for `systemctl status`."""
        counts = Counter(str(public_state(gpu)) for gpu in state.gpus.values())
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))

    @telling(None)
    def snapshot(
        self,
        state: GovernorState,
        ledger: Ledger,
        now_ns: int,
        about: Callable[[str], About],
        paused: HoldSnapshot | None,
    ) -> Snapshot | None:
        """Everything that is known now. paused: what keeps every GPU awake."""
        return Snapshot(
            at_ns=now_ns,
            started_unix_s=self._started_unix_s,
            version=self._facts.version,
            driver_version=self._facts.driver_version,
            hostname=self._facts.hostname,
            dry_run=self._facts.dry_run,
            gpus=tuple(
                replace(
                    gpu_snapshot(mine, state.gpus[uuid], now_ns, about(uuid), self._history.of(uuid)),
                    stages=self._sleep.spent(uuid),
                )
                for uuid, mine in self._gpus.items()
            ),
            watches=tuple(
                watch_snapshot(watch, ledger, now_ns, self._facts, self._started_ns)
                for watch in ledger.watches.values()
            ),
            kernel=kernel_snapshot(ledger),
            guardian_restarts=self._guardian_restarts,
            history_write_failures=self._history.failures,
            waiting=self._facts.waiting(),
            paused=paused,
            ungoverned=self._facts.ungoverned(),
            transitions=tuple(self._transitions),
            saved_since_unix_s=self._history.since_unix_s,
            labels=self._facts.labels,
            sleep=self._sleep.sleep,
            stage_wakes=self._sleep.wakes,
            gpuctl=self._gpuctl.gpuctl,
            discovers=self._facts.discovers(),
        )

    def _index(self, uuid: str) -> str:
        known = self._gpus.get(uuid)
        return f"gpu{known.identity.index}" if known else ""
