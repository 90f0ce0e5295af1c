"""What the doctor says about a daemon that runs, stands still, or is not there: real daemons."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from memscaler import __version__
from memscaler.daemon.doctor.model import Result
from memscaler.daemon.requests import SOCKET
from tests.asked import STATUS, answering
from tests.daemon.servers import KeepAlive
from tests.doctor.bench import doctor, only
from tests.governor import eventually, governing, listener, port_of, stand_still

DAEMON = ("MS-DAEMON", "MS-METRICS", "MS-GPU-05")


@contextlib.contextmanager
def answer_of(folder, **status):
    """A daemon that says this, and only this."""
    with answering(folder) as loop:
        loop.answer = lambda _: {**STATUS, **status}
        yield


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_daemon_that_is_well(tmp_path, free_port):
    """Everything about it passes: it answers, governs, has a guardian, and its metrics are its own."""
    metrics = f"127.0.0.1:{free_port}"
    with (
        listener() as server,
        governing(
            tmp_path, "a40,p40", "--port", f"{port_of(server)}:gpu0", "--metrics", metrics, "--idle-after", "200ms"
        ) as governor,
    ):
        eventually(lambda: governor.driver.boards[0].memory_lock)
        found = doctor(tmp_path, *DAEMON, "MS-SERVER-01", "--simulate", "a40,p40", env={"MEMSCALER_METRICS": metrics})
        assert {each["result"] for check in found for each in found[check]} <= {"PASS", "WARN"}
        assert only(found, "MS-DAEMON-01")["seen"] == f"pid {governor.pid} governs 1 GPU"
        assert only(found, "MS-DAEMON-04")["seen"] == f"pid {governor.guardian_pid} watches over pid {governor.pid}"
        assert only(found, "MS-METRICS-01")["result"] == "PASS"
        assert only(found, "MS-GPU-05")["seen"] == f"parked by the running daemon (pid {governor.pid}): 1"
        assert governor.stop() == 0


def asleep(**server):
    """What a daemon says of one server that sleeps, or does not."""
    told = {"name": "chat", "rung": "up", "standing": "up", "missing": False, "why_not": "", "note": "", **server}
    return {"problem": "", "servers": [told], "machine": {"rung": "up", "why_not": []}, "gpus": [], "pid": 1}


@pytest.mark.parametrize(
    ("sleep", "seen"),
    [
        (asleep(rung="stuck", standing="stuck in stop-server", note="no"), "stuck in stop-server: no"),
        (asleep(standing="not there", missing=True, why_not="nobody listens"), "is not there: nobody listens"),
        ({**asleep(), "problem": "the sleeper has died"}, "the sleeper: the sleeper has died"),
        ({**asleep(), "machine": {"rung": "stuck", "why_not": ["no"]}}, "the machine is not suspended: no"),
        (asleep(), "it waits for nothing and has nothing to remark"),
    ],
)
def test_deeper_sleep_that_is_not_well(tmp_path, sleep, seen):
    """A server that does not come back is no pass."""
    with answer_of(tmp_path, sleep=sleep):
        found = doctor(tmp_path, "MS-DAEMON-03", env={"MEMSCALER_METRICS": "off"})
    assert only(found, "MS-DAEMON-03")["seen"] == seen
    assert only(found, "MS-DAEMON-03")["result"] == ("PASS" if seen.startswith("it ") else "WARN")


def test_a_daemon_that_stands_still(tmp_path):
    """It does not answer, and that is said after some seconds, once."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        stand_still(governor.pid)
        try:
            found = doctor(tmp_path, "MS-DAEMON", env={"MEMSCALER_METRICS": "off"})
            assert {only(found, check)["seen"] for check in found} == {"the daemon did not answer in 4 s"}
            assert {only(found, check)["result"] for check in found} == {"UNKNOWN"}
        finally:
            os.kill(governor.pid, signal.SIGCONT)
        assert governor.stop() == 0


def test_no_daemon(runtime_dir, free_port):
    """What cannot be asked is unknown; that nobody runs is a warning, not a failure."""
    found = doctor(runtime_dir, *DAEMON, env={"MEMSCALER_METRICS": f"127.0.0.1:{free_port}"})
    assert only(found, "MS-DAEMON-01")["result"] == "WARN"
    assert {only(found, f"MS-DAEMON-0{number}")["result"] for number in (2, 3, 4)} == {"UNKNOWN"}
    assert only(found, "MS-METRICS-01")["result"] == "PASS"


def test_how_to_start_it(machine):
    """As this machine starts services: nothing is said of systemctl where systemd does not run."""

    def remedy():
        return machine.check("MS-DAEMON-01").remedy

    assert remedy() == "sudo memscaler run --port 8080:gpu0"
    (machine.root / "run/systemd/system").mkdir(parents=True)
    assert remedy().startswith("sudo memscaler setup, or ")
    machine.write("/usr/lib/systemd/system/memscaler.service", "[Service]\n")
    assert remedy().startswith("sudo systemctl start memscaler, or ")


def test_metrics_of_somebody_else(runtime_dir):
    """A port that another program has is told, also if that says nothing."""
    with KeepAlive() as other, listener() as silent, answer_of(runtime_dir):
        for port, seen in ((other.port, "another program answers on"), (port_of(silent), "but the daemon runs")):
            env = {"MEMSCALER_METRICS": f"127.0.0.1:{port}"}
            finding = only(doctor(runtime_dir, "MS-METRICS-01", env=env), "MS-METRICS-01")
            assert (finding["result"], seen in finding["seen"]) == ("WARN", True)


@pytest.mark.parametrize(
    ("status", "check", "seen", "remedy"),
    [
        ({"version": "0.0.1"}, "MS-DAEMON-01", "version 0.0.1 runs", "systemctl restart memscaler"),
        ({"mode": "paused"}, "MS-DAEMON-01", "it is paused", "memscaler resume"),
        ({"mode": "released"}, "MS-DAEMON-01", "it is released", "memscaler resume"),
        ({"waiting": [{"watch": "8080", "reason": "no such container"}]}, "MS-DAEMON-03", "no such container", "ports"),
        ({"notices": ["no root of cgroup v2"]}, "MS-DAEMON-03", "no root of cgroup v2", "journalctl"),
        (
            {
                "gpus": [
                    {"gpu": "gpu0", "state": "unmanaged", "reason": "it failed", "remedy": "reset it", "conflict": ""}
                ]
            },
            "MS-DAEMON-02",
            "left alone: it failed",
            "reset it",
        ),
        (
            {"gpus": [{"gpu": "gpu0", "state": "held", "reason": "", "remedy": "", "conflict": "somebody moved it"}]},
            "MS-DAEMON-02",
            "somebody moved it",
            "MS-RIVAL-01",
        ),
        ({"pid": 1}, "MS-DAEMON-04", "pid 1 has no guardian", "guardian.died"),
    ],
)
def test_what_a_daemon_says(machine, status, check, seen, remedy):
    """Each thing that wants an operator becomes a warning with a remedy."""
    machine.write("/proc/1/stat", "")
    machine.context.ask_status = lambda: {**STATUS, "version": __version__, **status}
    finding = machine.check(check)
    assert (finding.result, seen in finding.seen, remedy in finding.remedy) == (Result.WARN, True, True)


def test_a_daemon_with_nothing_to_say(machine):
    """Dry runs and released drivers need no guardian, and no GPU is no mistake."""
    machine.context.ask_status = lambda: {**STATUS, "version": __version__, "dry_run": True}
    assert {machine.check(f"MS-DAEMON-0{number}").result for number in range(1, 5)} == {Result.PASS}


def test_nobody_may_not_ask(runtime_dir):
    """Who is not in the group learns how to get there; that is no failure of the daemon."""
    with answer_of(runtime_dir):
        (runtime_dir / SOCKET).chmod(0o660)
        found = doctor(runtime_dir, "MS-DAEMON", nobody=True)
    assert {only(found, check)["result"] for check in found} == {"UNKNOWN"}
    assert "usermod -aG memscaler" in only(found, "MS-DAEMON-01")["remedy"]


def test_a_daemon_without_its_socket(tmp_path):
    """The lock tells that there is one."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        Path(tmp_path / SOCKET).unlink()
        finding = only(doctor(tmp_path, "MS-DAEMON-01"), "MS-DAEMON-01")
        assert (finding["result"], f"pid {governor.pid}" in finding["seen"]) == ("FAIL", True)
        assert governor.stop() == 0
