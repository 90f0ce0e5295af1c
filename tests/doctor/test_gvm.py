"""The checks of what can be set on the processes of GPUs, with the rules that want it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.gpuctl import Ability, Knob
from memscaler.daemon.doctor.model import Result
from memscaler.gvm.capability import Facts, look, table
from tests.doctor.bench import Machine, doctor

ALL = Facts()
NO_GVM = Facts(gvm="there is no GVM", gvm_write="there is no GVM")
LIMIT = GpuctlRule(name="less", memory_limit_bytes=1 << 30)
FREEZE = GpuctlRule(name="wait", freeze=True)


@pytest.fixture
def having(machine: Machine):
    """What the machine has, and its rules; None: nobody is asked for it."""

    def have(facts: Facts, *rules: GpuctlRule) -> Machine:
        machine.context.look_abilities = lambda _nvml: table(facts)
        machine.with_settings(gpuctl=rules)
        return machine

    return have


def by_subject(machine: Machine, check: str) -> dict[str, Any]:
    return {subject: each for each in machine.findings(check) for subject in each.subjects}


def test_gvm_is_there(having):
    """It is said where."""
    finding = having(ALL).check("MS-GVM-01")
    assert (finding.result, "/sys/kernel/debug/nvidia-uvm/processes" in finding.seen) == (Result.PASS, True)


def test_gvm_is_wanted_only_by_who_asks(having):
    """No GVM is no fault of a machine; a rule that cannot be kept is."""
    finding = having(NO_GVM, FREEZE).check("MS-GVM-01")
    assert (finding.result, "there is no GVM" in finding.seen) == (Result.PASS, True)
    finding = having(NO_GVM, FREEZE, LIMIT).check("MS-GVM-01")
    assert (finding.result, '"less"' in finding.seen, '"wait"' in finding.seen) == (Result.FAIL, True, False)


def test_gvm_that_cannot_be_written(having):
    """It is there, and good for reading only."""
    finding = having(Facts(gvm_write="the kernel is locked down")).check("MS-GVM-01")
    assert (finding.result, "locked down" in finding.seen) == (Result.WARN, True)


def test_the_table(having):
    """A line for each row of the table; by what, or why not."""
    found = by_subject(having(ALL), "MS-GVM-02")
    assert set(found) == {row.what for row in table(ALL)} >= set(Knob)
    assert {each.result for each in found.values()} == {Result.PASS}
    assert found["memory.limit"].seen.startswith("by gvm")
    assert found["compute.freeze"].seen.startswith("by gvm, cgroup, signal")


def test_the_table_without_gvm(having):
    """What is not possible is no fault where nobody wants it."""
    found = by_subject(having(NO_GVM, FREEZE), "MS-GVM-02")
    assert found["memory.limit"].seen.startswith("not possible here: no stock driver")
    assert found["compute.freeze"].result is Result.PASS


@pytest.mark.parametrize("wanted", [(), (LIMIT, FREEZE)], ids=["nobody", "a-rule"])
@pytest.mark.parametrize(
    "facts", [NO_GVM, replace(NO_GVM, nvml="no NVML"), Facts(gvm_write="it is locked")], ids=["stock", "none", "locked"]
)
def test_what_is_wrong_with_gvm_is_said_once(having, facts, wanted):
    """Every other row names the check that says it."""
    machine = having(facts, *wanted)
    sentence = facts.gvm_write
    assert sentence in machine.check("MS-GVM-01").seen
    rows = by_subject(machine, "MS-GVM-02").values()
    assert not [each.seen for each in rows if sentence in each.seen]
    assert [each for each in rows if "(MS-GVM-01)" in each.seen]


def test_what_a_rule_wants_and_cannot_have(having):
    """It fails, with the rule's name."""
    found = by_subject(having(NO_GVM, LIMIT, FREEZE), "MS-GVM-02")
    assert (found["memory.limit"].result, '"less"' in found["memory.limit"].seen) == (Result.FAIL, True)
    assert {each.result for what, each in found.items() if what != "memory.limit"} == {Result.PASS}


def test_a_way_to_freeze_that_cannot_be_had(having):
    """It fails where GVM is looked for, and where the freeze is told: another way is no help to who asks for this."""
    machine = having(NO_GVM, GpuctlRule(name="by", freeze=True, how="gvm"), FREEZE)
    assert (machine.check("MS-GVM-01").result, '"by"' in machine.check("MS-GVM-01").seen) == (Result.FAIL, True)
    finding = by_subject(machine, "MS-GVM-02")["compute.freeze"]
    assert finding.result is Result.FAIL
    assert 'wanted by "by" by gvm: here it can be done by cgroup, signal only' in finding.seen
    assert "limit" not in machine.check("MS-GVM-01").seen, "no rule wants one"


def test_a_way_to_freeze_that_can_be_had(having):
    """Then it is as good as any."""
    machine = having(ALL, GpuctlRule(name="by", freeze=True, how="gvm"))
    assert by_subject(machine, "MS-GVM-02")["compute.freeze"].result is Result.PASS


@pytest.mark.parametrize(
    ("told", "result", "says"),
    [
        ({"pid": 7, "rules": [{"name": "wait", "holds": True}]}, "PASS", "in force"),
        ({"pid": 7, "rules": [{"name": "wait"}]}, "PASS", "ready"),
        ({"pid": 7, "rules": [{"name": "wait", "why_not": "no such unit"}]}, "WARN", "no such unit"),
        (
            {"pid": 7, "rules": [{"name": "wait", "why_not": "gpu0 is cooling", "waits": True}]},
            "PASS",
            "gpu0 is cooling",
        ),
        ({"pid": 7, "rules": []}, "WARN", "does not have it"),
        ({"pid": None, "problem": "it dies at once"}, "FAIL", "it dies at once"),
        (None, "FAIL", "runs none"),
    ],
)
def test_the_arbiter(having, told, result, says):
    """As the daemon tells of it."""
    machine = having(ALL, FREEZE)
    machine.context.ask_status = lambda: {"gpuctl": told}
    finding = machine.check("MS-GVM-03")
    assert (str(finding.result), says in finding.seen) == (result, True)


def test_rights_that_are_gone(having):
    """A rule that came by a reload: who asks is told what to do, also where the rule itself has nothing to do yet."""
    machine = having(ALL, FREEZE)
    notes = [{"about": "gpuctl rights", "note": "it lacks CAP_KILL"}, {"about": "readings", "note": "3 more"}]
    machine.context.ask_status = lambda: {"gpuctl": {"pid": 7, "rules": [{"name": "wait"}], "notes": notes}}
    found = by_subject(machine, "MS-GVM-03")
    assert (found["rights"].result, found["rights"].seen) == (Result.WARN, "it lacks CAP_KILL")
    assert "systemctl restart memscaler" in found["rights"].remedy
    assert found["wait"].result is Result.PASS


def test_no_daemon(having):
    """Rules do nothing then; without rules nobody is missed."""
    assert having(ALL, FREEZE).check("MS-GVM-03").result is Result.WARN
    assert having(ALL).check("MS-GVM-03").result is Result.PASS


@pytest.mark.parametrize("rules", [(), (FREEZE,)])
def test_what_a_daemon_that_is_gone_has_left(having, rules):
    """Somebody may be frozen for ever: nobody else would say so."""
    machine = having(ALL, *rules)
    folder = machine.context.settings.runtime_dir / "gpuctl"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("{}")
    finding = machine.check("MS-GVM-03")
    assert (finding.result, "left processes frozen" in finding.seen) == (Result.FAIL, True)
    assert "memscaler restore" in finding.remedy


def test_as_nobody(runtime_dir: Path):
    """What only root can see is not known; nothing fails."""
    found = doctor(runtime_dir, "MS-GVM", nobody=True)
    assert [each["result"] for each in found["MS-GVM-01"]] == ["UNKNOWN"]
    assert "FAIL" not in {each["result"] for each in found["MS-GVM-02"]}


def test_of_this_machine(runtime_dir: Path):
    """The command asks the table of the arbiter's own means."""
    found = doctor(runtime_dir, "MS-GVM-02", "--simulate", "a40")["MS-GVM-02"]
    told = {subject: each for each in found for subject in each["subjects"]}
    rows: dict[str, Ability] = {row.what: row for row in look_here()}
    assert set(told) == set(rows)
    for what, row in rows.items():
        if row.means:
            assert told[what]["seen"].startswith(f"by {', '.join(row.means)}")
    assert told["processes"]["seen"].startswith("told by ")


def look_here() -> tuple[Ability, ...]:
    from memscaler.config.gpuctl import Gvm

    return look(Gvm(), "")
