"""What was measured and seen in earlier runs. A disk that hangs costs no more than that, and a few seconds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from memscaler.core.calibration import Calibration
from memscaler.core.errors import MemscalerError
from memscaler.history import calibration
from memscaler.history.reader import open_history

READ_S = 3.0
MOST_GAPS = 4000  # of all GPUs
FEWEST_GAPS = 200  # of one

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recalled:
    """By UUID. gaps: (start in seconds since 1970, length in seconds), oldest first."""

    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    gaps: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def recall(state_dir: Path, uuids: Collection[str], within_s: float = READ_S) -> Recalled:
    """Of the calibrations all, of the gaps those of these GPUs. What cannot be read, or not in time, is not known."""
    answers: queue.SimpleQueue[Recalled] = queue.SimpleQueue()

    def read() -> None:
        answers.put(Recalled(calibration.load(state_dir, log.warning), _gaps(state_dir, uuids)))

    try:
        threading.Thread(target=read, name="recall", daemon=True).start()
        return answers.get(timeout=within_s)
    except RuntimeError as error:  # the machine has no thread left
        log.warning("history.not_read", err=str(error))
    except queue.Empty:
        why, hint = f"it takes longer than {within_s:g} s", "GPUs are governed all the same; see state_dir"
        log.warning("history.not_read", file=str(state_dir), err=why, hint=hint)
    return Recalled()


def _gaps(state_dir: Path, uuids: Collection[str]) -> Mapping[str, Sequence[tuple[float, float]]]:
    most = max(FEWEST_GAPS, MOST_GAPS // max(1, len(uuids)))
    try:
        with open_history(state_dir) as history:
            return {uuid: history.gaps(uuid, most=most) for uuid in uuids}
    except MemscalerError as error:
        log.info("gaps.unknown", why=str(error))
        return {}
