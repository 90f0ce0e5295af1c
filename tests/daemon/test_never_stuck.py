"""However memscaler ends, nothing stays parked: killed at random moments, with its guardian, in a hung driver."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.simulator import SimulatedDriver
from tests.governor import REPOSITORY, Governor, alive, connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
AWAKE_WITHIN_S = 0.2  # the promise
SLACK_S = 1.0  # what a test allows on a shared machine; the worst is printed
KILLS = int(os.environ.get("MEMSCALER_SOAK_KILLS", "12"))


def kill_at_random(tmp_path: Path, rounds: int) -> list[float]:
    """Kill -9 while two GPUs park and wake; seconds until both were awake, each time."""
    took_s = []
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "100ms"]
        for _ in range(rounds):
            with governing(tmp_path, "a40,p40", *arguments) as governor:
                boards = governor.driver.boards
                end = time.monotonic() + random.uniform(0.1, 1.0)
                while time.monotonic() < end:
                    connect(server).close()
                    server.accept()[0].close()
                    time.sleep(random.uniform(0, 0.25))
                governor.process.kill()
                killed = time.monotonic()
                governor.process.wait()
                eventually(lambda: not any(board.locks for board in boards), within_s=SLACK_S, what="restore")
                took_s.append(time.monotonic() - killed)
                time.sleep(0.05)
                assert not any(board.locks for board in boards), "parked again after the restore"
    return took_s


def test_kill_9_at_random_moments(tmp_path):
    """The guardian wakes every GPU, whenever the daemon is killed."""
    took_s = sorted(kill_at_random(tmp_path, KILLS))
    print(
        f"{KILLS} kills: awake after median {took_s[len(took_s) // 2] * 1e3:.0f} ms, at most {took_s[-1] * 1e3:.0f} ms"
    )


def test_guardian_killed_is_replaced_and_nothing_parks_meanwhile(tmp_path):
    """Without a guardian the GPUs are held awake; with a new one they park again."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms") as governor,
    ):
        board = governor.driver.boards[0]
        for _ in range(3):
            eventually(lambda: board.locks)
            first = governor.guardian_pid
            os.kill(first, signal.SIGKILL)
            eventually(lambda: not board.locks, within_s=1)
            eventually(lambda: governor.guardian_pid != first)
            time.sleep(1.1)  # it is not started more often than once a second
        eventually(lambda: board.locks)
        governor.process.kill()
        eventually(lambda: not board.locks, within_s=SLACK_S)
        acted = eventually(lambda: governor.events("guardian.acted"))  # in the log's own form
        assert "the daemon died" in acted[0]["what"]
        assert "restored" in acted[0]["what"]


def test_daemon_and_guardian_killed_together_leave_a_journal_for_restore(tmp_path):
    """If both die at once, `memscaler restore` (ExecStopPost) and the next start wake the GPU."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms"]
        for by_hand in (True, False):
            with governing(tmp_path, "a40", *arguments) as governor:
                board = governor.driver.boards[0]
                eventually(lambda: board.locks)
                for pid in (governor.guardian_pid, governor.pid):
                    os.kill(pid, signal.SIGSTOP)
                for pid in (governor.guardian_pid, governor.pid):
                    os.kill(pid, signal.SIGKILL)
                governor.process.wait()
                time.sleep(0.3)
                assert board.locks, "then who woke it?"
                if by_hand:
                    restored = memscaler("restore", "--simulate", "a40", "--runtime-dir", str(tmp_path))
                    assert restored.returncode == 0, restored.stderr
                else:
                    with governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as again:
                        eventually(lambda: again.events("gpu.woken"))
                        assert again.stop() == 0
                assert not board.locks
                assert not list((tmp_path / "journal").glob("GPU-*"))


def test_a_restore_that_waits_wakes_when_both_are_killed(tmp_path):
    """`restore --wait` sleeps beside a daemon; whatever kills that and its guardian, the GPU is awake at once."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        command = [sys.executable, "-m", "memscaler", "restore", "--wait", "--simulate", "a40", "--runtime-dir"]
        with subprocess.Popen([*command, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as waiting:
            eventually(lambda: re.search(rf"-> FLOCK .*READ +{waiting.pid} ", Path("/proc/locks").read_text()))
            assert board.locks, "it waits"
            for pid in (governor.guardian_pid, governor.pid):
                os.kill(pid, signal.SIGSTOP)
            for pid in (governor.guardian_pid, governor.pid):
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: not board.locks, within_s=SLACK_S, what="restore")
            assert waiting.wait(10) == 0
            assert "restored" in waiting.stdout.read()


def test_loader_killed_is_one_line_and_leaves_nothing(tmp_path):
    """A loader that dies ends the start with one line, a hint and a status; no process is left."""
    governor = Governor(tmp_path, "a40", "--port", "1:gpu0")
    loader = eventually(lambda: child(governor.pid, "loader.py"))
    os.kill(loader, signal.SIGKILL)
    assert governor.process.wait(30) == 69
    log = governor.log_path.read_text()
    assert "loader" in log
    assert "Traceback" not in log
    assert not governor.driver.boards[0].locks


def test_hung_driver_on_one_gpu_touches_no_other(tmp_path):
    """A driver call that never returns wedges its GPU only: the other one goes on, and the end is in time."""
    with (
        listener() as server,
        governing(tmp_path, "a40,a40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms") as governor,
    ):
        sick, well = governor.driver.boards
        eventually(lambda: sick.locks and well.locks)
        sick.inject(RESET, hang=True)
        connect(server).close()
        server.accept()[0].close()
        eventually(lambda: not well.locks, within_s=1)
        eventually(lambda: [event for event in governor.events("gpu.alarmed") if event["gpu"] == "gpu0"], within_s=10)
        eventually(lambda: well.locks)
        started = time.monotonic()
        governor.process.send_signal(signal.SIGTERM)
        governor.process.wait(10)
        assert time.monotonic() - started < 3
        assert not well.locks
        assert governor.process.returncode == 1
        sick.clear_faults()  # the driver comes back to its senses: the guardian is still trying
        eventually(lambda: not sick.locks, within_s=40)


def test_wake_without_effect_is_retried_for_ever_and_never_parked_again(tmp_path):
    """The driver says success and does nothing: alarm, wake again until it works, and leave that GPU alone."""
    config = tmp_path / "config.toml"
    config.write_text('settle_timeout = "300ms"\n')
    with (
        listener() as server,
        governing(
            tmp_path / "run",
            "a40",
            "--port",
            f"{port_of(server)}:gpu0",
            "--idle-after",
            "200ms",
            "--config",
            str(config),
        ) as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.memory_clock_mhz == 405)
        board.inject(RESET, ignore=True)
        connect(server).close()
        server.accept()[0].close()
        eventually(lambda: len(governor.driver.call_log([RESET])) >= 4)
        assert governor.events("gpu.alarmed")
        board.clear_faults()
        eventually(lambda: not board.locks)
        time.sleep(1)
        assert not board.locks
        assert "unmanaged" in str(governor.events("gpu.changed_state")[-1])


def test_stop_whose_wake_has_no_effect(tmp_path):
    """It is not told as a good end: exit status 1, an entry in the journal, and restore does not believe it either."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms") as governor,
    ):
        board = governor.driver.boards[0]
        board.add_process(os.getpid())  # a context: its clocks are to be up
        eventually(lambda: board.memory_clock_mhz == 405)
        board.inject(RESET, ignore=True)
        assert governor.stop() == 1
        assert governor.events("gpu.left_parked")
        assert not governor.events("memscaler.stopped")[-1]["every_gpu_awake"]
        board.clear_faults()
        if board.locks:  # else the guardian, which goes on trying, was faster
            eventually(lambda: not board.locks, within_s=5)
        restored = memscaler("restore", "--simulate", "a40", "--runtime-dir", str(tmp_path))
        assert restored.returncode == 0, restored.stderr
        assert not board.locks
        assert not list((tmp_path / "journal").glob("GPU-*"))


def test_park_without_effect_is_undone(tmp_path):
    """A lock that is accepted but ignored is reset, and the GPU is left at full speed with the reason."""
    config = tmp_path / "config.toml"
    config.write_text('settle_timeout = "300ms"\nlever = "memory-clock"\n')
    with listener() as server, governing(tmp_path / "run", "a40", "--port", "1:gpu0") as prepared:
        prepared.driver.boards[0].inject(SET, ignore=True)
        prepared.stop()
        with governing(
            tmp_path / "run",
            "a40",
            "--port",
            f"{port_of(server)}:gpu0",
            "--idle-after",
            "200ms",
            "--config",
            str(config),
        ) as governor:
            eventually(lambda: "unmanaged" in str(governor.events("gpu.changed_state")))
            assert governor.driver.call_log([RESET])
            assert "nothing moved" in str(governor.events("gpu.alarmed"))


def test_lost_gpu_drops_that_gpu_only(tmp_path):
    """One GPU falls off the bus while parked; the other parks and wakes as before."""
    with (
        listener() as server,
        governing(tmp_path, "a40,a40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms") as governor,
    ):
        lost, well = governor.driver.boards
        eventually(lambda: lost.locks and well.locks)
        lost.lose()
        connect(server).close()
        server.accept()[0].close()
        eventually(lambda: not well.locks, within_s=1)
        eventually(lambda: well.locks)
        eventually(lambda: "unmanaged" in str(governor.events("gpu.changed_state")))
        told = Client(str(tmp_path)).status()["gpus"][0]
        assert "fallen off the bus" in told["remedy"]
        assert told["state"] == "unmanaged"
        lost.restore()
        eventually(lambda: not lost.locks)


def test_left_behind_and_not_undone_at_once(tmp_path):
    """A GPU that an earlier run left parked is woken for as long as it takes, and a stop before that says so."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms"]
        with governing(tmp_path, "a40", *arguments) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            for pid in (governor.guardian_pid, governor.pid):
                os.kill(pid, signal.SIGKILL)
            governor.process.wait()
        board.inject(RESET, code=999)
        client = connect(server)
        with governing(tmp_path, "a40", *arguments) as again:
            mark = again.driver.log_mark()
            eventually(lambda: len(again.driver.call_log([RESET], after=mark)) > 2)
            assert again.events("gpu.alarmed")
            assert board.locks
            assert again.stop() == 1
        with governing(tmp_path, "a40", *arguments) as again:
            eventually(lambda: again.events("gpu.alarmed"))
            board.clear_faults()
            eventually(lambda: not board.locks)
        client.close()
        server.accept()[0].close()


def test_restore_beside_a_daemon_is_refused(tmp_path):
    """While a daemon governs, `restore` names it instead of waking GPUs behind its back."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        refused = memscaler("restore", "--simulate", "a40", "--runtime-dir", str(tmp_path))
        assert refused.returncode == 1
        assert f"pid {governor.pid}" in refused.stderr


def test_restore_without_the_right_to_look(tmp_path):
    """Not being allowed to read the journal is not the same as an empty one."""
    (tmp_path / "journal").mkdir(mode=0o700)
    code = "import os, sys; os.setuid(65534); from memscaler.gpu.journal import Journal; Journal(sys.argv[1]).entries()"
    code = "import memscaler.gpu.journal; " + code
    command = [sys.executable, "-c", code, str(tmp_path / "journal")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert "PermissionMissing: cannot read" in done.stderr


def test_work_without_connections_wakes_the_gpu(tmp_path):
    """A parked GPU that works for somebody unseen is woken at the next sample."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        with governing(tmp_path, "a40", *arguments, env={"MEMSCALER_SAMPLE_EVERY": "1s"}) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            board.set_utilization(100)
            eventually(lambda: not board.locks, within_s=5)
            time.sleep(0.6)
            assert not board.locks


def test_lost_gpu_at_the_start_leaves_the_others_governed(tmp_path):
    """One of two GPUs is off the bus at the start: it is left out with an error, and the other one parks."""
    with listener() as server:
        ports = ["--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms"]
        with governing(tmp_path, "a40,a40", *ports) as before:
            before.driver.boards[1].lose()
            before.stop()
        with governing(tmp_path, "a40,a40", *ports) as governor:
            assert governor.events("gpu.left_out")
            eventually(lambda: governor.driver.boards[0].locks)


def test_metrics_port_in_use_does_not_keep_gpus_from_being_governed(tmp_path):
    """Somebody else has the port: an error in the log, no metrics, and a GPU that parks."""
    with listener() as taken, listener() as server:
        ports = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        with governing(tmp_path, "a40", *ports, "--metrics", f"127.0.0.1:{port_of(taken)}") as governor:
            assert governor.events("metrics.failed")
            eventually(lambda: governor.driver.boards[0].locks)


def test_flood_of_idle_connections_to_the_metrics(tmp_path):
    """A hundred connections that say nothing cost the governor no descriptors; it parks and wakes."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms", "--metrics", "127.0.0.1:0"]
        with governing(tmp_path, "a40", *arguments) as governor:
            host, port = governor.events("metrics.served")[0]["address"].split(":")
            flood = [socket.create_connection((host, int(port)), timeout=5) for _ in range(100)]
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            assert len(list(Path(f"/proc/{governor.pid}/fd").iterdir())) < 100
            with connect(server):
                eventually(lambda: not board.locks, within_s=2)
            server.accept()[0].close()
            for client in flood:
                client.close()
            eventually(lambda: "memscaler_up 1" in governor.metrics())


def test_stopped_by_the_terminal_goes_on(tmp_path):
    """Ctrl-Z does nothing: a stopped governor could not wake anything."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        governor.process.send_signal(signal.SIGTSTP)
        with connect(server):
            eventually(lambda: not board.locks, within_s=2)
        server.accept()[0].close()


def test_modules_in_the_current_folder_are_not_imported(tmp_path):
    """Started from a folder with files named like modules, neither daemon nor guardian runs them."""
    for name in ("pynvml", "select", "json", "memscaler"):
        (tmp_path / f"{name}.py").write_text("import os; os.write(2, b'IMPORTED'); os._exit(9)")
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        with governing(tmp_path / "run", "a40", *arguments, cwd=tmp_path, run_file=True) as governor:
            eventually(lambda: governor.driver.boards[0].locks)
            governor.process.kill()
            eventually(lambda: not governor.driver.boards[0].locks, within_s=2)
            assert "IMPORTED" not in governor.log_path.read_text()


def test_closed_standard_streams(tmp_path):
    """Started with every standard stream closed, it governs all the same, and nothing else gets what it says."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        closed = ("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh")
        governor = Governor(tmp_path, "a40", *arguments, prefix=closed)
        try:
            eventually((tmp_path / "simulator" / "state").exists)
            eventually(lambda: governor.driver.boards[0].locks)
            assert governor.stop() == 0
            assert not governor.driver.boards[0].locks
        finally:
            governor.process.kill()


def memscaler(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memscaler", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def child(pid: int, word: str) -> int | None:
    """A child process of `pid` with this word in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == pid and word in (entry / "cmdline").read_text():
                return int(entry.name)
    return None


def test_a_mistake_in_telling_does_not_end_governing(tmp_path):
    """Accounts and log are bookkeeping: what goes wrong in them is logged, and GPUs park and wake as before."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys\n"
        "from memscaler.cli import govern\n"
        "from memscaler.core import energy\n"
        "energy.observe_state = None\n"
        "govern.main()\n"
    )
    with listener() as server:
        told = {"watch": [f"{port_of(server)}:gpu0"], "idle_after": "200ms", "simulate": "a40", "metrics": "off"}
        told |= {"runtime_dir": str(tmp_path / "run"), "log_format": "json"}
        command = [sys.executable, str(broken), json.dumps({"flags": told, "config": None})]
        (tmp_path / "run").mkdir()
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        try:
            state = tmp_path / "run" / "simulator" / "state"
            eventually(state.exists)
            board = SimulatedDriver.attach(state).boards[0]
            eventually(lambda: board.locks)
            with connect(server):
                eventually(lambda: not board.locks, within_s=2)
            server.accept()[0].close()
            eventually(lambda: board.locks)
            process.terminate()
            assert process.wait(10) == 0
            assert not board.locks
            assert "telling.failed" in (tmp_path / "log").read_text()
        finally:
            process.kill()
