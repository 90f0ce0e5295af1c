"""What the arbiter tells has an end: with many processes it is cut, counted, and never lost."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.gpuctl import Gvm, Match
from memscaler.core.gpuctl import Controlled, Gpuctl, GvmReading, Knob, Means, RuleState
from memscaler.daemon.arbiter_words import read
from memscaler.daemon.child_words import MOST_BYTES
from memscaler.gvm.link import encode
from memscaler.gvm.told import MOST_CONTROLLED, MOST_READINGS, fitting
from memscaler.simulator import SimulatedDriver
from tests.gvm.governor_end import batch_rule, governor_end

LONG = "\N{SNOWMAN}" * 255 + '"\\\x01'
RULE = RuleState(name="r", when="busy", why_not="w" * 100, first_s=tuple(1 / 3 for _ in range(20)))
SET = Controlled("r", 2**22, "python3", Knob.COMPUTE_FREEZE, Means.SIGNAL, 1, 0, "GPU-x", since_unix_s=1.7e9 + 1 / 3)
MANY = 2**64 - 1
READING = GvmReading(2**22, 2**22, 8, "GPU-x", "python3", MANY, MANY, MANY, 15, 1, MANY, MANY, MANY)


@pytest.mark.parametrize("text", ["chat", LONG], ids=["short", "long"])
def test_hundreds_of_everything_fit(text: str) -> None:
    """Whatever the names are; what is left out is counted."""
    count = 700
    whole = Gpuctl(
        pid=1,
        problem=text * 100,
        gvm_why_not=text * 100,
        rules=tuple(replace(RULE, name=f"{text}{at}") for at in range(count)),
        controlled=tuple(replace(SET, name=text, unit=text, container=text, problem=text) for _ in range(count)),
        first=tuple(f"GPU-{at:032}" for at in range(count)),
        readings=tuple(replace(READING, name=text) for _ in range(count)),
    )
    told = fitting(whole)
    data = encode(told)
    assert len(data) <= MOST_BYTES
    assert read(data) == told
    assert told.rules
    for what in ("rules", "controlled", "readings"):
        kept = len(getattr(told, what))
        assert told.notes.get(what, "").startswith(f"{count - kept} more") == (kept < count)


def test_what_fits_is_told_whole() -> None:
    """An ordinary machine, a large one: nothing is cut that has room."""
    whole = Gpuctl(pid=1, rules=(RULE,) * 5, controlled=(SET,) * MOST_CONTROLLED, readings=(READING,) * MOST_READINGS)
    assert fitting(whole) == whole


@given(st.lists(st.text(max_size=3000), max_size=60))
def test_no_text_makes_it_too_long(texts: list[str]) -> None:
    """The estimate is never too low."""
    whole = Gpuctl(
        pid=1,
        rules=tuple(replace(RULE, name=text, why_not=text) for text in texts),
        controlled=tuple(replace(SET, name=text, problem=text, unit=text) for text in texts),
        readings=tuple(replace(READING, name=text, uuid=text) for text in texts),
    )
    assert len(encode(fitting(whole))) <= MOST_BYTES


def test_hundreds_of_processes(tmp_path: Path) -> None:
    """Real ones, frozen by a real arbiter: the governor hears of it, and of how many it does not hear."""
    count = 2 * MOST_CONTROLLED
    boards = SimulatedDriver.create(tmp_path / "boards", ("a40",))
    uuid = boards.boards[0].uuid
    jobs = [subprocess.Popen(["sleep", "999"], process_group=0) for _ in range(count)]
    for job in jobs:  # GVM's files tell who is on the GPU; the simulated driver knows sixteen
        entry = tmp_path / f"gvm/nvidia-uvm/processes/{job.pid}/0"
        entry.mkdir(parents=True)
        (entry / "memory.current").write_text("4096\n")
    rule = batch_rule(processes=(Match("name", "sleep"),), how="signal", cpu_nice=5)
    gvm = Gvm(root=tmp_path / "gvm", gpu_map={0: uuid})
    try:
        with governor_end(uuid, rule, gvm=gvm, environment=boards.environment) as end:
            end.start()
            end.prepared()
            end.client_comes()
            told = end.until(lambda told: told.rules[0].applied >= 2 * count, within_s=120)
            assert len(told.controlled) == MOST_CONTROLLED
            assert [each.pid for each in told.controlled] == sorted(each.pid for each in told.controlled)
            assert told.notes["controlled"] == f"{2 * count - MOST_CONTROLLED} more are not shown"
            assert told.notes["readings"] == f"{count - MOST_READINGS} more processes are not shown"
            end.client_goes()
            end.show("he has left")
            end.until(lambda told: not told.controlled, within_s=120)
            assert end.journal == []
    finally:
        for job in jobs:
            job.kill()
            job.wait()
        boards.close()
