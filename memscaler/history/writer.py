"""The history as the daemon keeps it: what happened on each GPU, and what parking has saved, over restarts and reboots.

The loop's thread only appends to memory, which is bounded. Another thread writes, ten minutes after there was something
to write, when memory holds much, and when the daemon ends. So a daemon that is killed forgets ten minutes at most, and
a disk that is full, read-only, slow or hangs costs the history and nothing else: what cannot be written is kept in
memory as long as there is room, and tried again.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import structlog

from memscaler.core.energy import Account, observe_state
from memscaler.core.errors import MemscalerError
from memscaler.core.gaps import Gap
from memscaler.core.model import SECOND_NS
from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.history.batch import MOST_GPUS, Batch, Saved
from memscaler.history.following import Following, Parking
from memscaler.history.reader import HistoryMissing, open_history
from memscaler.history.retention import Limits
from memscaler.history.store import Damaged, Kept, Newer, Store, Unwritable
from memscaler.history.tables import HOUR_S

WRITE_AFTER_NS = 600 * SECOND_NS
SOONEST_NS = 60 * SECOND_NS  # after a write, however much there is to write
READ_S = 1.0  # that the start of the daemon waits for what was there
LAST_WRITE_S = 0.5  # that the end of the daemon waits, when every GPU is awake
_MS_NS = 1_000_000

log = structlog.get_logger()


class History:
    """Used by the loop's thread; no method waits for the disk, but for `close`, and for the start: half a second each.

    writes False: what was there is told, nothing is counted or written (a dry run).
    """

    def __init__(self, directory: Path, *, writes: bool = True, limits: Limits | None = None) -> None:
        self._directory = directory
        self._store = Store(directory, limits or Limits())
        self._writes = writes
        self._batch = Batch()
        self._saved: dict[str, Saved] = {}
        self._counted_j: dict[str, float] = {}
        self._following: dict[str, Following] = {}
        self._names: dict[str, tuple[int, str]] = {}
        self._since_ns: dict[str, int] = {}
        self._due_ns = 0  # 0: all is written down, or is being
        self._not_before_ns = 0
        self._worker: threading.Thread | None = None
        # Set by the worker, taken by the loop's thread when it has ended.
        self._unwritten: Batch | None = None
        self._found: Kept | None = None
        # The worker's own: was the file read, and what is in it.
        self._is_read = False
        self._kept: dict[str, Saved] = {}
        self._complained = ""
        self.failures = 0
        """How often a batch could not be written."""
        self.since_unix_s = time.time()
        """Since when the totals are counted."""
        self._start(Batch())
        self._join(READ_S)

    # ---- what happens ---------------------------------------------------------------------------------------------

    def take_on(self, uuid: str, index: int, name: str, account: Account) -> None:
        """This GPU is governed from now on; account: that of this run, which is new."""
        if self._writes:
            self._names[uuid] = (index, name.encode("utf-8", "replace").decode())
            self._since_ns[uuid] = time.monotonic_ns()
            self._following[uuid] = Following(account)

    def follow(self, uuid: str, account: Account, idle_s: float = 0.0, reason: str = "") -> None:
        """Its account has changed. idle_s: how long it was quiet, if a park begins; reason: why one ends."""
        following = self._following.get(uuid)
        if following is not None:
            passed_ns = account.at_ns - following.account.at_ns
            wall_ns = max(_wall_ns(account.at_ns), passed_ns)  # a clock may say 1970, but nothing was before
            for hour, more in following.hours(account, wall_ns, reason).items():
                self._batch.add_hour(uuid, hour, more)
            for park in following.parks(account, wall_ns, idle_s, reason):
                self._tell_park(uuid, park)
            following.account = account
            self.count(uuid, account.saved_j)
            self._look()

    def woke(self, uuid: str, latency_s: float) -> None:
        """A connection woke it, and the driver call returned that much later."""
        following = self._following.get(uuid)
        park = None if following is None else following.woke(latency_s)
        if park is not None and (uuid, park.at_ns // _MS_NS) in self._batch.parks:  # what is written stays as it is
            self._tell_park(uuid, park)

    def gap(self, gap: Gap) -> None:
        """No work from its begin to its end."""
        if self._writes:
            start_ms = max(0, _wall_ns(gap.start_ns) // _MS_NS)
            self._batch.add_gap(gap.gpu, start_ms, max(0, gap.end_ns - gap.start_ns) // _MS_NS)
            self._look()

    def spell(self, spell: Spell) -> None:
        """A server, or the machine, is or was in a deeper stage; told again when more is known of it."""
        if self._writes:
            self._batch.add_spell(spell)
            self._look()

    def deeper(self, uuid: str, stage: Stage, more: Spent) -> None:
        """What a stage of this GPU took and spared since that was told last."""
        if uuid in self._following:
            self._batch.add_deep(uuid, int(time.time() // HOUR_S), stage, more)
            self._look()

    def count(self, uuid: str, saved_j: float) -> None:
        """saved_j: what this GPU's account of this run says; it only grows, and is 0 when it is taken on."""
        more_j = saved_j - self._counted_j.get(uuid, 0.0)
        if self._writes and more_j > 0 and (uuid in self._saved or len(self._saved) < MOST_GPUS):
            self._counted_j[uuid] = saved_j
            more = Saved(more_j, more_j, _today())
            self._saved[uuid] = self._saved.get(uuid, Saved()).plus(more)
            self._batch.add_saved(uuid, more)
        self._look()

    def forget_count(self, uuid: str) -> None:
        """Its account is closed; the next one begins with 0."""
        following = self._following.get(uuid)
        if following is not None:
            account = following.account
            self.follow(uuid, observe_state(account, account.state, time.monotonic_ns()))
            if following.park is not None:
                self._tell_park(uuid, following.park)
            del self._following[uuid]
        self._counted_j.pop(uuid, None)

    def of(self, uuid: str) -> tuple[float, float]:
        """Joules saved today and in total."""
        self._take_back()
        mine = self._saved.get(uuid, Saved())
        return (mine.today_j if mine.day == _today() else 0.0), mine.total_j

    def _tell_park(self, uuid: str, park: Parking) -> None:
        self._batch.add_park(uuid, park.at_ns // _MS_NS, park.row())

    # ---- writing --------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Begin to write; not if the disk hangs with what was to be written before. Returns at once."""
        if self._writes and not self._is_busy():
            self._take_back()
            batch, self._batch, self._due_ns = self._batch, Batch(), 0
            batch.gpus = dict(self._names)
            batch.since_ms = {uuid: max(0, _wall_ns(at_ns) // _MS_NS) for uuid, at_ns in self._since_ns.items()}
            self._not_before_ns = time.monotonic_ns() + SOONEST_NS
            self._start(batch)

    def close(self) -> None:
        """The end: write what is not written yet, if the disk takes it in time."""
        try:
            for uuid in tuple(self._following):
                self.forget_count(uuid)
        except Exception:  # a mistake in bookkeeping; the GPUs are awake, and the end is to say so
            log.exception("history.not_ended")
        for _ in range(2):  # what is being written now may lack the last of it
            self._join(LAST_WRITE_S)
            if not self._is_busy() and (self._batch or self._unwritten):
                self.write()
        self._join(LAST_WRITE_S)

    def _look(self) -> None:
        """Is it time to write?"""
        if self._batch:
            now_ns = time.monotonic_ns()
            self._due_ns = self._due_ns or now_ns + WRITE_AFTER_NS
            if now_ns >= self._due_ns or (self._batch.is_full and now_ns >= self._not_before_ns):
                self.write()

    def _take_back(self) -> None:
        """What the worker has found, and what it could not write. It has ended, or is about to."""
        if (found := self._found) is not None:
            self._found = None
            self.since_unix_s = min(found.since_unix_s, self.since_unix_s)  # else the clock was wrong
            self._saved = found.saved | {
                uuid: found.saved.get(uuid, Saved()).plus(mine) for uuid, mine in self._saved.items()
            }
        if not self._is_busy() and (unwritten := self._unwritten) is not None:
            self._unwritten = None
            unwritten.add(self._batch)
            self._batch = unwritten

    def _is_busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def _join(self, seconds: float) -> None:
        if self._worker is not None:
            self._worker.join(seconds)
        self._take_back()

    def _start(self, batch: Batch) -> None:
        self._worker = threading.Thread(target=self._work, args=(batch,), name="history", daemon=True)
        try:
            self._worker.start()
        except RuntimeError as error:  # the machine has no thread left
            self._worker = None
            self._not_written(batch, error)

    # ---- in the other thread --------------------------------------------------------------------------------------

    def _work(self, batch: Batch) -> None:
        for _ in range(2):  # again with a new file, if the old one was damaged
            try:
                self._read()
                if batch:
                    self._store.write(batch, self.since_unix_s)
            except Damaged as error:
                log.error("history.damaged", file=str(self._store.path), err=str(error), now="moved aside, begun anew")
                self._rescue(batch)
            except Unwritable as error:
                self.failures += 1
                self._complain("history.refused", error, lost=_rows(batch))
                return
            except (OSError, sqlite3.Error, Newer, MemscalerError) as error:
                self._not_written(batch, error)
                return
            else:
                self._done(batch)
                return
        self._not_written(batch, OSError("it is damaged again"))

    def _read(self) -> None:
        """What was saved before. As long as that cannot be read nothing is written, and nothing is lost."""
        if not self._is_read:
            found = self._store.kept() if self._writes else self._look_only()
            self._kept = {} if found is None else dict(found.saved)
            self._found, self._is_read = found, True

    def _look_only(self) -> Kept | None:
        try:
            with open_history(self._directory) as history:
                saved = {uuid: Saved(*told) for uuid, told in history.totals().items()}
                return Kept(history.since_unix_s() or time.time(), saved)
        except HistoryMissing:
            return None

    def _rescue(self, batch: Batch) -> None:
        """The totals, which were read before the file was damaged, into the next one."""
        for uuid, saved in self._kept.items():
            batch.saved[uuid] = saved.plus(batch.saved.get(uuid, Saved()))
        self._kept = {}

    def _done(self, batch: Batch) -> None:
        for uuid, saved in batch.saved.items():
            self._kept[uuid] = self._kept.get(uuid, Saved()).plus(saved)
        if batch.lost:
            log.warning("history.lost", rows=batch.lost, why="memory was full while it could not be written")
        if batch:
            self._complained = ""

    def _not_written(self, batch: Batch, error: Exception) -> None:
        if batch:
            self._unwritten = batch
            self.failures += 1
        self._complain("history.not_written" if self._writes else "history.not_read", error)

    def _complain(self, event: str, error: Exception, **more: object) -> None:
        """Once for each reason."""
        reason = f"{type(error).__name__}: {error}"[:200]
        if reason != self._complained:
            self._complained = reason
            hint = "GPUs are governed all the same; see state_dir"
            log.warning(event, file=str(self._store.path), err=reason, hint=hint, **more)


def _rows(batch: Batch) -> int:
    return len(batch.gaps) + len(batch.parks) + len(batch.hours) + len(batch.spells) + len(batch.deep)


def _wall_ns(at_ns: int) -> int:
    """What time it was then, by the clock of now: if that was set since, in the time as it was set."""
    return time.time_ns() - (time.monotonic_ns() - at_ns)


def _today() -> str:
    return time.strftime("%Y-%m-%d")
