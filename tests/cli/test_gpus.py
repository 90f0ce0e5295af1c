"""`memscaler gpus` and `restore` on the simulated driver, as real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.core.snapshot import Identity
from memscaler.gpu.journal import Journal
from tests.governor import eventually, governing

BOARDS = "a40,p40,a100"


@pytest.fixture
def memscaler(tmp_path: Path):
    """Run the command with simulated boards and a runtime directory of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}

    def run(*args: str, boards: str = BOARDS) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "memscaler", *args, "--simulate", boards, "--runtime-dir", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)

    return run


def test_the_table_fits_the_screen(memscaler):
    """What each GPU does, which lever it has and what parking would do, in 80 columns."""
    result = memscaler("gpus")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["GPU", "NAME", "POWER", "MEMORY", "GRAPHICS", "STATE", "LEVER"]
    assert "A40" in lines[1]
    assert lines[1].endswith("memory-clock")
    assert lines[2].endswith("pstate")
    assert lines[3].endswith("graphics-clock")
    assert "parking: memory clock 7251 -> 405 MHz" in result.stdout


def test_json(memscaler):
    """Programs get the same, with a version of the format."""
    result = memscaler("gpus", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    a40, p40, a100 = document["gpus"]
    assert (a40["index"], a40["lever"], a40["target"], a40["lock"]) == (0, "memory-clock", 405, None)
    assert (p40["lever"], p40["target"]) == ("pstate", 8)
    assert a100["lever"] == "graphics-clock"
    assert a40["uuid"].startswith("GPU-")
    assert a40["reading"]["power_w"] > 0
    assert {entry["lever"] for entry in p40["refused"]} == {"memory-clock", "graphics-clock"}


def test_a_forced_lever_that_is_not_there(memscaler, tmp_path):
    """A lever that the configuration forces and the GPU lacks is shown as none, with the reason."""
    file = tmp_path / "config.toml"
    file.write_text('[gpu.gpu1]\nlever = "memory-clock"\n')
    document = json.loads(memscaler("gpus", "--json", "--config", str(file)).stdout)
    assert [gpu["lever"] for gpu in document["gpus"]] == ["memory-clock", None, "graphics-clock"]
    assert document["gpus"][1]["parking"] == "nothing"


def test_what_is_parked_is_shown_and_restored(memscaler, tmp_path):
    """A journalled lever shows in gpus; restore undoes it and forgets it; a second restore has nothing to do."""
    uuid = json.loads(memscaler("gpus", "--json").stdout)["gpus"][0]["uuid"]
    Journal(tmp_path / "journal").record(Identity(0, uuid, "", ""), "memory-clock", 405)
    assert "parked by memscaler: memory-clock at 405" in memscaler("gpus").stdout
    result = memscaler("restore")
    assert result.returncode == 0
    assert result.stdout.endswith("memory-clock restored\n")
    assert memscaler("restore").stdout == "nothing to restore\n"
    document = json.loads(memscaler("restore", "--all", "--json").stdout)
    assert document["ok"]
    assert [gpu["result"] for gpu in document["gpus"]] == ["restored"] * 3


def test_other_boards_than_those_of_a_running_governor(tmp_path):
    """They are refused: making them would take the governor's own away, and who dies then leaves them parked."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        governing(
            tmp_path, "a40,p40", "--port", f"{server.getsockname()[1]}:gpu1", "--idle-after", "100ms"
        ) as governor,
    ):
        board = governor.driver.boards[1]
        eventually(lambda: board.locks)
        for command in (["gpus"], ["ports"]):
            where = ["--simulate", "a40", "--runtime-dir", str(tmp_path)]
            result = subprocess.run(
                [sys.executable, "-m", "memscaler", *command, *where], capture_output=True, text=True, check=False
            )
            assert result.returncode == 2, result
            assert "--simulate a40,p40" in result.stderr
        governor.process.kill()
        eventually(lambda: not board.locks)


def test_an_unknown_board(memscaler):
    """A board that there is not is a usage error that lists those that there are."""
    result = memscaler("gpus", boards="voodoo2")
    assert result.returncode == 2
    assert "a40" in result.stderr.lower()
    assert "Traceback" not in result.stderr


def test_run_does_not_import_from_where_it_is_started(tmp_path):
    """The governor's modules come from its installation, whatever lies about in the current folder."""
    (tmp_path / "aiohttp.py").write_text("raise SystemExit('decoy')")
    command = [sys.executable, "-m", "memscaler", "run", "--port", "8080:gpu7", "--simulate", "a40", "--metrics", "off"]
    result = subprocess.run(
        [*command, "--runtime-dir", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=60,
    )
    assert "decoy" not in result.stderr
    assert "'gpu7' is no GPU of this machine" in result.stderr
    assert "hint: known: gpu0 00000000:" in result.stderr
    assert result.returncode == 2
