"""The whole way on a real bus: who decides, who is asked, and that the servers come back however it goes."""

import threading
import time

import pytest

from memscaler.config.stages import Suspend
from memscaler.core.stages import MachineSleep, Rung
from memscaler.daemon.child_words import Done
from memscaler.sleep import suspending as module
from memscaler.sleep.link import Do
from memscaler.sleep.logind import Bus, Logind
from memscaler.sleep.machine import Back, BringBack, NotPrepared, Prepare, Prepared, Quiet
from memscaler.sleep.suspending import Slept, Suspending
from tests.suspend.bus import a_box, eventually

# What depends on this machine (who is logged in here, what it does) is test_gates.py's.
ALONE = Suspend(ssh=False, cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=0.0, timeout_s=30.0)


class Ladder:
    """What run.py is to do with the reports: a thread of its own, as the sleeper's loop is one."""

    def __init__(self, box, folder, *, prepares=True) -> None:
        self.reports = []
        self.servers = ["up"]
        self.prepares = prepares  # False: the test answers
        self.suspending = Suspending(folder, self._report, box.asleep_s)

    def _report(self, report):
        self.reports.append(report)
        match report:
            case Prepare() if self.prepares:
                self.servers.append("down")
                self.suspending.tell(Prepared())
            case BringBack():
                self.servers.append("up")
                threading.Timer(0.05, self.suspending.tell, [Back()]).start()

    def said(self, kind):
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def machine(self):
        return (self.said(MachineSleep) or [MachineSleep()])[-1]

    def is_over(self):
        """It went down, or was to, and all is as before."""
        return self.said(BringBack) and self.machine.rung is Rung.UP and self.servers[-1] == "up"


@pytest.fixture
def box(tmp_path, monkeypatch):
    with a_box(tmp_path) as found:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        yield found


@pytest.fixture
def ladder(box, tmp_path):
    found = Ladder(box, tmp_path / "run")
    found.suspending.start()
    yield found
    found.suspending.close()


def quiet(ladder, rule=ALONE, after_s=0.0):
    ladder.suspending.configure(after_s, rule)
    ladder.suspending.tell(Quiet(time.monotonic()))


def test_quiet_machine_sleeps_and_its_servers_come_back(box, ladder):
    """Servers down, logind asked with the flag that binds root, the servers back when it has resumed."""
    box.set(slept_s=7200.0)
    quiet(ladder)
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ["SuspendWithFlags", 1] in box.log()
    assert ladder.servers == ["up", "down", "up"]
    assert ladder.said(Slept) == [Slept(7200.0)]
    assert ladder.said(BringBack)[0].slept_s == 7200.0
    assert (ladder.machine.suspends, ladder.machine.failed, ladder.machine.asleep_s) == (1, 0, 7200.0)
    assert ladder.machine.last == "slept 2 h 0 min"


def test_quiet_time_must_be_over(ladder):
    """Until then only the document says when it will be."""
    quiet(ladder, after_s=3600.0)
    eventually(lambda: ladder.machine.next_unix_s)
    assert abs(ladder.machine.next_unix_s - time.time() - 3600.0) < 30.0
    assert not ladder.said(Prepare)


def test_start_is_no_resume(ladder):
    """`min_awake` holds after a resume only: it may be long."""
    quiet(ladder, Suspend(ssh=False, cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=86400.0))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    ladder.suspending.tell(Quiet(time.monotonic()))
    eventually(lambda: (ladder.machine.next_unix_s or 0.0) > time.time() + 80000.0, what=lambda: ladder.machine)


def test_suspend_that_fails_brings_the_servers_straight_back(box, ladder):
    """Logind says that it is over, and the machine has not slept: the job has failed."""
    box.set(sleep="fails")
    quiet(ladder)
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.said(BringBack)[0].slept_s is None
    assert (ladder.machine.suspends, ladder.machine.failed) == (0, 1)
    assert ladder.machine.last.startswith("failed: ")
    assert not ladder.said(Slept)


def test_refusal_of_logind_brings_the_servers_straight_back(box, ladder):
    """Somebody inhibits sleep after the gates were looked at: logind itself refuses, and says who."""
    box.set(late_inhibitors=[["sleep", "backup", "it runs", "block", 1000, 77]])
    quiet(ladder)
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert "backup" in ladder.machine.last
    assert (ladder.machine.suspends, ladder.machine.failed) == (0, 1)


def test_suspend_that_does_not_begin_is_called_off(box, ladder):
    """A job that hangs: forgotten by systemd after `timeout`, and the servers come back."""
    box.set(sleep="hangs")
    quiet(ladder, Suspend(ssh=False, cpu_load=0.0, network_bytes_per_s=0.0, min_awake_s=0.0, timeout_s=1.0))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ["cancel", "/org/freedesktop/systemd1/job/7"] in box.log()
    assert ladder.machine.last == "failed: the machine was still up after 1 s"


def test_lost_signal_does_not_keep_the_servers_down(box, ladder, monkeypatch):
    """The clocks tell that the machine has slept, where logind's word is missing."""
    monkeypatch.setattr(module, "SIGNAL_S", 0.5)
    box.set(sleep="lost", slept_s=60.0)
    quiet(ladder)
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.suspends == 1


def test_bus_that_goes_away_while_the_machine_sleeps(box, ladder):
    """The same, at once: there is nobody whose word could be waited for."""
    box.set(sleep="hangs")
    quiet(ladder)
    eventually(lambda: ["SuspendWithFlags", 1] in box.log())
    box.stop()
    box.state.with_suffix(".asleep").write_text("500.0")
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.asleep_s == 500.0


def test_closed_gate_keeps_it_up_and_is_told(box, ladder):
    """Nobody is taken down for a look."""
    box.set(inhibitors=[["sleep:idle", "apt", "upgrading", "block", 0, 77]])
    quiet(ladder)
    eventually(lambda: ladder.machine.why_not == ("apt inhibits idle and sleep: upgrading",))
    assert not ladder.said(Prepare)


def test_gate_that_closes_while_servers_end(box, tmp_path):
    """Stopping them took its time, and somebody has logged in."""
    ladder = Ladder(box, tmp_path / "run", prepares=False)
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.said(Prepare))
    box.set(sessions={"3": {"user": "eve", "Class": "user", "State": "active", "TTY": "tty1", "IdleHint": False}})
    ladder.suspending.tell(Prepared())
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.last == "called off: eve is logged in on tty1 and not idle"
    assert ladder.machine.failed == 0
    assert not [entry for entry in box.log() if entry[0].startswith("Suspend")]
    ladder.suspending.close()


def test_client_who_comes_while_servers_end(box, tmp_path):
    """Called off: no failure, and logind is not asked."""
    ladder = Ladder(box, tmp_path / "run", prepares=False)
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.said(Prepare))
    ladder.suspending.tell(Quiet(None, "port 8080 is used"))
    ladder.suspending.tell(NotPrepared("a client came to port 8080"))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.last == "called off: a client came to port 8080"
    assert ladder.machine.why_not == ("port 8080 is used",)
    assert not [entry for entry in box.log() if entry[0].startswith("Suspend")]
    ladder.suspending.close()


def test_somebody_else_suspends(ladder):
    """`systemctl suspend`: nothing is taken down, and everything is to be verified afterwards."""
    ladder.suspending.configure(3600.0, ALONE)
    eventually(lambda: ladder.said(MachineSleep))
    eventually(ladder.suspending._bus.fd)
    by_hand()
    eventually(lambda: ladder.said(Slept), what=lambda: ladder.reports)
    assert ladder.said(Slept) == [Slept(3600.0)]
    assert not ladder.said(BringBack)
    eventually(lambda: ladder.machine.suspends == 1)


def by_hand():
    bus = Bus()
    Logind(bus).suspend(force=False)
    bus.close()


def test_operator_wants_it_now_with_an_alarm(box, ladder):
    """Although nobody has configured it; the alarm is a timer of systemd that wakes the machine, and goes afterwards."""
    ladder.suspending.configure(None, ALONE)
    ladder.suspending.tell(Quiet(time.monotonic()))
    ladder.suspending.ask(Do(5, "suspend", wake_unix_s=4102444800.0, by="eve"))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    (done,) = ladder.said(Done)
    assert (done.id, done.ok, done.document["alarm_unix_s"]) == (5, True, 4102444800.0)
    timer = [
        "timer",
        "memscaler-wake.timer",
        [["OnCalendar", "2100-01-01 00:00:00 UTC"]],
        True,
        ["memscaler-wake.service"],
    ]
    assert timer in box.log()
    assert box.log().index(timer) < box.log().index(["SuspendWithFlags", 1])
    assert box.log()[-1] == ["stop", "memscaler-wake.timer"]
    assert ladder.machine.alarm_unix_s is None


def test_operator_is_refused_and_told_why(box, ladder):
    """Clients and locks hold against an operator, unless by force; users, who may be the operator, do not."""
    box.set(
        inhibitors=[["sleep", "apt", "upgrading", "block", 0, 77]],
        sessions={"3": {"user": "eve", "Class": "user", "State": "active", "IdleHint": False}},
    )
    ladder.suspending.tell(Quiet(None, "port 8080 is used"))
    ladder.suspending.ask(Do(1, "suspend"))
    eventually(lambda: len(ladder.said(Done)) == 1)
    assert ladder.said(Done)[0].error == "the machine is not suspended: port 8080 is used"
    ladder.suspending.tell(Quiet(time.monotonic()))
    ladder.suspending.ask(Do(2, "suspend"))
    eventually(lambda: len(ladder.said(Done)) == 2)
    assert ladder.said(Done)[1].error == "the machine is not suspended: apt inhibits sleep: upgrading"
    assert not ladder.said(Prepare)
    ladder.suspending.tell(Quiet(None, "port 8080 is used"))
    ladder.suspending.ask(Do(3, "suspend", force=True))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.said(Done)[2].ok
    assert ladder.said(Prepare)[0].force
    assert ["SuspendWithFlags", 0] in box.log()
    assert ladder.machine.suspends == 1


def test_never_outlives_the_process_and_allow_ends_it(box, tmp_path):
    """A sleeper that died is replaced by one that keeps an operator's word."""
    first = Ladder(box, tmp_path / "run")
    first.suspending.start()
    first.suspending.ask(Do(1, "never", reason="a demonstration", by="eve"))
    eventually(lambda: first.said(Done))
    first.suspending.close()
    second = Ladder(box, tmp_path / "run")
    second.suspending.start()
    quiet(second)
    eventually(lambda: second.machine.wanted)
    assert second.machine.never == "a demonstration (eve)"
    second.suspending.ask(Do(2, "suspend"))
    eventually(lambda: second.said(Done))
    assert second.said(Done)[0].error == "the machine is not suspended: never: a demonstration (eve)"
    assert not second.said(Prepare)
    second.suspending.ask(Do(3, "allow"))
    eventually(second.is_over, what=lambda: second.reports)
    assert second.machine.suspends == 1
    second.suspending.close()


def test_never_calls_off_what_has_begun_and_ends_by_itself(box, tmp_path):
    """For a time; and then the machine sleeps."""
    ladder = Ladder(box, tmp_path / "run", prepares=False)
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.said(Prepare))
    ladder.suspending.ask(Do(1, "never", for_s=1.0, reason="wait"))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.last == "called off: never: wait"
    eventually(lambda: not ladder.machine.never)
    ladder.suspending.close()


def test_unreadable_never_keeps_it_up(box, tmp_path):
    """Doubt means up."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / module.NEVER).write_text("{")
    ladder = Ladder(box, folder)
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.machine.wanted)
    assert ladder.machine.never == "suspend-never.json cannot be read"
    assert not ladder.said(Prepare)
    ladder.suspending.close()


def test_no_bus_keeps_it_up_and_a_bus_that_comes_later_is_found(box, tmp_path, monkeypatch):
    """As at boot. The reason stands in the document."""
    monkeypatch.setattr(module, "RECONNECT_S", 0.2)
    monkeypatch.setattr("memscaler.sleep.machine.LOOK_AGAIN_S", 0.2)
    box.stop()
    ladder = Ladder(box, tmp_path / "run")
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.machine.why_not)
    for why in ladder.machine.why_not:
        assert why.startswith("logind cannot be asked: the system bus cannot be reached: "), why
        assert "Errno" not in why
        assert "systemctl status systemd-logind" in why
    box.start()
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.suspends == 1
    ladder.suspending.close()


def test_end_while_servers_are_down(box, tmp_path):
    """It suspends nothing any more, and leaves no alarm."""
    ladder = Ladder(box, tmp_path / "run", prepares=False)
    ladder.suspending.start()
    ladder.suspending.tell(Quiet(time.monotonic()))
    ladder.suspending.ask(Do(1, "suspend", wake_unix_s=4102444800.0))
    eventually(lambda: ladder.said(Prepare))
    ladder.suspending.close()
    ladder.suspending.tell(Prepared())
    assert not ladder.suspending._thread.is_alive()
    assert not [entry for entry in box.log() if entry[0].startswith("Suspend")]


def test_error_of_our_own_does_not_keep_the_servers_down(box, tmp_path, monkeypatch):
    """A clock that cannot be read while the machine is asked to sleep, for example."""
    monkeypatch.setattr(module, "BROKEN_S", 0.1)
    ladder = Ladder(box, tmp_path / "run", prepares=False)
    broken = []

    def clock():
        if broken:
            raise OSError(broken.pop())
        return box.asleep_s()

    ladder.suspending._clock_asleep_s = clock
    ladder.suspending.start()
    quiet(ladder)
    eventually(lambda: ladder.said(Prepare))
    broken.append("no clock")
    ladder.suspending.tell(Quiet(time.monotonic()))
    eventually(ladder.is_over, what=lambda: ladder.reports)
    assert ladder.machine.last == "failed: an error of memscaler: no clock"
    ladder.suspending.close()
    assert not ladder.suspending._thread.is_alive()
