"""The command: what it asks for, what it prints, what it writes."""

import json
import os
import pty
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.cli.calibrate.text import text
from memscaler.core.calibration import Calibration, Spread
from memscaler.core.snapshot import Identity
from memscaler.daemon.calibrate.measure import Result
from memscaler.history.calibration import FILE, load
from tests.calibrate.bench import RESET, SET, SHORT, calibrate
from tests.doctor.bench import clean_environment, command, memscaler
from tests.governor import connect, listener, port_of

WHO = Identity(0, "GPU-1", "00000000:3B:00.0", "A40")
KEYS = Path(__file__).with_name("calibrate.keys")


def keys(value, path=""):
    """Every key on the way to a value that has none."""
    if isinstance(value, dict):
        return sorted(key for name, each in value.items() for key in keys(each, f"{path}.{name}" if path else name))
    if isinstance(value, list):
        return sorted({key for each in value for key in keys(each, f"{path}[]")})
    return [path]


def test_json(runtime_dir, boards):
    """Programs rely on every key; one that is added is added to the list, too."""
    driver = boards("a40", "p40")
    told = calibrate(runtime_dir, "a40,p40", "--all", *SHORT)
    assert told.code == 0, told
    for gpu in told.document["gpus"]:  # those that may be null
        assert gpu["calibration"].pop("bare_w") is None
        assert gpu["calibration"].pop("bare_unix_s") is None
    assert keys(told.document) == KEYS.read_text().splitlines()
    assert (told.document["schema"], told.document["file"]) == (1, str(runtime_dir / FILE))
    assert [gpu["calibration"]["lever"] for gpu in told.document["gpus"]] == ["memory-clock", "pstate"]
    assert sorted(load(runtime_dir)) == sorted(board.uuid for board in driver.boards)
    first = told.gpu()["calibration"]
    assert first["driver_version"] == "580.95.05"
    assert first["spared_w"] == pytest.approx(62, rel=0.02)


def test_text_and_plots(runtime_dir, boards):
    """A table of 80 columns, and what it means; a plot for each GPU, in both formats."""
    boards("a40", "p40")
    where = ("--simulate", "a40,p40", "--runtime-dir", str(runtime_dir))
    result = memscaler("calibrate", "gpu0", "gpu1", *SHORT, "--plot", str(runtime_dir / "round.svg"), *where)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "gpu0  NVIDIA A40, memory-clock at 405 MHz, 1 round"
    words = " ".join(result.stdout.split())
    assert "Parking spares 62 W. Its break-even in energy is a silence of" in words
    assert "no watched port is known: clients were not looked for" in words
    assert "A wake costs the first answer about" in words
    assert {path.name for path in runtime_dir.glob("*.svg")} == {"round-gpu0.svg", "round-gpu1.svg"}
    assert "power settled" in (runtime_dir / "round-gpu0.svg").read_text()
    result = memscaler("calibrate", "gpu0", *SHORT, "--plot", str(runtime_dir / "round.png"), *where)
    assert (runtime_dir / "round.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "name the GPUs, or --all"),
        (("gpu0", "--all"), 2, "either GPUs or --all"),
        (("gpu7",), 2, "'gpu7' is no GPU of this machine"),
        (("gpu0", "--rounds", "0"), 2, "--rounds"),
        (("gpu0", "--hold", "100ms"), 2, "--hold: '100ms' is out of range"),
        (("gpu0", "--plot", "round.pdf"), 2, "a plot is one of .svg, .png"),
        (("--all", "--config", "/nowhere.toml"), 78, "/nowhere.toml"),
    ],
)
def test_usage(runtime_dir, boards, arguments, code, said):
    """Said before anything is touched."""
    driver = boards("a40")
    result = memscaler("calibrate", *arguments, "--simulate", "a40", "--runtime-dir", str(runtime_dir))
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr
    assert driver.call_log([SET, RESET]) == []


def test_as_nobody(runtime_dir):
    """It needs root, and says so."""
    result = memscaler("calibrate", "gpu0", "--runtime-dir", str(runtime_dir), nobody=True)
    assert (result.returncode, "parking GPUs needs root" in result.stderr) == (4, True)


def test_no_gpu_answers(runtime_dir, boards):
    """69, as of every command."""
    boards("a40").boards[0].lose()
    result = memscaler("calibrate", "--all", "--simulate", "a40", "--runtime-dir", str(runtime_dir))
    assert (result.returncode, "there is no GPU that answers" in result.stderr) == (69, True)


def test_one_of_two(runtime_dir, boards):
    """What is known of one is told and written, whatever becomes of the other."""
    driver = boards("a40", "vgpu")
    told = calibrate(runtime_dir, "a40,vgpu", "--all", *SHORT)
    assert (told.code, told.gpu()["ok"], told.gpu("gpu1")["ok"]) == (1, True, False)
    assert "vGPU guest" in told.gpu("gpu1")["problem"]
    assert list(load(runtime_dir)) == [driver.boards[0].uuid]


def test_only_what_is_governed_of_all(runtime_dir, boards):
    """--all leaves alone what no watch names; who names it wants it."""
    boards("a40", "a40")
    env = {"MEMSCALER_WATCH": "1:gpu1"}
    told = calibrate(runtime_dir, "a40,a40", "--all", *SHORT, env=env)
    assert (told.code, [gpu["gpu"] for gpu in told.document["gpus"]]) == (0, ["gpu1"])
    assert calibrate(runtime_dir, "a40,a40", "gpu0", *SHORT, env=env).code == 0


def test_it_cannot_be_written(runtime_dir, boards):
    """The figures are told all the same."""
    driver = boards("a40")
    (runtime_dir / "file").write_text("")
    told = calibrate(
        runtime_dir, "a40", "gpu0", *SHORT, env={"MEMSCALER_STATE_DIR": str(runtime_dir / "file" / "state")}
    )
    assert (told.code, "the figures cannot be written to" in told.gpu()["problem"]) == (1, True)
    assert told.gpu()["calibration"]["awake_w"]["median"] == pytest.approx(80, rel=0.02)
    assert not driver.boards[0].locks


def test_a_driver_that_answers_slowly(runtime_dir, boards):
    """Times are that much less exact, and it is said."""
    boards("a40", read_latency_ms=30)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT).gpu()["calibration"]
    assert told["resolution_s"] >= 0.03


def test_a_file_that_is_damaged(runtime_dir, boards):
    """It is replaced."""
    driver = boards("a40")
    (runtime_dir / FILE).write_text('{"format": 1, "gpus": {"GPU-')
    assert calibrate(runtime_dir, "a40", "gpu0", *SHORT).code == 0
    assert list(json.loads((runtime_dir / FILE).read_text())["gpus"]) == [driver.boards[0].uuid]


def test_on_a_terminal_each_round_is_a_line(runtime_dir, boards):
    """Nine seconds without a word look like a hang."""
    boards("a40")
    ours, theirs = pty.openpty()
    where = ("--simulate", "a40", "--runtime-dir", str(runtime_dir))
    words = command("calibrate", "gpu0", "--rounds", "2", "--hold", "1s", *where)
    subprocess.run(words, env=clean_environment(), cwd="/", stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    os.close(theirs)
    told = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert told == ["gpu0: 2 rounds of 2 s and more; first 1 s awake", "gpu0: round 1 of 2", "gpu0: round 2 of 2"]


def test_a_port_of_the_command_line(runtime_dir, boards):
    """As for `run`: whoever is connected there is not disturbed, and then it is said no more that nobody is known."""
    boards("a40")
    with listener() as server:
        watch = ("--port", f"{port_of(server)}:gpu0")
        with connect(server):
            told = calibrate(runtime_dir, "a40", "gpu0", *watch, *SHORT)
            assert (told.code, told.gpu()["problem"]) == (1, f"a client is connected to port {port_of(server)}")
    with listener() as server:
        told = calibrate(runtime_dir, "a40", "gpu0", "--port", f"{port_of(server)}:gpu0", *SHORT)
        assert (told.code, told.gpu()["clients_looked_for"]) == (0, True)


@pytest.mark.parametrize(("switch_j", "said"), [(1.2, "less than about 40 ms"), (19.0, "306 ms")])
def test_a_break_even_that_is_not_known(switch_j, said):
    """A switch energy that may be nothing is no firm figure."""

    def sure(value):
        return Spread(value, value, value)

    known = Calibration("GPU-1", "A40", 0.0, "0", "1", rounds=5, awake_w=sure(80.0), parked_w=sure(18.0))
    known = replace(known, switch_j=sure(switch_j), switch_error_j=1.3)
    assert f"Its break-even in energy is a silence of {said};" in " ".join(text(Result(WHO, known)).split())
