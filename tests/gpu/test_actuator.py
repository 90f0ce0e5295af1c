"""What an actuator answers, what it leaves on disk, and what it does to its GPU."""

from __future__ import annotations

import os
import threading
import time

import pytest

from memscaler.core.model import LeverResult, Outcome
from memscaler.core.snapshot import Identity
from memscaler.gpu.capability import choose
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import Sample
from memscaler.simulator import Lock, Locks
from tests.gpu.benches import SERVER_PID, Simulate, Start, eventually

SET_MEMORY, RESET_MEMORY = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
FORCE = "NvAPI_GPU_SetForcePstate"


@pytest.mark.parametrize(
    ("board", "lever", "locks"),
    [
        ("a40", "memory-clock", Locks(Lock(405, 405), None, None)),
        ("a100", "graphics-clock", Locks(None, Lock(210, 210), None)),
        ("p40", "pstate", Locks(None, None, 8)),
    ],
)
def test_park_and_wake(
    simulate: Simulate, start: Start, journal: Journal, board: str, lever: str, locks: Locks
) -> None:
    """Each lever parks, is seen to work, wakes and leaves nothing behind."""
    machine = simulate(board)
    machine.serve()
    power_w = machine.boards[0].power_w
    bench = start(machine.driver())
    bench.parked()
    entry = journal.entry(bench.actuator.gpu)
    assert entry is not None
    assert entry.lever == lever
    assert machine.boards[0].locks == locks
    assert machine.boards[0].power_w < power_w
    bench.wake()
    bench.expect(Outcome.WOKEN)
    timing = bench.timings[0]
    assert timing.seq == bench.seq
    assert timing.driver_call_start_ns < timing.driver_call_end_ns
    eventually(lambda: journal.entries() == ())
    assert bench.quiet(0.5)
    assert not machine.boards[0].locks
    assert machine.boards[0].power_w == power_w


def test_low_by_itself(simulate: Simulate, start: Start, journal: Journal) -> None:
    """Without a context the clocks are down anyway: nothing is written."""
    machine = simulate("a40")
    bench = start(machine.driver())
    bench.park()
    bench.expect(Outcome.NOTHING_TO_GAIN)
    assert machine.setters() == []
    assert journal.entries() == ()


def test_busy(simulate: Simulate, start: Start) -> None:
    """A GPU that works is not parked, whatever the connections say."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].set_utilization(37)
    bench = start(machine.driver())
    bench.park()
    assert "37%" in bench.expect(Outcome.BUSY).reason
    assert machine.setters() == []


def test_unknown_error_while_looking_is_doubt(simulate: Simulate, start: Start) -> None:
    """A look that fails parks nothing and blames no lever."""
    machine = simulate("a40")
    machine.serve()
    bench = start(machine.driver())
    machine.boards[0].inject("nvmlDeviceGetClockInfo", code=999, after=2, times=1)  # the sample has two clocks
    bench.park()
    bench.expect(Outcome.BUSY)
    bench.parked()


def test_switch_interval(simulate: Simulate, start: Start) -> None:
    """The least time between two switches, as told by field 299, is kept."""
    machine = simulate("a40", mclk_fields=True)
    machine.boards[0].set_memory_switching(2, min_interval_ms=400)
    machine.serve()
    bench = start(machine.driver())
    bench.parked()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    bench.park()
    assert "between two switches" in bench.expect(Outcome.BUSY).reason
    time.sleep(0.4)
    bench.parked()


def test_no_effect_takes_the_next_lever(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A lever that reports success and moves nothing is undone and replaced."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, ignore=True)
    bench = start(machine.driver())
    bench.park()
    assert "nothing moved" in bench.expect(Outcome.APPLIED, Outcome.NEXT_LEVER).reason
    assert [entry.lever for entry in journal.entries()] == ["memory-clock"]
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert RESET_MEMORY in machine.setters()
    bench.parked()
    assert [entry.lever for entry in journal.entries()] == ["pstate"]


def test_unsupported_takes_the_next_lever(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A refused lever leaves nothing to undo."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=3)
    bench = start(machine.driver())
    bench.park()
    bench.expect(Outcome.NEXT_LEVER)
    assert journal.entries() == ()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert RESET_MEMORY not in machine.setters()
    assert bench.timings == []


def test_no_lever_left(simulate: Simulate, start: Start) -> None:
    """The last lever that fails is a failure, and so is every park after it."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=3)
    bench = start(machine.driver(), lever="memory-clock")
    bench.park()
    bench.expect(Outcome.FAILED)
    bench.park()
    bench.expect(Outcome.FAILED)


def test_permission_changes_no_lever(simulate: Simulate, start: Start, journal: Journal) -> None:
    """Missing permission is reported; another lever is not tried silently."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=4)
    bench = start(machine.driver())
    bench.park()
    assert "ermission" in bench.expect(Outcome.FAILED).reason
    assert journal.entries() == ()
    assert machine.setters() == [SET_MEMORY]


def test_unknown_errors_are_retried(simulate: Simulate, start: Start) -> None:
    """Code 999 is tried three times."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=999, times=2)
    bench = start(machine.driver())
    bench.parked()
    assert machine.setters() == [SET_MEMORY] * 3


def test_unknown_error_stays_owed(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A call that failed for an unknown reason may have taken effect: the wake undoes it."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=999)
    bench = start(machine.driver())
    bench.park()
    bench.expect(Outcome.NEXT_LEVER)
    assert len(journal.entries()) == 1
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert machine.setters()[-1] == RESET_MEMORY


def test_wake_without_effect(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A release that the driver ignores is noticed, and stays owed until one works."""
    machine = simulate("p40")
    machine.serve()
    bench = start(machine.driver())
    bench.parked()
    machine.boards[0].inject(FORCE, ignore=True)
    bench.wake()
    bench.expect(Outcome.WOKEN, Outcome.NO_EFFECT)
    assert len(journal.entries()) == 1
    machine.simulated.clear_faults()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert bench.quiet(0.5)
    assert journal.entries() == ()
    assert machine.boards[0].forced_pstate is None


def test_wake_without_effect_is_seen_without_processes(simulate: Simulate, start: Start) -> None:
    """Where the driver lists no processes, memory that is still in use tells that the clocks must be up."""
    machine = simulate("a40")
    machine.boards[0].set_context(True)
    eventually(lambda: not machine.boards[0].settling)
    bench = start(machine.driver())
    bench.parked()
    machine.boards[0].inject(RESET_MEMORY, ignore=True)
    bench.wake()
    bench.expect(Outcome.WOKEN, Outcome.NO_EFFECT)


def test_wake_of_a_gpu_without_context_is_believed(simulate: Simulate, start: Start) -> None:
    """When the server has left, the clocks stay low by right."""
    machine = simulate("a40")
    machine.serve()
    bench = start(machine.driver())
    bench.parked()
    machine.boards[0].remove_process(SERVER_PID)
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert bench.quiet(0.5)


def test_failed_wake_stays_owed(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A refused wake is reported, and the next one tries again."""
    machine = simulate("a40")
    machine.serve()
    bench = start(machine.driver())
    bench.parked()
    machine.boards[0].inject(RESET_MEMORY, code=999, times=1)
    bench.wake()
    bench.expect(Outcome.FAILED)
    assert len(journal.entries()) == 1
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert machine.boards[0].memory_lock is None


def test_wake_of_an_untouched_gpu_calls_nothing(simulate: Simulate, start: Start) -> None:
    """Only what was done here is undone here."""
    machine = simulate("a40")
    bench = start(machine.driver())
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert machine.setters() == []


def test_wake_withdraws_a_waiting_park(simulate: Simulate, start: Start) -> None:
    """A park that has not begun when the wake comes never happens, and a sample under way gives up for the wake."""
    machine = simulate("a40")
    machine.serve()
    bench = start(machine.driver())
    machine.boards[0].inject("nvmlDeviceGetPowerUsage", hang=True)
    bench.actuator.sample()
    eventually(lambda: bench.actuator.call_due_ns() is not None)
    bench.park()
    bench.wake()
    machine.simulated.clear_faults()
    bench.expect(Outcome.WOKEN)
    assert isinstance(bench.next(), Sample)
    assert bench.quiet(0.2)
    assert machine.setters() == []


def test_wake_calls_off_a_park(simulate: Simulate, start: Start) -> None:
    """A wake goes before a park that waits, and ends the settling of one that runs."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].set_settle(park_ms=3000)
    bench = start(machine.driver(), settle_timeout_s=10)
    bench.park()
    bench.expect(Outcome.APPLIED)
    began = time.monotonic()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert time.monotonic() - began < 0.5


def test_hung_driver(simulate: Simulate, start: Start) -> None:
    """A call that hangs is seen, holds up no other GPU, and is followed by the newest wake."""
    machine = simulate("a40", "a40")
    machine.serve(0)
    machine.serve(1)
    driver = machine.driver()
    hung, fine = start(driver, 0, write_deadline_s=0.1), start(driver, 1)
    machine.boards[0].inject(SET_MEMORY, hang=True)
    hung.park()
    eventually(lambda: hung.actuator.overdue(time.monotonic_ns()) == "apply")
    threads = threading.active_count()
    fine.parked()
    assert fine.actuator.overdue(time.monotonic_ns()) is None
    hung.wake()
    hung.wake()
    assert threading.active_count() == threads
    machine.simulated.clear_faults()
    last = hung.next()
    while isinstance(last, Sample) or last.outcome is not Outcome.WOKEN:
        last = hung.next()
    assert isinstance(last, LeverResult)
    assert last.seq == hung.seq
    assert hung.actuator.overdue(time.monotonic_ns()) is None
    assert machine.boards[0].memory_lock is None


def test_lost_gpu(simulate: Simulate, start: Start) -> None:
    """A GPU that falls off the bus is lost, the other one parks."""
    machine = simulate("a40", "a40")
    machine.serve(0)
    machine.serve(1)
    driver = machine.driver()
    gone, there = start(driver, 0), start(driver, 1)
    gone.parked()
    machine.boards[0].lose()
    gone.wake()
    gone.expect(Outcome.LOST)
    gone.park()
    gone.expect(Outcome.LOST)
    there.parked()


def test_journal_comes_first(simulate: Simulate, start: Start, journal: Journal) -> None:
    """While the driver is still busy with the lock, the entry is on disk; while it undoes, it still is."""
    machine = simulate("a40")
    machine.serve()
    bench = start(machine.driver())
    machine.boards[0].inject(SET_MEMORY, delay_ms=200)
    machine.boards[0].inject(RESET_MEMORY, delay_ms=200)
    bench.park()
    eventually(lambda: machine.setters()[-1:] == [SET_MEMORY])
    assert len(journal.entries()) == 1
    assert machine.boards[0].memory_lock is None
    bench.expect(Outcome.APPLIED, Outcome.VERIFIED)
    bench.wake()
    eventually(lambda: machine.setters()[-1:] == [RESET_MEMORY])
    assert len(journal.entries()) == 1
    bench.expect(Outcome.WOKEN)


def test_no_journal_no_park(simulate: Simulate, start: Start, journal: Journal) -> None:
    """What cannot be written down is not done."""
    machine = simulate("a40")
    machine.serve()
    journal.directory.write_text("a file where the directory should be")
    bench = start(machine.driver())
    bench.park()
    assert "journal" in bench.expect(Outcome.BUSY).reason
    assert machine.setters() == []


def test_leftover_is_undone_by_the_first_wake(simulate: Simulate, start: Start, journal: Journal) -> None:
    """What an earlier run left applied is known, and undone when asked to; a refusal is answered, so it can be retried."""
    machine = simulate("a40")
    machine.serve()
    driver = machine.driver()
    choose(driver.gpus[0]).levers[0].apply()
    journal.record(driver.gpus[0].identity, "memory-clock", 405)
    bench = start(driver)
    assert bench.actuator.left_behind
    machine.boards[0].inject(RESET_MEMORY, code=999, times=1)
    bench.wake()
    bench.expect(Outcome.FAILED)
    bench.wake()
    bench.expect(Outcome.WOKEN)
    eventually(lambda: journal.entries() == ())
    assert machine.boards[0].memory_lock is None


def test_a_lever_is_given_up_only_after_several_bad_parks(simulate: Simulate, start: Start) -> None:
    """Unknown errors may pass: the same lever is tried in three parks before the next one is taken."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=999)
    bench = start(machine.driver())
    for lever in ("memory-clock", "memory-clock", "pstate"):
        bench.park()
        bench.expect(Outcome.NEXT_LEVER)
        bench.wake()
        bench.expect(Outcome.WOKEN)
        assert bench.actuator.lever is not None
        assert bench.actuator.lever.name == lever


def test_sample(simulate: Simulate, start: Start) -> None:
    """A sample brings a reading; samples of a lost GPU bring a note."""
    machine = simulate("a40")
    bench = start(machine.driver())
    bench.actuator.sample()
    sample = bench.next()
    assert isinstance(sample, Sample)
    assert sample.reading.power_w is not None
    machine.boards[0].lose()
    bench.actuator.sample()
    assert bench.quiet(0.2)
    assert [note.event for note in bench.notes] == ["gpu.sample_failed"]


def test_dry_run(simulate: Simulate, start: Start, journal: Journal) -> None:
    """A dry run answers as if it parked, says what it would do, and writes nothing anywhere."""
    machine = simulate("a40")
    machine.serve()
    journal.record(Identity(9, "GPU-other", "", ""), "memory-clock", 405)
    bench = start(machine.driver(), dry_run=True)
    bench.parked()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert [note.detail for note in bench.notes] == [
        "would apply: memory clock locked to 405 MHz",
        "would undo: memory clock locked to 405 MHz",
    ]
    assert machine.setters() == []
    assert len(journal.entries()) == 1


def test_close(simulate: Simulate, start: Start) -> None:
    """The thread ends, also in the middle of settling."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].set_settle(park_ms=3000)
    bench = start(machine.driver(), settle_timeout_s=10)
    bench.park()
    bench.expect(Outcome.APPLIED)
    bench.actuator.close()
    assert bench.actuator.join(1)


def test_the_same_failure_is_not_told_for_ever(simulate: Simulate, start: Start) -> None:
    """A lost GPU is sampled again and again; that is told once, and anew when it has been well in between."""
    machine = simulate("a40")
    bench = start(machine.driver())
    for _ in range(2):
        machine.boards[0].lose()
        for _ in range(3):
            bench.actuator.sample()
            assert bench.quiet(0.05)
        machine.boards[0].restore()
        bench.actuator.sample()
        assert isinstance(bench.next(), Sample)
    assert [note.event for note in bench.notes] == ["gpu.sample_failed"] * 2


def test_when_no_lever_is_left_the_first_is_tried_again(simulate: Simulate, start: Start) -> None:
    """Whoever asks for a park after all levers were given up has waited, and the driver may have changed its mind."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject(SET_MEMORY, code=3)
    bench = start(machine.driver(), lever="memory-clock")
    bench.park()
    bench.expect(Outcome.FAILED)
    machine.simulated.clear_faults()
    bench.parked()


def test_a_lever_that_worked_is_not_given_up_at_its_first_refusal(simulate: Simulate, start: Start) -> None:
    """What was supported yesterday is: a refusal then says more about the handle than about the card."""
    machine = simulate("p40")
    machine.serve()
    bench = start(machine.driver())
    bench.parked()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    machine.boards[0].inject(FORCE, code=-8, times=1)
    bench.park()
    bench.expect(Outcome.NEXT_LEVER)
    bench.wake()
    bench.expect(Outcome.WOKEN)
    bench.parked()


def test_unknown_utilisation_is_doubt(simulate: Simulate, start: Start) -> None:
    """A driver that fails to say whether the GPU works may have one that does."""
    machine = simulate("a40")
    machine.serve()
    machine.boards[0].inject("nvmlDeviceGetUtilizationRates", code=999)
    bench = start(machine.driver())
    bench.park()
    assert "cannot look" in bench.expect(Outcome.BUSY).reason


def test_slow_reads_are_no_hung_call(simulate: Simulate, start: Start) -> None:
    """Each driver call of a reading has the deadline for itself."""
    machine = simulate("a40")
    bench = start(machine.driver(), read_deadline_s=0.15)
    machine.boards[0].inject("*", delay_ms=50)
    bench.actuator.sample()
    while bench.quiet(0.02):
        assert bench.actuator.overdue(time.monotonic_ns()) is None


# ---- what is to be done first ----------------------------------------------------------------------------------------


def test_before_a_lever_is_undone_something_may_be_done_first(simulate: Simulate, start: Start) -> None:
    """It is told which GPU, and whether a client rang; the driver is called when it returns."""
    machine = simulate("a40")
    machine.serve()
    asked: list[tuple[str, bool, bool]] = []
    go_on = threading.Event()

    def first(gpu: str, rang: bool) -> None:  # as it is called
        asked.append((gpu, rang, RESET_MEMORY in machine.setters()))
        go_on.wait(10)

    bench = start(machine.driver(), first=first)
    bench.parked()
    assert not asked
    bench.wake()
    eventually(lambda: bool(asked))
    assert asked == [(bench.actuator.gpu, True, False)]  # there is no door to ask: somebody may have rung
    assert machine.boards[0].locks
    go_on.set()
    bench.expect(Outcome.WOKEN)
    assert not machine.boards[0].locks


def test_a_gpu_that_is_not_parked_asks_for_nothing_first(simulate: Simulate, start: Start) -> None:
    """Its clocks are not touched."""
    machine = simulate("a40")
    machine.serve()
    asked: list[str] = []
    bench = start(machine.driver(), first=lambda gpu, _: asked.append(gpu))
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert not asked


def test_a_mistake_in_what_comes_first_wakes_all_the_same(simulate: Simulate, start: Start) -> None:
    """It is told, and the GPU is up."""
    machine = simulate("a40")
    machine.serve()

    def first(_: str, __: bool) -> None:  # as it is called
        raise RuntimeError("no arbiter")

    bench = start(machine.driver(), first=first)
    bench.parked()
    bench.wake()
    bench.expect(Outcome.WOKEN)
    assert not machine.boards[0].locks
    assert [note.event for note in bench.notes] == ["actuator.failed"]


@pytest.mark.parametrize("rings", [True, False])
def test_whether_a_client_rang_is_the_doors_word(simulate: Simulate, start: Start, rings: bool) -> None:
    """A hold wakes too, and nobody has come."""
    machine = simulate("a40")
    machine.serve()

    class Door:
        """Rings when it is told to."""

        fd = os.eventfd(0, os.EFD_NONBLOCK)
        pressed = False

        def rang(self) -> bool:
            return self.pressed

    asked: list[bool] = []
    door = Door()
    bench = start(machine.driver(), first=lambda _, rang: asked.append(rang), door=door)
    bench.parked()
    if rings:
        door.pressed = True
        os.eventfd_write(door.fd, 1)
        bench.seq += 1  # it wakes by itself, under the number that the order will have
    else:
        bench.wake()
    bench.expect(Outcome.WOKEN)
    assert asked == [rings]
    os.close(door.fd)
