"""What `make test-systemd` is made of, without booting anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systemd.scenarios import NAMES, SCENARIOS
from tools.distros import machine, roots
from tools.systemd import namespaces, wheels
from tools.systemd.__main__ import GUEST, tell

FOUND = {
    "machine": "bookworm",
    "kernel": "6.1",
    "systemd": 252,
    "exposure": 2.9,
    "took_s": 900,
    "complete": True,
    "scenarios": {"stop": {"what": "It stops.", "error": "", "took_s": 3.0, "journal": ""}},
}


def test_a_job_is_told_by_the_kernel_command_line():
    """The machine of `make test-distros` is told nothing; this one which guest to be, and what for."""
    assert machine.Job().kernel_line == machine.KERNEL_LINE
    line = machine.Job(guest=GUEST, arguments="stop,reload").kernel_line
    assert line == machine.KERNEL_LINE + f" memscaler.guest={GUEST} memscaler.arguments=stop,reload"


def test_scenarios():
    """Each says in a sentence what must be true; the reboot is the last, and only what others need is always run."""
    assert all(each.what.endswith(".") for each in SCENARIOS)
    assert [each.name for each in SCENARIOS if each.after] == [NAMES[-1]]
    assert [each.name for each in SCENARIOS if each.needed] == list(NAMES[:2])


def test_summary(capsys):
    """All well; and a failure with what explains it."""
    assert tell(FOUND)
    assert "ok         3.0 s  stop" in capsys.readouterr().out
    failed = {"what": "It stops.", "error": "AssertionError: 7", "took_s": 3.0, "journal": "Stopping memscaler"}
    assert not tell({**FOUND, "scenarios": {"stop": failed}})
    said = capsys.readouterr().out
    assert "FAILED     3.0 s  stop" in said
    assert "AssertionError: 7" in said
    assert "Stopping memscaler" in said


def test_a_machine_that_did_not_come_to_the_end(capsys):
    """What has not been run has not passed."""
    assert not tell({**FOUND, "complete": False})
    assert "before all scenarios had run" in capsys.readouterr().out


def test_names():
    """A wrong name is told before anything is installed."""
    command = [sys.executable, "-m", "tools.systemd", "potato"]
    done = subprocess.run(command, cwd=roots.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no scenario potato; there are install, " in done.stderr


@pytest.mark.parametrize("name", ["aiohttp==", "hatchling", "pip", "structlog=="])
def test_what_pip_finds(name):
    """Requirements, what builds the package, and pip itself; without a network there is nothing else."""
    assert any(each.startswith(name) for each in (*wheels.wanted(), *wheels.LOCK.read_text().splitlines()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_machine_without_an_emulator_reaches_its_end(tmp_path):
    """Whatever keeps it from booting is told, with its console, and nothing of it is left: here its root is none."""
    (tmp_path / "disk.ext4").write_bytes(bytes(4096))
    with pytest.raises(machine.NoResults, match="status"):
        namespaces.boot(tmp_path, machine.Job(limit_s=60))
    assert {path.name for path in tmp_path.iterdir()} == {"disk.ext4", "console.log"}
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not list(namespaces.top().glob(f"memscaler-systemd-{os.getpid()}"))
