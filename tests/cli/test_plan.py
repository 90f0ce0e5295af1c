"""`memscaler plan` and `memscaler analyze`, as real processes."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedDriver, loading
from tests.planner import shapes

GIB = 1 << 30
PLAIN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("MEMSCALER_", "CUDA_", "LLAMA_")) and key != "LD_LIBRARY_PATH"
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Large models, all of it holes."""
    folder = tmp_path_factory.mktemp("models")
    names = {"7b": "llama-2-7b.Q4_0", "70b": "llama-3.1-70b.Q4_K_M", "moe": "gpt-oss-120b.MXFP4"}
    return {short: shapes.write(folder / f"{short}.gguf", shapes.SHAPES[name]) for short, name in names.items()}


def memscaler(*args, env=None, **others):
    command = [sys.executable, "-m", "memscaler", *map(str, args)]
    env = {**PLAIN, "COLUMNS": "80", "PATH": "/usr/bin:/bin", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=100, **others)


@pytest.fixture
def simulated(tmp_path: Path):
    """An A40 with 40 % free and an empty P40, and the words that name them."""
    path = tmp_path / "run" / loading.STATE
    path.parent.mkdir(parents=True)
    with SimulatedDriver.create(path, ("a40", "p40")) as driver:
        driver.boards[1].set_context(False)
        yield driver, ("--simulate", "a40,p40", "--runtime-dir", tmp_path / "run")


def test_what_the_gpus_give(simulated):
    """Without a model: budgets in the order in which they are filled."""
    driver, words = simulated
    result = memscaler("plan", *words)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["GPU", "NAME", "TOTAL", "FREE", "BUDGET"]
    assert [line.split()[0] for line in lines[1:3]] == ["gpu1", "gpu0"]
    uuids = [board.uuid for board in driver.boards]
    assert f"environment: CUDA_VISIBLE_DEVICES={uuids[1]},{uuids[0]}" in lines
    document = json.loads(memscaler("plan", *words, "--json", "--device-order", "index").stdout)
    assert document["schema"] == 1
    assert [gpu["uuid"] for gpu in document["gpus"]] == uuids
    assert all(gpu["budget_bytes"] == gpu["free_bytes"] - GIB for gpu in document["gpus"])
    assert document["tensor_split"] == [gpu["budget_bytes"] >> 20 for gpu in document["gpus"]]


def test_no_room(simulated):
    """Exit code 2 and advice."""
    _, words = simulated
    result = memscaler("plan", *words, "--reserve-mib", "30GiB")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("memscaler: no GPU has memory to give: gpu1 has the most free")
    assert "\nhint: stop what uses the GPUs" in result.stderr


def test_devices_and_the_variable(simulated):
    """--devices comes before CUDA_VISIBLE_DEVICES; what that hides is told."""
    driver, words = simulated
    uuids = [board.uuid for board in driver.boards]
    seen = memscaler("plan", *words, "--json", env={"CUDA_VISIBLE_DEVICES": f"{uuids[0][:12]},MIG-1,{uuids[1]}"})
    document = json.loads(seen.stdout)
    assert [gpu["index"] for gpu in document["gpus"]] == [0]
    assert "'MIG-1' is a MIG instance" in document["notes"][0]
    named = memscaler("plan", *words, "--json", "--devices", "gpu1", env={"CUDA_VISIBLE_DEVICES": "0"})
    assert [gpu["index"] for gpu in json.loads(named.stdout)["gpus"]] == [1]
    hidden = memscaler("plan", *words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert hidden.returncode == 2
    assert "no GPU may be used" in hidden.stderr


def test_a_model_on_two_gpus(simulated, models):
    """The table, the words, the map of layers; nothing wider than the screen."""
    driver, words = simulated
    result = memscaler("plan", models["70b"], "-c", "2048", *words, "--reserve-mib", "256")
    assert (result.returncode, result.stderr) == (0, "")
    assert max(len(line) for line in result.stdout.splitlines() if not line.startswith("environment:")) <= 80
    uuids = [board.uuid for board in driver.boards]
    assert f"environment: CUDA_VISIBLE_DEVICES={uuids[1]},{uuids[0]}" in result.stdout
    assert "output" in result.stdout
    document = json.loads(
        memscaler("plan", models["70b"], "-c", "2048", *words, "--reserve-mib", "256", "--json").stdout
    )
    (plan,) = document["plans"]
    assert plan["fits"]
    assert plan["placement"]["arguments"][:2] == ["-ngl", "81"]
    counts = [int(word) for word in plan["placement"]["arguments"][3].split(",")]
    assert plan["placement"]["layer_uuids"] == [uuids[1]] * counts[0] + [uuids[0]] * counts[1]
    assert " ".join(plan["placement"]["arguments"]) in result.stdout


def test_a_model_that_does_not_fit(models):
    """Exit code 2: by how much, and what would help; --force takes what can be done."""
    args = ("plan", models["moe"], "--n-ctx", "32768", "--gpu", "24GiB")
    result = memscaler(*args)
    assert (result.returncode, result.stderr) == (2, "")
    assert "does not fit: 37." in result.stdout
    assert "--n-cpu-moe" in result.stdout
    assert "\narguments:" not in result.stdout
    forced = memscaler(*args, "--force")
    assert forced.returncode == 0
    assert "arguments: -ngl 37 --n-cpu-moe" in forced.stdout
    document = json.loads(memscaler(*args, "--json").stdout)["plans"][0]
    assert not document["fits"]
    assert document["shortfall"]["missing_bytes"] > 37 * GIB
    assert all(remedy["arguments"] for remedy in document["shortfall"]["remedies"])


def test_several_models(models):
    """One after the other, each on what those before it leave."""
    result = memscaler(
        "plan", models["7b"], models["7b"], "-c", "4096", "--gpu", "8GiB", "--gpu", "8GiB", "--gpu", "4GiB"
    )
    assert result.returncode == 0
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("gpu")]
    assert rows == ["gpu0", "gpu1"]
    assert result.stdout.endswith("not used: gpu2\n")


def test_its_own_llama_fit_params(models, tmp_path, simulated):
    """A program that is named is asked; where it fails, that is said."""
    _, words = simulated
    program = tmp_path / "fit"
    program.write_text("#!/bin/sh\necho '-c 4096 -ngl 33'\n")
    program.chmod(0o755)
    args = ("plan", models["7b"], "-c", "4096", *words)
    assert "planned by fit\n" in memscaler(*args, "--fit-params", program).stdout
    program.write_text("#!/bin/sh\nexit 3\n")
    told = " ".join(memscaler(*args, "--fit-params", program).stdout.split())
    assert "note: fit: it ended with exit status 3; planned with memscaler's own figures" in told
    assert "fit-params" not in memscaler(*args, "--fit-params", "off").stdout


PICTURE = ("plan", "-c", "8192", "--gpu", "2x24GiB", "--gpu", "12GiB")


def on_a_terminal(*args, **environ):
    """What a command writes there."""
    ours, theirs = pty.openpty()
    env = {**PLAIN, "TERM": "xterm-256color", "COLUMNS": "100", **environ}
    command = [sys.executable, "-m", "memscaler", *args]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while chunk := os.read(ours, 4096):
                written += chunk
        assert process.wait(timeout=60) == 0
    os.close(ours)
    return written.decode()


def test_the_picture(models):
    """On a terminal, a bar for every GPU; in a pipe, none."""
    text = on_a_terminal(*PICTURE, models["70b"])
    assert "\x1b[46m" in text
    assert "hypothetical: not used" in text
    assert all(word in text for word in ("others", "weights", "context", "compute", "reserve", "free"))
    piped = memscaler(*PICTURE, models["70b"]).stdout
    assert "layers" not in piped.splitlines()[2]
    assert "\x1b[" not in piped


def test_the_picture_without_colour(models):
    """Letters say what colours say elsewhere; a GPU of half the memory has a bar of half the length."""
    lines = on_a_terminal(*PICTURE, models["70b"], NO_COLOR="1").splitlines()
    bars = [line.split()[1] for line in lines if line.startswith("gpu") and "r" in line.split()[1]]
    assert len(bars) == 3
    assert set("".join(bars[:2])) == {"W", "C", "c", "r", "."}
    assert set(bars[2]) == {"r", "."}
    assert 2 * len(bars[2]) == len(bars[0]) == len(bars[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpu", "huge"], "--gpu: 'huge' is no amount of memory"),
        (["--gpu", "0"], "no machine has that"),
        (["--gpu", "0x24GiB"], "'0' is no number of GPUs"),
        (["--gpu", "9999x24GiB"], "'9999' is no number of GPUs"),
        (["--gpu", "24GiB", "--device-order", "best"], "--device-order best"),
        (["--gpu", "24GiB", "--devices", ","], "--devices names none"),
        (["--gpu", "24GiB", "--devices", "gpu4"], "'gpu4' is no GPU that can be used"),
        (["--gpu", "24GiB", "--reserve-mib", "-5"], "--reserve-mib"),
        (["--gpu", "24GiB", "--reserve-mib", "100GiB"], "100.0 GiB of each GPU are reserved, and that is all"),
        (["--gpu", "24GiB", "--n-ctx", "many"], "many: a whole number"),
        (["--gpu", "24GiB", "--slots", "-1"], "-1: a whole number"),
        (["--gpu", "24GiB", "--flash-attn", "maybe"], "--flash-attn maybe"),
        (["--gpu", "24GiB", "--cache-type-k", "q9"], "cache type q9"),
        (["--gpu", "24GiB", "--cache-type-v", "q8_0", "--flash-attn", "off"], "flash attention"),
        (["--gpu", "24GiB", "--fit-params", "/nowhere/fit"], "--fit-params /nowhere/fit: no such program"),
        (["--simulate", "voodoo2"], "voodoo2"),
    ],
)
def test_wrong_words(models, args, message):
    """One line, a hint, exit code 2, no traceback."""
    result = memscaler("plan", models["7b"], *args)
    assert result.returncode == 2, result
    assert message in result.stderr
    assert result.stderr.count("memscaler:") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["missing", "text", "folder", "empty", "cut"])
@pytest.mark.parametrize("command", ["plan", "analyze"])
def test_no_model(tmp_path, models, command, kind):
    """What is no model is one line, too."""
    path = tmp_path / "m.gguf"
    if kind == "text":
        path.write_text("once upon a time")
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        path.write_bytes(models["7b"].read_bytes()[:5000])
    result = memscaler(command, path, "--gpu", "24GiB")
    assert result.returncode == 2
    assert result.stderr.count("memscaler: ") == 1
    assert "m.gguf" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_model_without_a_gpu(tmp_path, models):
    """The file is what is wrong, and not the driver; with a good one, what can be done without."""
    missing = memscaler("plan", tmp_path / "none.gguf")
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"memscaler: {tmp_path}/none.gguf: No such file or directory\n")
    good = memscaler("plan", models["7b"])
    assert good.returncode == 69
    assert "--gpu 24GiB plans for a GPU that is not here" in good.stderr


def test_a_gpu_without_a_unit():
    """24 would be MiB."""
    for word, better in (("24", "24GiB"), ("2x24", "2x24GiB")):
        result = memscaler("plan", "--gpu", word)
        assert (result.returncode, result.stderr) == (
            2,
            f"memscaler: --gpu {word} means 24 MiB\nhint: with a unit: --gpu {better}\n",
        )


@pytest.mark.parametrize(
    "gpus", ["24GiB", "12GiB", "3x12GiB", "4x8GiB", "42.5GiB", "512MiB", "3x13.7GiB", "2x20.33GiB"]
)
def test_the_sum_of_a_shortfall_is_right(models, gpus):
    """What is needed, less what the budgets give after the split, is what is missing, to the last digit."""
    said = memscaler("plan", models["70b"], "--n-ctx", "8192", "--gpu", gpus).stdout
    line = next(line for line in said.splitlines() if "are missing" in line)
    found = re.fullmatch(
        r"does not fit: ([\d.]+) (?P<unit>.iB) are missing \(([\d.]+) (?P=unit) needed, ([\d.]+)(?: (?P=unit))? in the "
        r"budgets(?:, of which the split costs ([\d.]+) (?P=unit))?\)",
        line,
    )
    assert found, line
    missing, needed, budgets, split = (Decimal(found[each] or 0) for each in (1, 3, 4, 5))
    assert missing == needed - (budgets - split)


def test_analyze(models):
    """What is in the file and what it needs; a machine without a GPU is no error."""
    result = memscaler("analyze", models["moe"], "--layers")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert "gpt-oss, 36 layers, 59.0 GiB" in text
    assert "4 of 128 are used per token" in text
    assert "no GPUs to plan for" in text
    assert result.stdout.count("1.6 GiB") >= 36
    planned = memscaler("analyze", "--model", models["7b"], "-c", "4096", "--gpu", "24GiB")
    assert "arguments: -ngl 33\n" in planned.stdout
    short = memscaler("analyze", models["moe"], "--gpu", "24GiB")
    assert short.returncode == 0
    assert "does not fit" in short.stdout


def test_analyze_for_programs(models):
    """Bytes, by layer."""
    document = json.loads(memscaler("analyze", models["7b"], "--json").stdout)
    assert (document["schema"], document["model"]["layers"], document["fits"]) == (1, 32, None)
    assert len(document["bytes"]["layers"]) == 32
    total = sum(layer["weight_bytes"] for layer in document["bytes"]["layers"])
    total += document["bytes"]["output_bytes"] + document["bytes"]["embedding_bytes"]
    assert total == sum(document["bytes"]["types"].values())
    planned = json.loads(memscaler("analyze", models["7b"], "--json", "--gpu", "24GiB").stdout)
    assert planned["fits"]


def test_which_model():
    """None, or two, is a usage error."""
    for args in ([], ["a.gguf", "--model", "b.gguf"]):
        result = memscaler("analyze", *args)
        assert result.returncode == 2
        assert "which model?" in result.stderr
