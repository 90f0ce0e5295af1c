"""What parking has saved on each GPU, today and in total, over restarts of the daemon and reboots of the machine.

Kept in one small file of the state directory, by UUID. The loop's thread counts; another one writes, ten minutes after
something was saved and when the daemon ends. So a daemon that is killed forgets ten minutes at most, and a disk that is
full, read-only or hangs costs this figure and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from memscaler.core.model import SECOND_NS
from memscaler.gpu.journal import read_own

FILE = "savings.json"
MOST_BYTES = 1 << 20  # of the file; a GPU takes 120
MOST_GPUS = 1024  # that were ever here
MOST_J = 1e15  # a hundred kilowatts for 300 years: more is no figure of ours
WRITE_AFTER_NS = 600 * SECOND_NS
LAST_WRITE_S = 0.5  # that the end of the daemon waits, when every GPU is awake

log = structlog.get_logger()


@dataclass(slots=True)
class Saved:
    """Of one GPU, in joules. today_j: on the local day `day`, as in "2026-11-21"."""

    total_j: float = 0.0
    today_j: float = 0.0
    day: str = ""


class Savings:
    """Used by the loop's thread. writes False: what was there is told, nothing is counted or written (a dry run)."""

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self._path = directory / FILE
        self._writes = writes
        self._gpus: dict[str, Saved] = {}
        self._counted_j: dict[str, float] = {}
        self._due_ns = 0  # 0: all is written down, or is being
        self._writer: threading.Thread | None = None
        self._failed = ""
        self.since_unix_s = time.time()
        """Since when the totals are counted."""
        self._load()

    def count(self, uuid: str, saved_j: float) -> None:
        """saved_j: what this GPU's account of this run says; it only grows, and is 0 when it is taken on."""
        more_j = saved_j - self._counted_j.get(uuid, 0.0)
        if self._writes and more_j > 0 and (uuid in self._gpus or len(self._gpus) < MOST_GPUS):
            self._counted_j[uuid] = saved_j
            mine, day = self._gpus.setdefault(uuid, Saved()), _today()
            mine.today_j = min(more_j + (mine.today_j if mine.day == day else 0.0), MOST_J)
            mine.total_j, mine.day = min(mine.total_j + more_j, MOST_J), day
            self._due_ns = self._due_ns or time.monotonic_ns() + WRITE_AFTER_NS
        if self._due_ns and time.monotonic_ns() >= self._due_ns:
            self.write()

    def forget_count(self, uuid: str) -> None:
        """Its account is closed; the next one begins with 0."""
        self._counted_j.pop(uuid, None)

    def of(self, uuid: str) -> tuple[float, float]:
        """Joules saved today and in total."""
        mine = self._gpus.get(uuid, Saved())
        return (mine.today_j if mine.day == _today() else 0.0), mine.total_j

    # ---- the file -------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Begin to write; not if the disk hangs with what was to be written before. Returns at once."""
        if self._writes and (self._writer is None or not self._writer.is_alive()):
            self._due_ns = 0
            gpus = {uuid: asdict(saved) for uuid, saved in self._gpus.items()}
            text = json.dumps({"since_unix_s": self.since_unix_s, "gpus": gpus})
            self._writer = threading.Thread(target=self._write, args=(text,), name="savings", daemon=True)
            try:
                self._writer.start()
            except RuntimeError as error:  # the machine has no thread left
                self._writer = None
                self._not_written(error)

    def close(self) -> None:
        """The end: write what is not written yet, if the disk takes it in time."""
        for _ in range(2):  # what is being written now may lack the last joules
            if self._writer is not None:
                self._writer.join(LAST_WRITE_S)
            if self._due_ns:
                self.write()
        if self._writer is not None:
            self._writer.join(LAST_WRITE_S)

    def _write(self, text: str) -> None:
        """In a thread of its own. The draft is new, whatever lies in its place; the file is old or new, never half."""
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            draft.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            self._not_written(error)
        else:
            self._failed = ""

    def _not_written(self, error: Exception) -> None:
        self._complain("savings.not_written", error)
        self._due_ns = self._due_ns or time.monotonic_ns() + WRITE_AFTER_NS

    def _load(self) -> None:
        try:
            found = json.loads(read_own(self._path, MOST_BYTES))
            gpus = dict(_read(found["gpus"]))
            since_unix_s = _finite(found["since_unix_s"], sys.float_info.max)
            self.since_unix_s, self._gpus = min(since_unix_s, self.since_unix_s), gpus  # else the clock was wrong
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self._complain("savings.lost", error)

    def _complain(self, event: str, error: Exception) -> None:
        """Once for each reason."""
        reason = f"{type(error).__name__}: {error}"[:200]
        if reason != self._failed:
            self._failed = reason
            log.warning(event, file=str(self._path), err=reason, hint="GPUs are governed all the same; see state_dir")


def _read(gpus: Mapping[str, Any]) -> Iterator[tuple[str, Saved]]:
    for uuid, told in list(gpus.items())[:MOST_GPUS]:
        yield uuid, Saved(_finite(told["total_j"], MOST_J), _finite(told["today_j"], MOST_J), str(told["day"]))


def _finite(raw: Any, most: float) -> float:
    if not 0 <= (value := float(raw)) <= most:
        raise ValueError(f"{value} is out of range")
    return value


def _today() -> str:
    return time.strftime("%Y-%m-%d")
