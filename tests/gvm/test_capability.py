"""What can be had is told before it is tried, and why it cannot."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

from memscaler.config.gpuctl import Gvm
from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm.capability import Facts, facts, look, means, refusal, table
from memscaler.gvm.turning import Here
from tests.gvm.fake.client import FakeGvm

STOCK = Facts(gvm="there is no driver", gvm_write="there is no driver")


def test_with_gvm_all_can_be_had() -> None:
    rows = {row.what: row for row in table(Facts())}
    assert [row.what for row in rows.values() if row.why_not] == []
    assert rows["memory.limit"].means == (Means.GVM,)
    assert rows["compute.freeze"].means == (Means.GVM, Means.CGROUP, Means.SIGNAL)
    assert rows["memory.current"].source == "GVM"
    assert "lower is higher" in rows["compute.priority"].note


def test_the_stock_driver_cannot_limit_and_says_so() -> None:
    rows = {row.what: row for row in table(STOCK)}
    for what in ("memory.limit", "compute.priority", "memory.swap.current", "kernels"):
        assert rows[what].means == ()
        assert rows[what].source == ""
        assert "no stock driver" in rows[what].why_not
        assert "there is no driver" in rows[what].why_not
    assert rows["memory.current"].source == "NVML"
    assert rows["compute.freeze"].means == (Means.CGROUP, Means.SIGNAL)
    assert "handed to the GPU already" in rows["compute.freeze"].note
    assert rows["cpu.nice"].means == (Means.NICE,)


def test_refusals_and_means_are_of_one_mind() -> None:
    """In every world there is a reason exactly where there is no means, for each knob and each way to freeze."""
    names = ("gvm", "gvm_write", "nvml", "cgroup", "weight", "signals", "nice")
    for no in itertools.product((False, True), repeat=len(names)):
        found = Facts(*(f"no {name}" if each else "" for name, each in zip(names, no, strict=True)))
        if found.gvm and not found.gvm_write:
            continue  # what is not there cannot be written
        for row in table(found):
            settable = row.what in set(Knob)
            assert bool(row.why_not) is not bool(row.means if settable else row.source), (row, found)
        for knob, how in itertools.product(Knob, ("auto", "gvm", "cgroup", "signal")):
            assert bool(refusal(knob, found, how)) is not bool(means(knob, found, how)), (knob, how, found)


def test_autogroup_is_told() -> None:
    rows = {row.what: row for row in table(replace(STOCK, autogroup=True))}
    assert "autogroup" in rows["cpu.nice"].note


def test_this_machine(tmp_path: Path) -> None:
    """Without GVM, and without a GPU's driver: as root the kernel's own are there, and what is tried works."""
    assert os.geteuid() == 0
    found = facts(Here.look(Gvm(root=tmp_path)), nvml="there is no NVML")
    assert "nothing is mounted" in found.gvm
    assert (found.cgroup, found.signals, found.nice) == ("", "", "")
    rows = look(Gvm(root=tmp_path), nvml="there is no NVML")
    assert rows == table(found)
    by_name = {row.what: row for row in rows}
    assert by_name["processes"].why_not.endswith("there is no NVML")
    assert by_name["compute.freeze"].means == (Means.CGROUP, Means.SIGNAL)


def test_gvm_on_this_machine(gvm: FakeGvm) -> None:
    found = facts(Here.look(Gvm(root=gvm.root, proc=gvm.proc)), nvml="")
    assert (found.gvm, found.gvm_write) == ("", "")
