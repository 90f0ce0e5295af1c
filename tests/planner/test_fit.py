"""llama-fit-params, by programs that answer as it does, and fail in every way there is."""

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.planner import fit
from memscaler.planner.devices import Budget, Device
from memscaler.planner.memory import Demand
from memscaler.planner.placement import Placement, Shortfall
from memscaler.planner.plan import Adviser, plan_for
from tests.patience import patience

GIB = 1 << 30
BUDGET = Budget(order="index")
DEMAND = Demand(context=8192)
OVERRIDE = r"blk\.3[0-9]\.ffn_(up|down|gate)_exps=CPU"


def gpus(*gib):
    return tuple(Device(i, f"GPU-{i}", "card", "", each * GIB, each * GIB) for i, each in enumerate(gib))


@pytest.fixture(scope="module")
def model(hollow):
    """A model of 80 layers and 39.6 GiB, all of it holes."""
    return hollow["llama-3.1-70b.Q4_K_M"]


@pytest.fixture
def program(tmp_path):
    """A shell script in the program's place; `calls` is what it was asked."""

    def write(script: str) -> Adviser:
        path = tmp_path / "llama-fit-params"
        path.write_text(
            f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER $@" >> {tmp_path}/calls\n'
            f'echo "llama_params_fit: fitting" >&2\n{script}\n'
        )
        path.chmod(0o755)
        return Adviser(str(path), timeout_s=60 * patience())

    return write


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


TABLE = 'case "$*" in *fit-print*) echo "CUDA0 20000 1100 400 "; echo "CUDA1 19000 1000 500 "; echo "Host 600 0 30 "; exit;; esac\n'


def test_its_plan_counts(model, program, tmp_path):
    """What it says for the GPUs that hold the model is the plan, with its figures; a GPU that is not needed is not shown."""
    adviser = program(TABLE + "echo '-c 8192 -ngl 81 -ts 41,40'")
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24, 24), adviser=adviser)
    assert isinstance(made, Placement)
    assert made.arguments == ("-ngl", "81", "-ts", "41,40")
    assert made.uuids == ("GPU-0", "GPU-1")
    assert made.source == "llama-fit-params"
    assert made.notes == ()
    first, second = made.shares
    assert (first.first, first.last, second.first, second.has_output) == (0, 40, 41, True)
    assert (first.weight_bytes, first.context_bytes, second.compute_bytes) == (20000 << 20, 1100 << 20, 500 << 20)
    to_plan, to_measure = asked(tmp_path)
    assert to_plan.startswith(f"GPU-0,GPU-1 PCI_BUS_ID --model {model} -c 8192 -b 2048 -ub 512 -ctk f16 -ctv f16")
    assert to_plan.endswith("-fitt 1024")
    assert to_measure.endswith("-ngl 81 -ts 41,40 --fit off --fit-print on")


def test_all_layers_by_free_memory(model, program):
    """-ngl -1 without -ts is llama.cpp's own default: the free memory decides, and we say it in numbers of slots."""
    made = plan_for(model, DEMAND, BUDGET, gpus(40, 20), adviser=program("echo '-c 8192 -ngl -1'"))
    assert made.arguments == ("-ngl", "81", "-ts", "54,27")
    assert made.notes == ("llama-fit-params: it printed no table of memory; the figures are memscaler's own",)


def test_more_gpus_where_it_needs_them(model, program, tmp_path):
    """Where our figures would take two GPUs and it finds no room there, it is asked about all."""
    script = (
        'case "$CUDA_VISIBLE_DEVICES" in *GPU-2*) echo "-c 8192 -ngl 81 -ts 27,27,27";; '
        '*) echo "-c 8192 -ngl 70 -ts 35,35";; esac'
    )
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24, 24), adviser=program(script))
    assert made.arguments == ("-ngl", "81", "-ts", "27,27,27")
    assert [line.split()[0] for line in asked(tmp_path)][::2] == ["GPU-0,GPU-1", "GPU-0,GPU-1,GPU-2"]


def test_it_says_that_it_does_not_fit(model, program):
    """Then it does not, whatever our figures say."""
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24), adviser=program("echo '-c 8192 -ngl 70 -ts 35,35'"))
    assert isinstance(made, Shortfall)
    assert made.best.arguments == ("-ngl", "70", "-ts", "35,35")
    assert "llama-fit-params says that it does not" in made.notes[0]
    assert made.missing_bytes > 3 * GIB


def test_experts_on_the_cpu(model, program):
    """-ot is handed on as it is."""
    adviser = program(f"echo '-c 8192 -ngl 81 -ts 41,40 -ot \"{OVERRIDE}\"'")
    made = plan_for(model, DEMAND, BUDGET, gpus(20, 20), adviser=adviser)
    assert isinstance(made, Shortfall)
    assert made.best.arguments == ("-ngl", "81", "-ts", "41,40", "-ot", OVERRIDE)
    assert not made.best.whole


HANGING = "trap '' TERM; sleep 1000 & wait"
FAILURES = {
    "exit status 1: failed to fit CLI arguments to free memory": "echo 'failed to fit CLI arguments to free memory' >&2; exit 1",
    "exit status 134: GGML_ASSERT": "echo 'GGML_ASSERT(n) failed' >&2; echo; exit 134",
    "signal 6": "kill -ABRT $$",
    "exit status 1: llama_params_fit: fitting": "exit 1",
    "no arguments": "true",
    "no arguments ": "head -c 100000 /dev/urandom",
    "no arguments  ": "echo 'usage: llama-fit-params [options]'",
    "No closing quotation": "echo '-c 8192 -ngl 81 -ot \"x=CPU'",
    "it printed '-c 8192 -ngl many'": "echo '-c 8192 -ngl many'",
    "it printed '-c 8192'": "echo '-c 8192'",
    "it printed '-c 8192 -ngl'": "echo '-c 8192 -ngl'",
    "not known here": "echo '-c 8192 -ngl 81 --new-flag 1'",
    "it printed '-c 8192 -ngl 81 -ts a,b'": "echo '-c 8192 -ngl 81 -ts a,b'",
    "a context of 4096 tokens, and was asked for 8192": "echo '-c 4096 -ngl 81 -ts 41,40'",
    "splits over 3 GPUs": "echo '-c 8192 -ngl 81 -ts 41,20,20'",
    "onto a GPU without layers": "echo '-c 8192 -ngl 81 -ts 81,0 -ot \"blk.1=CUDA1\"'",
}


@pytest.mark.parametrize("why", FAILURES)
def test_whatever_goes_wrong_we_plan_ourselves(model, program, why):
    """The plan is ours, and a note says why."""
    ours = plan_for(model, DEMAND, BUDGET, gpus(24, 24))
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24), adviser=program(FAILURES[why]))
    assert isinstance(made, Placement)
    assert (made.arguments, made.shares, made.source) == (ours.arguments, ours.shares, "memscaler")
    (note,) = made.notes
    assert note.startswith("llama-fit-params: it ")
    assert why.strip() in note
    assert note.endswith("planned with memscaler's own figures")


def test_a_shortfall_of_ours_stays_one(model, program):
    """With the note, too."""
    made = plan_for(model, DEMAND, BUDGET, gpus(24), adviser=program("exit 1"))
    assert isinstance(made, Shortfall)
    assert "planned with memscaler's own figures" in made.notes[0]


def test_one_that_hangs_is_killed_with_its_children(model, program, tmp_path):
    """After its time, and nothing of it is left."""
    adviser = program(f"echo $$ > {tmp_path}/pid; {HANGING}")
    began = time.monotonic()
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24), adviser=replace(adviser, timeout_s=1.0))
    assert "it took longer than 1 s" in made.notes[0]
    assert time.monotonic() - began < 30 * patience()
    group = int((tmp_path / "pid").read_text())
    while is_alive(group):  # killed children are reaped by init
        assert time.monotonic() - began < 30 * patience()
        time.sleep(0.05)


def is_alive(group: int) -> bool:
    """Whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_that_is_not_there_or_no_program(model, tmp_path):
    """Neither is an error."""
    text = tmp_path / "text"
    text.write_text("no program")
    for path, why in ((tmp_path / "gone", "No such file"), (text, "Permission denied")):
        made = plan_for(model, DEMAND, BUDGET, gpus(24, 24), adviser=Adviser(str(path)))
        assert f"it cannot be started: {why}" in made.notes[0]
    text.chmod(stat.S_IRWXU)
    made = plan_for(model, DEMAND, BUDGET, gpus(24, 24), adviser=Adviser(str(text)))
    assert "it cannot be started: Exec format error" in made.notes[0]


def test_it_is_found_in_the_path(program, tmp_path):
    """Or not."""
    program("true")
    assert fit.find({"PATH": f"/nowhere:{tmp_path}"}) == str(tmp_path / "llama-fit-params")
    assert fit.find({"PATH": "/nowhere"}) is None


def test_the_last_line_of_arguments_counts():
    """Whatever else stands there."""
    text = 'build 123\n-c 1 -ngl 1\nnoise\n-c 4096 -ngl 37 -ts 20.0,17 -ot "a=CPU,b=CPU"\n'
    assert fit.parse_arguments(text) == fit.Answer(4096, 37, (20, 17), "a=CPU,b=CPU")


def test_the_table():
    """A row per device in MiB with a blank at its end; the host's is the last."""
    rows = fit.parse_rows("noise\nCUDA0 15621 9152 836 \nHost 204 0 40 \n")
    assert [row.device for row in rows] == ["CUDA0", "Host"]
    assert (rows[0].model_bytes, rows[0].context_bytes, rows[0].compute_bytes) == (15621 << 20, 9152 << 20, 836 << 20)
    for text in ("", "CUDA0 1 2 3 \n", "Host 1 2\n"):
        with pytest.raises(fit.FitFailed):
            fit.parse_rows(text)


@given(st.text(alphabet="-c ngltso0123456789,.\"'=\n\\x", max_size=60))
def test_any_output_is_an_answer_or_a_failure(text):
    """Never anything else."""
    try:
        answer = fit.parse_arguments(f"-c {text}")
    except fit.FitFailed:
        return
    assert answer.context >= 0
