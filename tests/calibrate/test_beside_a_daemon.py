"""A daemon's GPUs are its own until it has let go of them; what was measured it uses from its next start or reload on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from memscaler.core.calibration import Calibration, Spread
from memscaler.core.snapshot import Identity
from memscaler.daemon import lock
from memscaler.gpu.journal import Journal
from memscaler.history.calibration import load, save
from tests.calibrate.bench import SHORT, calibrate, calibrating, parked_by_it, words_of
from tests.doctor.bench import memscaler
from tests.governor import connect, eventually, governing, listener, port_of

RECORD = """
from memscaler.core.snapshot import Identity
from memscaler.gpu.journal import Journal
Journal({folder!r}).record({identity!r}, "memory-clock", 405)
"""


def daemon_says(runtime_dir):
    result = memscaler("status", "--json", "--runtime-dir", str(runtime_dir))
    return json.loads(result.stdout) if result.returncode == 0 else {"mode": "", "gpus": []}


def parked(runtime_dir):
    gpus = daemon_says(runtime_dir)["gpus"]
    return gpus[0] if gpus and gpus[0]["state"] == "parked" else None


def test_refused_while_it_governs(tmp_path):
    """With what to type instead."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        told = calibrate(tmp_path, "a40", "gpu0", *SHORT)
        assert (told.code, f"memscaler runs already (pid {governor.pid})" in told.errors) == (1, True)
        assert "memscaler release && memscaler calibrate ...; memscaler resume" in told.errors
        assert governor.stop() == 0


def test_while_it_has_let_go(tmp_path):
    """Then it is measured, and after the resume a park without a reading of its own has a baseline."""
    with listener() as server:
        arguments = ("--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms")
        with governing(tmp_path, "a40", *arguments) as governor:
            first = eventually(lambda: parked(tmp_path))
            assert (first["baseline_w"], first["baseline_source"]) == (None, "")
            where = ("--runtime-dir", str(tmp_path))
            assert memscaler("release", *where).returncode == 0
            assert calibrate(tmp_path, "a40", "gpu0", *SHORT).code == 0
            assert memscaler("resume", *where).returncode == 0
            later = eventually(lambda: parked(tmp_path), within_s=30)
            assert (round(later["baseline_w"]), later["baseline_source"]) == (80, "calibrated")
            text = memscaler("status", *where).stdout
            assert "saving: counted from 80.0 W, as calibrated" in text
            assert governor.stop() == 0


def test_a_resume_is_refused_meanwhile(tmp_path):
    """Until calibrate has ended, also by kill -9: what it measures must not be parked by the daemon."""
    arguments = ("--idle-after", "200ms")
    with listener() as server, listener() as second:
        ports = ("--port", f"{port_of(server)}:gpu0", "--port", f"{port_of(second)}:gpu1")
        with governing(tmp_path, "a40,a40", *ports, *arguments) as governor:
            where = ("--runtime-dir", str(tmp_path))
            assert memscaler("release", *where).returncode == 0
            with parked_by_it(tmp_path, governor.driver, names="a40,a40") as running:
                refused = memscaler("resume", *where)
                assert (refused.returncode, f"GPUs are being calibrated (pid {running.pid})" in refused.stderr) == (
                    1,
                    True,
                )
                assert "try again when it has ended" in refused.stderr
                assert daemon_says(tmp_path)["mode"] == "released"
                assert governor.driver.boards[0].parked
                assert not governor.driver.boards[1].parked
                running.kill()
                eventually(lambda: memscaler("resume", *where).returncode == 0, within_s=30)
            eventually(lambda: len(Journal(tmp_path / "journal").entries()) == 2, within_s=30)
            assert {entry.pid for entry in Journal(tmp_path / "journal").entries()} == {governor.pid}
            assert governor.stop() == 0


def test_a_daemon_does_not_begin_meanwhile(tmp_path):
    """Neither where calibrate has the daemon's lock, too, nor where that is free again."""
    with listener() as server:
        words = ("run", "--port", f"{port_of(server)}:gpu0", "--simulate", "a40", "--runtime-dir", str(tmp_path))
        lock.prepare_runtime_dir(tmp_path)
        held = lock.acquire_calibration(tmp_path)
        for also in ("calibrate alone", "beside a daemon that is gone"):
            mine = lock.acquire(tmp_path) if also == "calibrate alone" else -1
            refused = memscaler(*words)
            assert (refused.returncode, f"GPUs are being calibrated (pid {os.getpid()})" in refused.stderr) == (1, True)
            if mine >= 0:
                os.close(mine)
        os.close(held)


def test_two_at_once(runtime_dir, boards):
    """The second names the first."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
        assert (told.code, f"GPUs are being calibrated (pid {running.pid})" in told.errors) == (1, True)


def test_another_memscaler_parks_it_meanwhile(runtime_dir, boards):
    """Of whatever directory it reads: nothing of that round is kept, and its park stays."""
    driver = boards("a40")
    with calibrating(runtime_dir, "--hold", "2s", "--rounds", "1") as running:
        board = driver.boards[0]
        eventually(lambda: board.parked, within_s=60)
        eventually(lambda: not board.parked, within_s=60)
        identity = Identity(0, board.uuid, board.pci_bus_id, "A40")
        other = subprocess.run(
            [sys.executable, "-c", RECORD.format(folder=str(runtime_dir / "journal"), identity=identity)], check=False
        )
        code, words = words_of(running)
        assert (other.returncode, code, "another memscaler has parked it" in words) == (0, 1, True), words
    assert load(runtime_dir) == {}
    assert [entry.uuid for entry in Journal(runtime_dir / "journal").entries()] == [board.uuid]


def test_a_reload_reads_it(tmp_path):
    """SIGHUP: the next park goes by what is in the file now."""
    with listener() as server:
        arguments = ("--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms")
        with governing(tmp_path, "a40", *arguments) as governor:
            first = eventually(lambda: parked(tmp_path))
            known = Calibration(first["uuid"], "A40", time.time(), "0", "1", awake_w=Spread(70.0, 70.0, 70.0))
            save(tmp_path, [replace(known, rounds=1)])
            assert load(tmp_path)[first["uuid"]].awake_w == Spread(70.0, 70.0, 70.0)
            governor.process.send_signal(signal.SIGHUP)
            eventually(lambda: governor.events("config.reloaded"))
            assert governor.events("calibration.of_another_driver")[0]["driver"] == "1"
            with connect(server), server.accept()[0]:
                eventually(lambda: not governor.driver.boards[0].locks)
            later = eventually(lambda: parked(tmp_path))
            assert (later["baseline_w"], later["baseline_source"]) == (70.0, "calibrated")
            assert governor.stop() == 0
