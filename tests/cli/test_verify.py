"""`memscaler verify`: intent against what the driver says, with boards whose clocks are changed from outside."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import memscaler
from tests.governor import Governor, connect, eventually, governing, listener, port_of

RIVAL = """
import sys, pynvml
pynvml.nvmlInit()
getattr(pynvml, sys.argv[1])(pynvml.nvmlDeviceGetHandleByIndex(0), *map(int, sys.argv[2:]))
"""


def rival(governor: Governor, *call: str) -> None:
    """`nvidia-smi -lmc` by hand, as the driver sees it."""
    environment = {**os.environ, **governor.driver.environment}
    subprocess.run([sys.executable, "-c", RIVAL, *call], env=environment, check=True, timeout=30)


def verdicts(governor: Governor, *args: str) -> tuple[int, list[str]]:
    """Exit code, and what is found about each GPU."""
    result = memscaler(governor.runtime_dir, "verify", "--json", *args)
    document = json.loads(result.stdout)
    assert document["ok"] is (result.returncode == 0)
    return result.returncode, [gpu["verdict"] for gpu in document["gpus"]]


@contextlib.contextmanager
def parked_governor(folder: Path) -> Iterator[Governor]:
    """Three boards, one for each lever, parked. It looks at them by itself once in an hour."""
    with listener() as server:
        port = f"{port_of(server)}:gpu0,gpu1,gpu2"
        env = {"MEMSCALER_SAMPLE_EVERY": "1h", "MEMSCALER_MIN_DWELL": "0s"}
        with governing(folder, "a40,p40,a100", "--port", port, "--idle-after", "200ms", env=env) as governor:
            governor.server = server
            eventually(lambda: all(board.is_slow for board in governor.driver.boards))
            yield governor
            assert governor.stop() == 0


@pytest.fixture(scope="module")
def governor(tmp_path_factory):
    """For tests that leave everything as it was."""
    with parked_governor(tmp_path_factory.mktemp("governor")) as governor:
        yield governor


@pytest.fixture
def disturbed(tmp_path):
    """For those that do not."""
    with parked_governor(tmp_path) as governor:
        yield governor


def test_all_is_well(governor):
    """Parked GPUs are where their levers put them; awake ones have nothing of ours set; exit code 0."""
    result = memscaler(governor.runtime_dir, "verify")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "gpu0  ok  parked: memory clock 405 MHz (at most 405 MHz)\n"
        "gpu1  ok  parked: performance state P8 (P8 or slower)\n"
        "gpu2  ok  parked: graphics clock 210 MHz (at most 210 MHz)\n"
    )
    with connect(governor.server):
        eventually(lambda: not any(board.is_slow for board in governor.driver.boards))
        result = memscaler(governor.runtime_dir, "verify", "1")
        assert (result.returncode, result.stdout) == (0, "gpu1  ok  awake: nothing of memscaler's is set\n")
        assert memscaler(governor.runtime_dir, "verify", "gpu7").returncode == 2


def test_a_gpu_that_somebody_keeps_slow(governor):
    """It works at its lowest memory clock, and that is nothing of ours."""
    board = governor.driver.boards[0]
    with connect(governor.server):
        eventually(lambda: not board.is_slow)
        rival(governor, "nvmlDeviceSetMemoryLockedClocks", "405", "405")
        board.set_utilization(90)
        eventually(lambda: board.memory_clock_mhz == 405)
        result = memscaler(governor.runtime_dir, "verify", "gpu0")
        assert result.returncode == 1
        assert "awake: it works with its memory clock at 405 MHz, its lowest" in result.stdout
        rival(governor, "nvmlDeviceResetMemoryLockedClocks")
        eventually(lambda: board.memory_clock_mhz > 405)
        assert verdicts(governor, "gpu0") == (0, ["ok"])
        board.set_utilization(0)


def test_nothing_is_governed_after_a_release(governor):
    """Then nothing can have drifted."""
    assert memscaler(governor.runtime_dir, "release").returncode == 0
    result = memscaler(governor.runtime_dir, "verify")
    assert (result.returncode, result.stdout) == (
        0,
        "the driver is let go of: nothing is set, until `memscaler resume`\n",
    )


def test_clocks_changed_from_outside(disturbed):
    """A diff for that GPU alone, by a fresh look: exit code 1, and what to do."""
    assert memscaler(disturbed.runtime_dir, "status").returncode == 0  # a sample of before
    rival(disturbed, "nvmlDeviceSetMemoryLockedClocks", "7251", "7251")
    result = memscaler(disturbed.runtime_dir, "verify")
    assert result.returncode == 1
    first, *rest = result.stdout.splitlines()
    assert first == "gpu0  DRIFT  parked: the memory clock is 7251 MHz, and was set to 405 MHz"
    assert rest[0].startswith("      do: another program sets clocks: ")
    assert [line[:10] for line in rest if line.startswith("gpu")] == ["gpu1  ok  ", "gpu2  ok  "]
    document = json.loads(memscaler(disturbed.runtime_dir, "verify", "--json").stdout)
    assert (document["schema"], document["ok"], document["mode"]) == (1, False, "governing")
    # The governor has heard of it by now, too: it lets go, and leaves that GPU alone for a while.
    assert [gpu["verdict"] for gpu in document["gpus"]] == ["drift", "ok", "ok"]


def test_what_nobody_knows(disturbed):
    """A GPU that does not answer is no pass, nor is one whose note somebody has removed; the others are told as well."""
    first, second, _ = disturbed.driver.boards
    (disturbed.runtime_dir / "journal" / f"{first.uuid}.json").unlink()
    second.lose()
    assert verdicts(disturbed) == (1, ["drift", "unknown", "ok"])
    assert verdicts(disturbed, "gpu2") == (0, ["ok"])
    second.restore()


def test_without_a_daemon(folder):
    """Exit code 3: nobody knows."""
    assert memscaler(folder, "verify").returncode == 3


def test_a_dry_run(tmp_path):
    """Parks on paper only: nothing is set, and clocks that are up are as they are meant to be."""
    with (
        listener() as server,
        governing(
            tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms", "--dry-run"
        ) as governor,
    ):
        eventually(
            lambda: (
                governor.events("gpu.changed_state")[-1:]
                and governor.events("gpu.changed_state")[-1]["state"] == "parked"
            )
        )
        result = memscaler(tmp_path, "verify")
        assert (result.returncode, result.stdout) == (0, "gpu0  ok  parked: nothing of memscaler's is set\n")
        assert governor.stop() == 0
