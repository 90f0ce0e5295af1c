"""What keeps a machine up: each gate by itself, and what is read from a real /proc and of real processes."""

import datetime as dt
import os
import subprocess
import time
from pathlib import Path

import pytest

from memscaler.config.hours import parse_windows
from memscaler.config.stages import Suspend
from memscaler.sleep import gates
from memscaler.sleep.gates import Meter, Rates, Seen, closed_gates, is_busy, next_alarm, ssh_logins
from memscaler.sleep.logind import Inhibitor, Session
from memscaler.sleep.machine import Look, Wanted
from tests.suspend.bus import eventually

MONDAY_10 = dt.datetime(2026, 11, 23, 10, 0).timestamp()  # noqa: DTZ001  # windows are of local time
IDLE = Rates(0.0, 0.0)
EVE = Session("3", "eve", tty="tty1")
OF_ITSELF, ASKED, FORCED = Look(), Look(Wanted()), Look(Wanted(force=True))


def closed(seen=None, look=OF_ITSELF, at_s=MONDAY_10, **rule):
    return closed_gates(Seen(rates=IDLE) if seen is None else seen, Suspend(**rule), at_s, look)


def with_(**seen):
    return Seen(**{"rates": IDLE, **seen})


def test_nobody_is_there():
    """Nothing keeps it up."""
    assert closed() == ()


@pytest.mark.parametrize("said", ["no", "na", "challenge", "something else"])
def test_logind_cannot(said):
    """Also by force."""
    for look in (OF_ITSELF, ASKED, FORCED):
        assert len(closed(with_(can_suspend=said), look)) == 1


@pytest.mark.parametrize(
    ("what", "mode", "of_itself", "asked"),
    [
        ("sleep", "block", True, True),
        ("shutdown:sleep", "block", True, True),
        ("sleep", "block-weak", True, True),
        ("idle", "block", True, False),
        ("sleep", "delay", False, False),
        ("shutdown", "block", False, False),
        ("handle-lid-switch", "block", False, False),
    ],
)
def test_inhibitors(what, mode, of_itself, asked):
    """Who delays only is waited for by logind; who inhibits "idle" holds against us, not against an operator."""
    seen = with_(inhibitors=(Inhibitor(what, "apt", "upgrading", mode),))
    assert bool(closed(seen)) == of_itself
    assert bool(closed(seen, ASKED)) == asked
    assert closed(seen, FORCED) == ()
    assert closed(seen, inhibitors=False) == ()


@pytest.mark.parametrize(
    ("session", "users", "keeps"),
    [
        (EVE, "active", True),
        (EVE, "any", True),
        (EVE, "ignore", False),
        (Session("3", "eve", is_idle=True), "active", False),
        (Session("3", "eve", is_idle=True), "any", True),
        (Session("3", "eve", state="closing"), "any", False),
        (Session("3", "eve", kind="user-early"), "any", True),
        (Session("3", "gdm", kind="greeter"), "any", False),
        (Session("3", "eve", kind="manager"), "any", False),
        (Session("3", "eve", kind="background"), "any", False),
    ],
)
def test_users(session, users, keeps):
    """People, not what logs in by itself; an operator who wants it now may be one of them."""
    assert bool(closed(with_(sessions=(session,)), users=users)) == keeps
    assert closed(with_(sessions=(session,)), ASKED, users=users) == ()


def test_ssh():
    """By logind's word or by sshd's processes, idle or not; it has a switch of its own."""
    by_logind = Session("4", "eve", service="sshd", is_remote=True, is_idle=True)
    assert closed(with_(sessions=(by_logind,), ssh=("root",))) == ("logged in by SSH: eve, root",)
    assert closed(with_(ssh=("root",)), ssh=False) == ()
    assert closed(with_(sessions=(by_logind,)), ssh=False) == ()


def test_load_and_traffic():
    """Above the limit; 0 is not looked at; of what the servers themselves did while they ended, nothing counts."""
    working = with_(rates=Rates(0.7, 250_000.0))
    assert closed(working) == (
        "0.7 CPUs are at work (cpu_load = 0.5)",
        "250 kB/s go over the network (network = 100 kB/s)",
    )
    assert closed(working, cpu_load=0.0, network_bytes_per_s=0.0) == ()
    assert closed(with_(rates=None)) == ("its load is being measured",)
    assert closed(with_(rates=None), cpu_load=0.0, network_bytes_per_s=0.0) == ()
    assert closed(working, Look(again=True)) == ()
    assert closed(working, ASKED) == ()


def test_hours():
    """`never` and `wake_at` keep it up within; before `wake_at` begins it is not worth it."""
    nine_to_six = parse_windows("Mon-Fri 09:00-18:00")
    assert closed(never=nine_to_six) == ("never until Mon 18:00",)
    assert closed(wake_at=nine_to_six) == ("wake_at until Mon 18:00",)
    assert closed(never=nine_to_six, look=ASKED) == ()
    eleven = parse_windows("Mon 10:04-11:00")
    assert closed(wake_at=eleven) == ("it is to be up again at Mon 10:04, which is too soon",)
    assert closed(wake_at=parse_windows("Mon 10:06-11:00")) == ()
    assert next_alarm(eleven, MONDAY_10) == MONDAY_10 + 240.0
    assert next_alarm((), MONDAY_10) is None


def test_alarm_of_an_operator_that_would_be_missed():
    """It would ring before the machine sleeps, and nobody would wake it."""
    soon = Look(Wanted(wake_unix_s=MONDAY_10 + 30.0, force=True))
    assert closed(look=soon) == ("it is to be up again at Mon 10:00, which is too soon",)
    assert closed(look=Look(Wanted(wake_unix_s=MONDAY_10 + 90.0))) == ()


def test_busy_commands(tmp_path, monkeypatch):
    """0 keeps it up; so does what cannot be run, and what does not end, of which nothing is left."""
    assert "says that it is busy" in is_busy(("true",))
    assert is_busy(("false",)) == ""
    assert "cannot be run" in is_busy((str(tmp_path / "missing"),))
    monkeypatch.setattr(gates, "BUSY_COMMAND_S", 0.3)
    pid_file = tmp_path / "pid"
    assert "did not end" in is_busy(("sh", "-c", f"echo $$ >{pid_file}; sleep 600; :"))
    assert not Path("/proc", pid_file.read_text().strip()).exists()
    assert closed(with_(busy=("`true` says that it is busy",))) == ("`true` says that it is busy",)


def titled(title):
    return subprocess.Popen(["bash", "-c", f"exec -a '{title}' sleep 600"])


def test_ssh_logins_by_the_titles_of_processes():
    """Who is not logged in yet, and the daemon itself, do not count."""
    titles = [
        *("sshd: eve-test@pts/0", "sshd-session: adam-test@notty", "sshd: tunnel-test"),
        *("sshd: late-test [priv]", "sshd: [accepted]", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"),
    ]
    processes = [titled(title) for title in titles]
    try:
        wanted = {"eve-test", "adam-test", "tunnel-test"}
        found = eventually(lambda: wanted <= set(ssh_logins(gates.PROC)) and ssh_logins(gates.PROC))
        assert not [user for user in found if "late" in user or "accepted" in user or "listener" in user]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_meter_sees_this_machine_work():
    """A busy process is about one CPU, read from the real /proc."""
    meter = Meter()
    assert meter.read() is None
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        pass
    rates = meter.read()
    assert rates is not None
    assert 0.3 < rates.load <= (os.cpu_count() or 1) + 0.5
    assert rates.network_bytes_per_s >= 0.0
    assert meter.read() is None  # too soon after the last one


def test_meter_counts_all_interfaces_but_loopback(tmp_path):
    """And says nothing of an average over a long time."""
    (tmp_path / "self/net").mkdir(parents=True)
    clock = iter([0.0, 10.0, 20.0, 1000.0])
    meter = Meter(tmp_path, lambda: next(clock))

    def machine(jiffies, received, loopback):
        (tmp_path / "stat").write_text(f"cpu  {jiffies} 0 0 999 7 0 0 0 0 0\ncpu0 1 1 1 1\n")
        lines = [
            f"    lo: {loopback} 0 0 0 0 0 0 0 {loopback} 0 0 0 0 0 0 0",
            f"  eth0: {received} 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0",
        ]
        (tmp_path / "self/net/dev").write_text("Inter-|\n face |\n" + "\n".join(lines) + "\n")

    machine(0, 0, 0)
    assert meter.read() is None
    machine(15 * os.sysconf("SC_CLK_TCK"), 20_000, 10**9)
    assert meter.read() == Rates(1.5, 2000.0)
    (tmp_path / "stat").write_text("")
    assert meter.read() is None
    machine(0, 0, 0)
    assert meter.read() is None
