"""`memscaler calibrate` as a process, and moments in its life."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memscaler.daemon.lock import refuse_beside_daemon
from memscaler.gpu.journal import Journal
from memscaler.simulator import SimulatedBoard, SimulatedDriver
from tests.doctor.bench import clean_environment, command, memscaler
from tests.governor import eventually

SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
QUICK = {"MEMSCALER_SETTLE_TIMEOUT": "300ms"}
SHORT = ("--rounds", "1", "--hold", "1s")


@dataclass(frozen=True)
class Told:
    """What it printed and how it ended."""

    code: int
    document: dict[str, Any]
    errors: str

    def gpu(self, name: str = "gpu0") -> dict[str, Any]:
        return next(gpu for gpu in self.document["gpus"] if gpu["gpu"] == name)


def calibrate(runtime_dir: Path, names: str, *arguments: str, env: Mapping[str, str] | None = None) -> Told:
    """With --json; the exit code has to go with it."""
    where = ("--simulate", names, "--runtime-dir", str(runtime_dir))
    result = memscaler("calibrate", "--json", *arguments, *where, env=env)
    document = json.loads(result.stdout) if result.stdout else {}
    assert not document or (result.returncode == 0) == document["ok"], result.stderr
    return Told(result.returncode, document, result.stderr)


@contextmanager
def calibrating(
    runtime_dir: Path, *arguments: str, names: str = "a40", env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """One that goes on until something ends it: it stays parked for a minute."""
    words = ("calibrate", "gpu0", "--hold", "60s", *arguments, "--simulate", names, "--runtime-dir", str(runtime_dir))
    running = subprocess.Popen(
        command(*words),
        env=clean_environment(**(env or {})),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


@contextmanager
def parked_by_it(
    runtime_dir: Path, driver: SimulatedDriver, *, names: str = "a40", env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """At the moment when the first board is parked, its clocks down, for ten seconds."""
    with calibrating(runtime_dir, "--hold", "10s", names=names, env=env) as running:
        eventually(lambda: driver.boards[0].parked or running.poll() is not None, within_s=60)
        assert running.poll() is None, running.communicate()
        yield running


def words_of(running: subprocess.Popen[str]) -> tuple[int, str]:
    """How it ended, and what it printed, each white space a blank."""
    out, errors = running.communicate(timeout=60)
    return running.returncode, " ".join(f"{out} {errors}".split())


def is_clean(runtime_dir: Path, board: SimulatedBoard) -> bool:
    """Awake, no lock in force, nothing in the journal, and a daemon may start."""
    refuse_beside_daemon(runtime_dir)
    return not board.parked and not board.locks and Journal(runtime_dir / "journal").entries() == ()
