"""Whether every GPU is as it is meant to be: what memscaler has set against what the driver says, by a fresh look.

A parked GPU has its lever in the journal and its clocks where that put them; on any other GPU nothing of ours is set,
and it does not work with its clocks down. A GPU that does not answer is `unknown`, and one that is on its way from one
state to another is `changing`: neither is a pass, and the next look may tell. A wake that fails is tried for ever, so
a GPU with such a wake is no `changing` one: it has drifted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from memscaler.core.model import Phase, Public
from memscaler.core.snapshot import GpuReading, GpuSnapshot, Intent, Snapshot
from memscaler.daemon import conflicts
from memscaler.daemon.requests import Document
from memscaler.gpu.levers import GRAPHICS_CLOCK, MEMORY_CLOCK

MOVING = frozenset({Phase.ARMING, Phase.PARKING, Phase.WAKING})
NOT_OURS = "nothing of memscaler's is set"
WHO = "another program sets clocks: `memscaler status` names those that are known to; let only one of them do it"
LEFT = "`memscaler status` says what the driver refuses; `systemctl restart memscaler` tries everything anew"
NO_ANSWER = "see `dmesg | grep -i nvrm`, and `nvidia-smi`"


class Verdict(StrEnum):
    """Of one GPU."""

    OK = "ok"
    DRIFT = "drift"
    UNKNOWN = "unknown"
    CHANGING = "changing"


@dataclass(frozen=True, slots=True)
class Known:
    """What the daemon knows of a GPU beside the snapshot. clocks_mhz: the memory clocks that it supports.

    trouble: why it is not trusted, or why its wake failed, "" if all is well. retries: wakes that failed in a row.
    """

    phase: Phase
    clocks_mhz: Sequence[int]
    is_journaled: bool
    trouble: str = ""
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, as a sentence, and what to do about it. wanted, seen: the difference, in words."""

    verdict: Verdict
    detail: str
    remedy: str = ""
    wanted: str = ""
    seen: str = ""


def document(snapshot: Snapshot, asked_ns: int, know: Callable[[str], Known]) -> Document:
    """asked_ns: what was sampled before does not count. know: what else is known of a GPU, by its UUID."""
    gpus = [_gpu(gpu, judge(gpu, know(gpu.identity.uuid), asked_ns)) for gpu in snapshot.gpus]
    return {
        "ok": all(gpu["verdict"] == Verdict.OK for gpu in gpus),
        "mode": "governing" if snapshot.paused is None else "paused",
        "dry_run": snapshot.dry_run,
        "gpus": gpus,
    }


def judge(gpu: GpuSnapshot, known: Known, asked_ns: int) -> Finding:
    """About one GPU."""
    reading, is_parked = gpu.reading, gpu.state == Public.PARKED
    if reading is None or reading.at_ns < asked_ns:
        why = f": {known.trouble}" if known.trouble else ""
        return Finding(Verdict.UNKNOWN, f"the GPU does not answer{why}", gpu.remedy or NO_ANSWER)
    if known.phase is Phase.WAKING and known.trouble:
        return _trouble(gpu, known, reading)
    if known.phase in MOVING or (is_parked and gpu.intent is None and known.is_journaled):
        return Finding(Verdict.CHANGING, "on its way to another state; ask again")
    if is_parked and gpu.intent is not None:
        return _parked(gpu.intent, known, reading)
    return _untouched(gpu, known, reading)


def _parked(intent: Intent, known: Known, reading: GpuReading) -> Finding:
    seen, wanted = _clock(intent, reading)
    if not known.is_journaled:  # the guardian has woken it, or somebody `memscaler restore`d
        return Finding(Verdict.DRIFT, "the journal does not know that it is parked", WHO, "in the journal", "not there")
    if not seen:
        what = intent.lever.replace("-", " ")
        return Finding(Verdict.UNKNOWN, f"the driver does not tell its {what}", NO_ANSWER, wanted, "unknown")
    if moved := conflicts.moved_from(intent.lever, intent.target, reading):
        return Finding(Verdict.DRIFT, moved, WHO, wanted, seen)
    return Finding(Verdict.OK, f"{seen} ({wanted})", "", wanted, seen)


def _trouble(gpu: GpuSnapshot, known: Known, reading: GpuReading) -> Finding:
    clock_mhz = reading.memory_clock_mhz
    seen = "unknown" if clock_mhz is None else f"memory clock {clock_mhz} MHz"
    return Finding(Verdict.DRIFT, f"not at full speed yet: {known.trouble}", gpu.remedy or LEFT, "full speed", seen)


def _untouched(gpu: GpuSnapshot, known: Known, reading: GpuReading) -> Finding:
    if known.is_journaled:
        what = "it is not parked, and the journal says that it is, or cannot be read"
        return Finding(Verdict.DRIFT, what, gpu.remedy or LEFT, "not in the journal", "there")
    if any(not hold.id and hold.reason == conflicts.OWNER for hold in gpu.holds):
        return Finding(Verdict.DRIFT, gpu.conflict or "another program has changed its clocks", WHO)
    if slow := conflicts.kept_slow(known.clocks_mhz, reading):
        if known.retries:  # it is our own wake that is in vain
            return _trouble(gpu, known, reading)
        seen = f"memory clock {reading.memory_clock_mhz} MHz"
        return Finding(Verdict.DRIFT, slow, WHO, f"above {min(known.clocks_mhz)} MHz while it works", seen)
    return Finding(Verdict.OK, NOT_OURS)


def _clock(intent: Intent, reading: GpuReading) -> tuple[str, str]:
    """What is seen ("" if the driver does not tell) and what is wanted of what the lever moves."""
    if intent.lever in (MEMORY_CLOCK, GRAPHICS_CLOCK):
        is_memory = intent.lever == MEMORY_CLOCK
        seen_mhz = reading.memory_clock_mhz if is_memory else reading.graphics_clock_mhz
        what = intent.lever.replace("-", " ")
        return "" if seen_mhz is None else f"{what} {seen_mhz} MHz", f"at most {intent.target} MHz"
    return "" if reading.pstate is None else f"performance state P{reading.pstate}", f"P{intent.target} or slower"


def _gpu(gpu: GpuSnapshot, finding: Finding) -> Document:
    reading = gpu.reading
    return {
        "gpu": f"gpu{gpu.identity.index}",
        "uuid": gpu.identity.uuid,
        "name": gpu.identity.name,
        "state": gpu.state,
        **asdict(finding),
        "intent": None if gpu.intent is None else asdict(gpu.intent),
        "memory_clock_mhz": reading and reading.memory_clock_mhz,
        "graphics_clock_mhz": reading and reading.graphics_clock_mhz,
        "pstate": reading and reading.pstate,
        "utilization_ratio": reading and reading.utilization_ratio,
    }
