"""What the recorder keeps of the sleeper's reports: a real history file, and every figure where it is looked for."""

from __future__ import annotations

import time

import structlog

from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading
from memscaler.core.stages import Rung, Sleep, SleepingServer, Stage, StageTotals
from memscaler.daemon.sleep_book import SleepBook
from memscaler.history.reader import open_history
from tests.history.filled import GPU, opened

CHAT = SleepingServer("chat", 8080, gpus=(GPU,))


def report(rung: Rung, stage: Stage | None = None, **more) -> Sleep:
    return Sleep(7, (SleepingServer("chat", 8080, gpus=(GPU,), rung=rung, stage=stage, **more),))


class Night:
    """A book, and a GPU that is read every half minute."""

    def __init__(self, folder) -> None:
        self.history = opened(folder)
        self.book = SleepBook(structlog.get_logger(), self.history)
        self.now_ns = time.monotonic_ns()

    def tell(self, sleep: Sleep) -> tuple[str, ...]:
        return self.book.told(sleep, {GPU: Public.PARKED}, self.now_ns)

    def pass_(self, seconds: int, watts: float) -> None:
        self.book.sampled(GPU, GpuReading(self.now_ns, watts))
        for _ in range(0, seconds, 30):
            self.now_ns += 30 * SECOND_NS
            self.book.sampled(GPU, GpuReading(self.now_ns, watts))


def test_a_night(tmp_path, capfd):
    """Down and up again: who changed is sampled, and metrics, history and log have what it was worth."""
    night = Night(tmp_path)
    entered = {Stage.STOP_SERVER: StageTotals(1, seconds=0.0)}
    left = {Stage.STOP_SERVER: StageTotals(1, 1, seconds=600.0, wakes_s=(9.5,))}
    assert night.tell(report(Rung.UP, next=Stage.STOP_SERVER)) == ()
    night.pass_(60, 18.0)
    assert night.tell(report(Rung.ENTERING, next=Stage.STOP_SERVER)) == (GPU,)
    assert night.tell(report(Rung.DOWN, Stage.STOP_SERVER, totals=entered)) == (GPU,)
    assert night.tell(report(Rung.DOWN, Stage.STOP_SERVER, totals=entered, next=Stage.SUSPEND)) == ()
    night.pass_(600, 8.0)
    (before,) = night.book.wakes
    assert before.wakes.buckets[-1][1] == 0  # it is there before the first wake: a rate will see it
    assert night.tell(report(Rung.UP, totals=left)) == (GPU,)
    (after,) = night.book.wakes
    assert (after.server, after.stage, after.wakes.buckets[-1][1], after.wakes.sum_s) == (
        "chat",
        Stage.STOP_SERVER,
        1,
        9.5,
    )
    spent = night.book.spent(GPU)[Stage.STOP_SERVER]
    assert (spent.seconds, spent.energy_j, spent.saved_j, spent.entries) == (600, 4800, 6000, 1)
    night.history.close()
    with open_history(tmp_path) as history:
        (spell,) = history.spells()
        assert (spell.stage, spell.wake_s, spell.gpus) == (Stage.STOP_SERVER, 9.5, (GPU,))
        assert spell.until_unix_s is not None
        kept = [spent for _, _, spent in history.deep(GPU)]
        assert sum(each.saved_j for each in kept) == spent.saved_j
        assert sum(each.entries for each in kept) == 1
    said = capfd.readouterr().out
    assert night.book.sleep.servers[0].totals[Stage.STOP_SERVER].seconds < 60  # of the wall clock, which went on
    assert "stage.changed" in said
    assert "stage.left" in said


def test_a_sleeper_that_is_started_again(tmp_path):
    """Its totals go on; its problem is told while it lasts, and once in the log."""
    night = Night(tmp_path)
    night.tell(report(Rung.DOWN, Stage.SERVER_SLEEP, totals={Stage.SERVER_SLEEP: StageTotals(3, 2)}))
    night.tell(Sleep(None, problem="the sleeper was killed"))
    assert night.book.sleep.problem == "the sleeper was killed"
    time.sleep(0.01)  # the history tells spells apart by their start, to the millisecond
    night.tell(report(Rung.DOWN, Stage.SERVER_SLEEP, totals={Stage.SERVER_SLEEP: StageTotals(1)}))
    totals = night.book.sleep.servers[0].totals[Stage.SERVER_SLEEP]
    assert (totals.entered, totals.left) == (4, 2)
    night.history.close()
    with open_history(tmp_path) as history:
        assert [spell.until_unix_s is None for spell in history.spells()] == [False, True]


def test_nothing_is_kept_where_nothing_is_told(tmp_path):
    """Readings of a machine without stages leave no trace."""
    night = Night(tmp_path)
    night.pass_(600, 18.0)
    night.book.state(GPU, Public.AWAKE, night.now_ns)
    night.book.let_go(GPU)
    assert night.book.sleep == Sleep()
    assert (night.book.spent(GPU), night.book.wakes) == ({}, ())


def test_a_gpu_that_is_let_go_of(tmp_path):
    """What was not told yet goes to the history; when it comes back it begins anew."""
    night = Night(tmp_path)
    night.tell(report(Rung.DOWN, Stage.STOP_SERVER))
    night.pass_(60, 8.0)
    night.book.let_go(GPU)
    night.tell(report(Rung.DOWN, Stage.STOP_SERVER))
    night.pass_(60, 8.0)
    night.history.close()
    with open_history(tmp_path) as history:
        assert sum(spent.seconds for _, _, spent in history.deep(GPU)) == 120
