"""A daemon's GPUs are its own until it has let go of them; what was measured it uses from its next start or reload on."""

import json
import signal
import time
from dataclasses import replace

from memscaler.core.calibration import Calibration, Spread
from memscaler.history.calibration import load, save
from tests.calibrate.bench import SHORT, calibrate, parked_by_it, words_of
from tests.doctor.bench import memscaler
from tests.governor import connect, eventually, governing, listener, port_of


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


def test_it_is_resumed_meanwhile(tmp_path):
    """The daemon wakes what it finds parked; calibrate notices, and leaves the GPU to it."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        where = ("--runtime-dir", str(tmp_path))
        assert memscaler("release", *where).returncode == 0
        with parked_by_it(tmp_path, governor.driver) as running:
            assert memscaler("resume", *where).returncode == 0
            eventually(lambda: not governor.driver.boards[0].locks, within_s=30)
            code, _ = words_of(running)
            assert code == 1
        eventually(lambda: daemon_says(tmp_path)["mode"] == "governing", within_s=30)
        assert not governor.driver.boards[0].locks
        assert governor.stop() == 0


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
