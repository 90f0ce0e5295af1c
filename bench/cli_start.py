"""What a small command costs: the start of the command line, against the start of the same python that does nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.figures import Figure

RATIO = 10.0
NOT_RUNNING = 3
MEMSCALER = str(Path(sys.executable).parent / "memscaler")  # as pip has installed it beside its python


def bench(*, quick: bool) -> list[Figure]:
    """Medians of starts taken in turns, all with compiled modules, as an installation has them."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("MEMSCALER_", "PYTHON"))}
        environ["PYTHONPYCACHEPREFIX"] = folder
        commands = {
            "python -c pass": ([sys.executable, "-c", "pass"], 0),
            "memscaler --version": ([MEMSCALER, "--version"], 0),
            "memscaler --help": ([MEMSCALER, "--help"], 0),
            "memscaler status --help": ([MEMSCALER, "status", "--help"], 0),
            "memscaler status, without a daemon": ([MEMSCALER, "status", "--runtime-dir", folder], NOT_RUNNING),
            "of it, python -c 'import typer'": ([sys.executable, "-c", "import typer"], 0),
        }
        for command, status in commands.values():  # compiles
            start_ms(command, status, environ)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(11 if quick else 51):
            for name, (command, status) in commands.items():
                taken[name].append(start_ms(command, status, environ))
    floor, *others = ((name, statistics.median(each)) for name, each in taken.items())
    return [Figure(*floor, "ms"), *(figure(name, ms, floor[1]) for name, ms in others)]


def start_ms(command: Sequence[str], status: int, environ: Mapping[str, str]) -> float:
    """One start, from fork to the end."""
    began = time.perf_counter()
    ended = subprocess.run(command, env=environ, capture_output=True, check=False)
    took_ms = (time.perf_counter() - began) * 1000
    assert ended.returncode == status, ended
    return took_ms


def figure(name: str, ms: float, floor_ms: float) -> Figure:
    """The library that parses the command line promises nothing; the commands do."""
    limit = RATIO * floor_ms if name.startswith("memscaler") else None
    return Figure(name, ms, "ms", limit, baseline=floor_ms)
