"""A real arbiter with the governor's ends in our hands, and a batch job that can be seen to stand still."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.child.link import GpuSeen, Seen
from memscaler.config.gpuctl import Gvm, Match
from memscaler.core.gpuctl import Knob, Means
from memscaler.observe.gpuctl import is_frozen, is_set
from memscaler.simulator import SimulatedDriver
from tests.governor import eventually
from tests.gvm.batch import Batch, batching, own_cgroup
from tests.gvm.governor_end import KEY, GovernorEnd, batch_rule, governor_end
from tests.patience import patience

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[SimulatedDriver]:
    """For the processes that a test starts; this one does not load the driver."""
    made = SimulatedDriver.create(tmp_path / "boards", ("a40",))
    yield made
    made.clear_faults()
    made.close()


@pytest.fixture
def batch(tmp_path: Path, boards: SimulatedDriver) -> Iterator[Batch]:
    """It is on the first board's list."""
    assert boards.boards
    with batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0") as made:
        yield made


@pytest.fixture
def end(boards: SimulatedDriver) -> Iterator[GovernorEnd]:
    """Of an arbiter that freezes the batch job while somebody is connected; not started."""
    with governor_end(boards.boards[0].uuid, batch_rule(), environment=boards.environment) as made:
        yield made


@pytest.mark.parametrize("parked", [True, False], ids=["a parked GPU", "an awake one"])
def test_a_client_stops_the_batch_job_and_it_goes_on_when_he_has_left(end, batch, parked):
    """By SIGSTOP, in the journal before it is done, told, and all is gone afterwards."""
    end.start()
    end.prepared()
    assert end.guarded == {KEY: True}
    batch.works()
    end.client_comes(wake=parked)
    if parked:
        eventually(batch.stopped, within_s=1)  # it was, when the actuator went on; the governor's patience is 5 ms
    batch.stands_still()
    assert batch.stopped()
    assert len(end.journal) == 1
    told = end.until(lambda told: told.controlled and told.rules[0].applied)
    assert told.controlled[0].pid == batch.pid
    assert told.controlled[0].name == "render-batch"
    assert (told.controlled[0].knob, told.controlled[0].means) == (Knob.COMPUTE_FREEZE, Means.SIGNAL)
    assert (told.controlled[0].value, told.controlled[0].was) == (1, 0)
    assert told.controlled[0].since_unix_s > 0
    assert told.rules[0].holds
    assert told.rules[0].for_ == (KEY,)
    assert len(told.rules[0].first_s) == 1
    end.client_goes()
    end.until(lambda told: not told.controlled)
    batch.works()
    assert end.journal == []
    assert end.rule().released == 1
    assert not end.rule().holds
    assert end.rule().seconds > 0.3
    assert end.end() == 0


def test_it_is_stopped_within_milliseconds(end, batch):
    """From the actuator's word to its last kernel; the bound is generous, bench/gpuctl.py measures."""
    end.start()
    end.prepared()
    times = []
    for _ in range(10):
        batch.works()
        began_ns = time.monotonic_ns()
        end.client_comes()
        times.append((batch.stands_still() - began_ns) / 1e6)
        end.client_goes()
        end.until(lambda told: not told.controlled)
        end.park()
    print("ms:", sorted(round(each, 2) for each in times))
    assert sorted(times)[len(times) // 2] < 50.0


def test_a_gpu_that_is_woken_for_nobody_stops_nobody_for_long(end, batch):
    """A hold: nothing at all. A ring that turns out to be another server's: until the governor has looked."""
    end.start()
    end.prepared()
    end.urgent.before_wake(end.gpu, rang=False)
    batch.works()
    assert not batch.stopped()
    end.urgent.before_wake(end.gpu, rang=True)
    end.until(lambda told: told.rules[0].released == 1)
    batch.works()


@pytest.mark.parametrize("how", ["signal", "cgroup"])
def test_everything_goes_on_when_the_governor_has_gone(boards, tmp_path, how):
    """The end of the socket is the end of every freeze."""
    with (
        own_cgroup(f"arbiter-{os.getpid()}") as cgroup,
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0", cgroup=cgroup) as batch,
        governor_end(boards.boards[0].uuid, batch_rule(how=how), environment=boards.environment) as end,
    ):
        end.start()
        end.prepared()
        end.client_comes()
        batch.stands_still()
        assert (cgroup / "cgroup.freeze").read_text().strip() == str(int(how == "cgroup"))
        end.close()
        assert end.ended() == 0
        batch.works()
        assert end.journal == []


def test_one_whose_governor_stands_still_puts_everything_back(boards, batch):
    """It is a child of a process that we stop: nobody would tell it that the client has left."""
    with governor_end(boards.boards[0].uuid, batch_rule(), environment=boards.environment) as end:
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:  # the governor that will stand still
            try:
                end.start()
                end.prepared()
                end.client_comes()
                os.write(ready[1], b"x")
                os.read(go[0], 1)
            finally:
                os._exit(0)
        try:
            assert os.read(ready[0], 1) == b"x"
            batch.stands_still()
            os.kill(child, signal.SIGSTOP)
            batch.works()
            eventually(lambda: not end.journal)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for fd in (*ready, *go):
                os.close(fd)


def test_what_a_killed_arbiter_left_is_put_back_by_the_next_one(end, batch):
    """First of all, whatever it is shown afterwards."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.kill()
    batch.stands_still()
    end.client_goes()
    end.park()
    end.start()
    batch.works()
    eventually(lambda: not end.journal)
    assert end.end() == 0


def test_undo_puts_back_what_a_killed_arbiter_left(end, batch):
    """As guardian and restore do; a second time there is nothing to do."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.kill()
    done = end.undo()
    assert done.returncode == 0, done.stderr
    assert f"compute.freeze of render-batch ({batch.pid}): put back" in done.stderr
    batch.works()
    assert end.journal == []
    again = end.undo()
    assert (again.returncode, again.stderr) == (0, "")


def test_what_undo_says_to_programs_has_a_time(end, batch):
    """A line as the governor's own, in the same log."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.kill()
    (line,) = [json.loads(line) for line in end.undo("json").stderr.splitlines()]
    assert (line["event"], line["level"]) == ("gpuctl.undone", "info")
    assert "timestamp" in line
    batch.works()


def test_restore_says_only_what_it_has_restored(end, batch):
    """No GPU was parked, but that is not nothing."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.kill()
    done = end.restore()
    assert done.stdout == f"compute.freeze of render-batch ({batch.pid}): put back\n"
    assert end.restore().stdout == "nothing to restore\n"
    batch.works()


def test_undo_kills_an_arbiter_that_stands_still_and_waits_for_one_that_lives(end, batch):
    """A stopped one would keep the batch job frozen for ever."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    assert end.process is not None
    end.process.send_signal(signal.SIGSTOP)
    done = end.undo()
    assert done.returncode == 0, done.stderr
    batch.works()


def test_a_process_that_was_stopped_by_somebody_else_is_his(end, batch):
    """Told, not touched, and not let go on when the client leaves."""
    end.start()
    end.prepared()
    os.kill(batch.pid, signal.SIGSTOP)
    batch.stands_still()
    end.client_comes()
    told = end.until(lambda told: told.rules[0].why_not)
    assert "somebody else has frozen it before us" in told.rules[0].why_not
    assert [is_frozen(each) for each in told.controlled] == [False]
    assert end.rule().failed == 0
    assert end.journal == []
    end.client_goes()
    end.until(lambda told: not told.rules[0].holds)
    batch.stands_still()
    os.kill(batch.pid, signal.SIGCONT)
    batch.works()


def test_one_that_is_let_go_on_by_somebody_else_stays_so(end, batch):
    """An operator wants it to run; the rule does not fight."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    os.kill(batch.pid, signal.SIGCONT)
    told = end.until(lambda told: "somebody else has changed it" in told.rules[0].why_not)
    batch.works()
    assert [(is_frozen(each), is_set(each)) for each in told.controlled] == [(False, False)]
    assert end.rule().failed == 0
    end.client_goes()
    end.until(lambda told: not told.controlled)
    assert end.rule().failed == 0


def test_who_appears_while_the_rule_is_in_force_is_stopped_too(end, tmp_path, batch):
    """At the next look."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    with batching(tmp_path / "late", "--board", str(tmp_path / "boards"), "0") as late:
        late.stands_still()
        end.until(lambda told: len(told.controlled) == 2)
        end.client_goes()
        late.works()
        batch.works()


def test_a_batch_job_that_dies_frozen_leaves_nothing(end, batch):
    """Silently: the entry of the journal goes with it."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    batch.end()
    end.until(lambda told: not told.controlled)
    assert end.journal == []
    assert end.rule().failed == 0


def test_never_touched(boards, tmp_path):
    """A server of a watched port, and memscaler itself, whatever a rule names."""
    rule = batch_rule(processes=(Match("name", "*"), Match("user", "root")))
    with (
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0", "--name", "server") as server,
        governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end,
    ):
        boards.boards[0].add_process(1, 1 << 20)
        boards.boards[0].add_process(os.getpid(), 1 << 20)
        end.change(pids=(server.pid,))
        end.start()
        assert end.process is not None
        boards.boards[0].add_process(end.process.pid, 1 << 20)
        end.until(lambda told: told.rules and told.rules[0].why_not)
        end.client_comes()
        time.sleep(1.0)
        assert [each.pid for each in end.controlled() if each.pid in (1, server.pid, end.process.pid)] == []
        server.works()


def test_a_quiet_rule_freezes_the_server_itself_and_thaws_it_before_the_clocks(boards, tmp_path):
    """Guard, look, act, look again; then the actuator's word."""
    rule = batch_rule(name="quiet", when="quiet", processes=(Match("server"),))
    with (
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0") as server,
        governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end,
    ):
        end.change(pids=(server.pid,))
        end.start()
        server.stands_still()
        assert end.guarded[KEY]
        end.prepared()
        end.urgent.before_wake(end.gpu, rang=True)
        eventually(lambda: not server.stopped(), within_s=1)
        server.works()
        end.gpus[end.gpu] = GpuSeen("awake")
        end.show("awake")
        end.until(lambda told: told.rules[0].why_not.endswith("is awake"))
        end.park()
        server.stands_still()
        end.gpus[end.gpu] = GpuSeen("held", held=True)
        end.show("held")
        server.works()


def test_a_quiet_rule_that_a_reload_brings_is_in_force_at_once(boards, tmp_path):
    """Its question is not older than the rule, however old the last picture is."""
    with (
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0") as server,
        governor_end(boards.boards[0].uuid, batch_rule(), environment=boards.environment) as end,
    ):
        end.change(pids=(server.pid,))
        end.start()
        end.until(lambda told: told.rules)
        end.say(Seen(time.monotonic_ns() - 60 * 10**9, "long ago", end.gpus, tuple(end.servers.values())))
        end.configure()
        end.configure(batch_rule(name="quiet", when="quiet", processes=(Match("server"),)))
        server.stands_still()
        assert end.until(lambda told: told.rules[0].holds)
        assert not [each for each in end.told for rule in each.rules if "does not answer" in rule.why_not]


def test_a_quiet_rule_that_waits_is_well(boards):
    """It says for what, in the operator's words."""
    rule = batch_rule(name="quiet", when="quiet", processes=(Match("server"),))
    with governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end:
        end.rules = replace(end.rules, gpu_names={"gpu0": end.gpu})
        end.gpus[end.gpu] = GpuSeen("cooling")
        end.start()
        told = end.until(lambda told: told.rules and told.rules[0].why_not.endswith("cooling"))
        assert (told.rules[0].why_not, told.rules[0].waits) == ("gpu0 is cooling", True)
        end.gpus.clear()
        end.show("unknown")
        assert not end.until(lambda told: "not known" in told.rules[0].why_not).rules[0].waits


def test_a_governor_that_does_not_answer_is_doubt(boards, tmp_path):
    """A quiet server is not frozen without its look."""
    rule = batch_rule(name="quiet", when="quiet", processes=(Match("server"),))
    with (
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0") as server,
        governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end,
    ):
        end.silent = True
        end.change(pids=(server.pid,))
        end.start()
        end.until(lambda told: told.rules and "does not answer" in told.rules[0].why_not)
        assert not server.stopped()
        assert not end.rule("quiet").waits


def test_a_reload_that_drops_the_rule_lets_go(end, batch):
    """At once, and the arbiter goes on."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.configure()
    batch.works()
    eventually(lambda: not end.journal, what="an empty journal")
    end.configure(batch_rule(name="other"))
    batch.stands_still()
    assert end.end() == 0
    batch.works()


def test_nice_is_put_back_and_a_limit_is_refused_with_the_reason(boards, batch):
    """Without GVM there is no limit."""
    rule, was = batch_rule(freeze=False, cpu_nice=19), os.getpriority(os.PRIO_PROCESS, batch.pid)
    with governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as end:
        end.start()
        end.prepared()
        end.client_comes()
        eventually(lambda: os.getpriority(os.PRIO_PROCESS, batch.pid) == 19)
        end.until(lambda told: told.controlled and told.controlled[0].means is Means.NICE)
        end.client_goes()
        eventually(lambda: os.getpriority(os.PRIO_PROCESS, batch.pid) == was)
        eventually(lambda: not end.journal)
        end.configure(batch_rule(freeze=False, memory_limit_bytes=1 << 30))
        end.until(lambda told: "needs GVM" in told.rules[0].why_not)


def test_at_most_lets_a_batch_job_go_on(boards, batch):
    """Even while somebody is connected."""
    with governor_end(boards.boards[0].uuid, batch_rule(at_most_s=1.0), environment=boards.environment) as end:
        end.start()
        end.prepared()
        end.client_comes()
        batch.stands_still()
        batch.works()
        end.until(lambda told: "at_most" in told.rules[0].why_not)


@pytest.mark.usefixtures("batch")
def test_a_read_is_answered(end):
    """How things are, then done."""
    end.start()
    end.prepared()
    count = len(end.told)
    assert end.ask().ok
    assert len(end.told) > count
    assert not end.told[-1].gvm
    assert "nothing is mounted" in end.told[-1].gvm_why_not or "not loaded" in end.told[-1].gvm_why_not


def with_gvm(gvm, boards):
    uuid = boards.boards[0].uuid
    environment = {**boards.environment, **gvm.environment}
    return uuid, Gvm(root=gvm.root, proc=gvm.proc), environment, ("--gvm", str(gvm.control), uuid)


def test_gvm_freezes_and_thaws_and_limits(gvm, boards, tmp_path):
    """By its files; limit and priority go back to what they were; a thread is known by its process."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    rule = batch_rule(memory_limit_bytes=1 << 30, compute_priority=12)
    with (
        batching(tmp_path / "batch", *arguments, "--in-a-thread") as batch,
        governor_end(uuid, rule, gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        end.client_comes()
        batch.stands_still()
        assert not batch.stopped()
        told = end.until(lambda told: len([each for each in told.controlled if each.since_unix_s]) == 3)
        assert {each.means for each in told.controlled} == {Means.GVM}
        assert {each.pid for each in told.controlled} == {batch.pid}
        assert len(end.journal) == 3
        assert end.ask().ok
        reading = end.told[-1].readings[0]
        assert (reading.compute_freeze, reading.compute_priority) == (1, 12)
        assert reading.memory_limit_bytes == 1 << 30
        assert reading.name == "render-batch"
        end.client_goes()
        batch.works()
        eventually(lambda: not end.journal)
        assert end.ask(8).ok
        reading = end.told[-1].readings[0]
        assert (reading.compute_freeze, reading.compute_priority) == (0, 8)
        assert reading.memory_limit_bytes == 2**64 - 1
        assert end.end() == 0


def test_a_limit_that_takes_seconds_holds_up_no_freeze(gvm, boards, tmp_path):
    """Neither of its own process nor of another one; and it is told when it takes long."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    gvm.trap("write", "*/memory.limit", delay_s=4.0 * patience(), times=2)
    rule = batch_rule(memory_limit_bytes=1 << 30)
    with (
        batching(tmp_path / "one", *arguments) as one,
        batching(tmp_path / "two", *arguments) as two,
        governor_end(uuid, rule, gvm=where, environment=environment) as end,
    ):
        end.start()
        end.until(lambda told: end.gpu in told.first)
        eventually(lambda: end.ask(99).ok and len(end.told[-1].readings) == 2)
        end.client_comes()
        began_s = time.monotonic()
        eventually(lambda: gvm.frozen(one.tid) and gvm.frozen(two.tid), within_s=3)
        assert time.monotonic() - began_s < 3 * patience()
        assert not [each for each in gvm.writes("memory.limit") if each.text.strip() == str(1 << 30)][2:]
        end.client_goes()
        one.works()
        two.works()
        eventually(lambda: not end.journal, within_s=30)
        assert end.end() == 0


def test_a_status_of_the_driver_is_told_and_undone(gvm, boards, tmp_path):
    """A positive answer of write(2) is no success, and the value was stored all the same."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    with (
        batching(tmp_path / "batch", *arguments) as batch,
        governor_end(uuid, batch_rule(), gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        gvm.trap("write", "*/compute.freeze", status=0x1F, times=1)
        end.client_comes()
        end.until(lambda told: told.rules and "0x1f" in told.rules[0].why_not.lower())
        assert len(end.journal) == 1
        end.until(lambda told: told.controlled and not told.controlled[0].problem)  # tried again
        batch.stands_still()
        assert end.rule().failed == 1
        end.client_goes()
        batch.works()
        eventually(lambda: not end.journal)


def test_what_comes_back_to_its_gpu_is_held_again(gvm, boards, tmp_path):
    """The driver forgets all settings when a process lets go of a GPU (A10)."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    with (
        batching(tmp_path / "batch", *arguments) as batch,
        governor_end(uuid, batch_rule(freeze=False, compute_priority=12), gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        end.client_comes()
        number = gvm.number(uuid)
        eventually(lambda: gvm.read(batch.tid, number, "compute.priority") == "12")
        (gvm.processes / str(batch.tid) / str(number) / "compute.priority").write_text("8\n")  # as a new one has it
        eventually(lambda: gvm.read(batch.tid, number, "compute.priority") == "12")
        end.client_goes()
        eventually(lambda: gvm.read(batch.tid, number, "compute.priority") == "8")
        eventually(lambda: not end.journal)


def test_what_somebody_else_sets_by_gvm_stays(gvm, boards, tmp_path):
    """What is neither ours nor what the driver falls back to is somebody's who wants it so."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    with (
        batching(tmp_path / "batch", *arguments) as batch,
        governor_end(uuid, batch_rule(freeze=False, compute_priority=12), gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        end.client_comes()
        number = gvm.number(uuid)
        eventually(lambda: gvm.read(batch.tid, number, "compute.priority") == "12")
        end.until(lambda told: told.controlled and told.controlled[0].since_unix_s)
        (gvm.processes / str(batch.tid) / str(number) / "compute.priority").write_text("3\n")
        end.until(lambda told: "somebody else has changed it" in told.rules[0].why_not)
        assert gvm.read(batch.tid, number, "compute.priority") == "3"
        end.client_goes()
        eventually(lambda: not end.journal)
        assert gvm.read(batch.tid, number, "compute.priority") == "3"


def test_two_means_for_one_process_do_not_take_each_other_for_somebody_else(end, tmp_path, boards):
    """Who is frozen by its cgroup does not stop for a signal before that lets it go on."""
    board = ("--board", str(tmp_path / "boards"), "0")
    rules = batch_rule(name="group", how="cgroup"), batch_rule(name="signal", how="signal")
    with (
        own_cgroup(f"ms-two-{os.getpid()}") as group,
        batching(tmp_path / "one", *board, cgroup=group) as batch,
    ):
        end.rules = replace(end.rules, rules=rules)
        end.start()
        end.prepared()
        for _ in range(5):
            batch.works()
            end.client_comes()
            batch.stands_still()
            end.until(lambda told: len([each for each in told.controlled if each.since_unix_s]) == 2)
            time.sleep(3 * rules[0].look_every_s)  # it has looked again
            end.client_goes()
            end.until(lambda told: not told.controlled)
            batch.works()
    assert "somebody else" not in end.said()
    assert boards.boards


def test_an_arbiter_killed_in_the_driver_keeps_nobody_frozen(gvm, boards, tmp_path):
    """Its thread waits there still, and so does its lock: an undo takes the right from the dead."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    delay_s = 20.0 * patience()
    rule = batch_rule(memory_limit_bytes=1 << 30)
    board = ("--board", str(tmp_path / "boards"), "0")
    with (
        batching(tmp_path / "hangs", *arguments) as hangs,
        batching(tmp_path / "stopped", *board) as stopped,
        governor_end(uuid, rule, gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        eventually(lambda: end.ask(99).ok and end.told[-1].readings)
        time.sleep(0.5)
        gvm.trap("write", "*/memory.limit", delay_s=delay_s)
        end.client_comes()
        stopped.stands_still()
        eventually(lambda: gvm.frozen(hangs.tid))
        eventually(lambda: len(end.journal) == 3)
        assert end.process is not None
        end.process.kill()
        end.close()
        time.sleep(0.5)
        assert end.process.poll() is None, "a thread of its own waits in the driver"
        began_s = time.monotonic()
        done = end.undo_begun()
        stopped.works()
        assert time.monotonic() - began_s < delay_s / 2
        assert done.wait(120 * patience()) == 0
        hangs.works()


def test_pending_kernels_keep_a_gpu_from_being_parked(gvm, boards, tmp_path):
    """Unless their process is frozen (A11)."""
    uuid, where, environment, arguments = with_gvm(gvm, boards)
    with (
        batching(tmp_path / "batch", *arguments, "--counted") as batch,
        governor_end(uuid, batch_rule(), gvm=where, environment=environment) as end,
    ):
        end.start()
        end.prepared()
        end.urgent.gvm = True
        eventually(lambda: f"process {batch.pid} are pending" in end.urgent.may_park(uuid))
        end.client_comes()
        batch.stands_still()
        eventually(lambda: end.urgent.may_park(uuid) == "")
