"""Rules for other programs in `memscaler status` and `top`, as real processes, of what a governor would answer."""

import dataclasses

import pytest

from memscaler.cli import gpuctl_text
from memscaler.cli.gpuctl_text import gpuctl_parts
from memscaler.cli.paint import Paint
from memscaler.core.gpuctl import NO_LIMIT, Controlled, Gpuctl, Knob, Means, RuleState
from memscaler.core.snapshot import KernelSnapshot, Snapshot
from memscaler.observe import gpuctl
from tests.asked import answering
from tests.cli.commands import memscaler
from tests.cli.test_status import BUSY, EXPECTED, hostile
from tests.cli.test_top import MANY, screen
from tests.governor import eventually

GPU = "GPU-aaaaaaaa-1"
RULE = RuleState(
    "batch-waits",
    "busy",
    holds=True,
    since_unix_s=-12.0,
    for_=("8080", "chat"),
    applied=6,
    failed=1,
    why_not="1 process could not be stopped.",
    first_s=(0.002, 0.0031, 0.004),
)
TRAIN = Controlled(
    "batch-waits", 4711, "train", Knob.COMPUTE_FREEZE, Means.SIGNAL, 1, 0, GPU, "batch.service", since_unix_s=-12.0
)
WHOLE = Gpuctl(
    99,
    rules=(RULE, RuleState("a-name-as-long-as-a-name-of-a-rule-can-be", "quiet")),
    controlled=(
        TRAIN,
        dataclasses.replace(TRAIN, pid=4712, means=Means.CGROUP, unit="", container="box"),
        dataclasses.replace(TRAIN, pid=4713, means=Means.GVM),
        dataclasses.replace(TRAIN, knob=Knob.MEMORY_LIMIT, means=Means.GVM, value=6 << 30, was=NO_LIMIT),
        dataclasses.replace(TRAIN, knob=Knob.MEMORY_LIMIT, means=Means.GVM, value=NO_LIMIT, was=None),
        dataclasses.replace(TRAIN, knob=Knob.COMPUTE_PRIORITY, means=Means.GVM, value=12, was=8),
        dataclasses.replace(TRAIN, knob=Knob.CPU_NICE, means=Means.NICE, value=10, was=0, uuid=""),
        dataclasses.replace(TRAIN, pid=4714, name="no", unit="", problem="it is refused (EPERM).", since_unix_s=0.0),
        dataclasses.replace(TRAIN, pid=4715, name="stuck", unit="", problem="it cannot be thawed (EIO)."),
        dataclasses.replace(TRAIN, pid=4716, unit="", since_unix_s=0.0),
        dataclasses.replace(TRAIN, knob=Knob.CPU_WEIGHT, means=Means.CGROUP, value=10, was=100, uuid=""),
        dataclasses.replace(TRAIN, rule="gone", pid=5000, unit="", since_unix_s=-3700.0),
    ),
)
TOLD = """\
RULE                        NOW       SINCE  ACTS IN  WHEN
batch-waits                 in force  12s    3.1 ms   while clients are at work
a-name-as-long-as-a-nam...  waiting   -      -        while all is quiet

      batch-waits: for 8080, chat; 4 stopped, 1 limited in memory, 1 with
        another GPU priority, 1 with another CPU priority, 1 with another CPU
        share; 1 process could not be stopped; failed once
        - 4714 no: compute.freeze on gpu0: it is refused (EPERM)
        - 4715 stuck: stopped by SIGSTOP on gpu0 for 12s; it cannot be thawed
          (EIO)
        - 4711 train (batch.service): stopped by SIGSTOP on gpu0 for 12s
        - 4711 train (batch.service): at most 6 GiB on gpu0 for 12s, was max
        - 4711 train (batch.service): no memory limit on gpu0 for 12s
        - 4711 train (batch.service): GPU priority 12 on gpu0 for 12s, was 8
        - 4711 train (batch.service): nice 10 for 12s, was 0
        - 4711 train (batch.service): CPU weight 10 for 12s, was 100
        - and 3 more: `memscaler gpuctl ls`
      gone (gone): 5000 train: stopped by SIGSTOP on gpu0 for 1h 1m
"""


def document(told: Gpuctl):
    """As the governor answers; times that are negative are so long ago."""
    snapshot = Snapshot(0, 0.0, "0", "", "", False, (), (), KernelSnapshot({}, {}, 0), gpuctl=told)
    now_s = 1e9
    past = {"controlled": tuple(_past(each, now_s) for each in told.controlled)}
    past["rules"] = tuple(_past(each, now_s) for each in told.rules)
    snapshot = dataclasses.replace(snapshot, gpuctl=dataclasses.replace(told, **past))
    return gpuctl.document(snapshot, {GPU: "gpu0"}, now_s)


def _past(each, now_s):
    return dataclasses.replace(each, since_unix_s=now_s + each.since_unix_s) if each.since_unix_s else each


def test_rules_for_people(folder, loop):
    """A table of the rules, what each has set on whom, what went wrong first; hostile words are text."""
    loop.answer = lambda _: {**BUSY, "gpuctl": document(WHOLE)}
    result = memscaler(folder, "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert TOLD in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    loop.answer = lambda _: hostile({**BUSY, "gpuctl": document(WHOLE)})
    result = memscaler(folder, "status")
    assert result.returncode == 0
    assert all(char.isprintable() or char == "\n" for char in result.stdout)


@pytest.mark.parametrize("told", [{}, {"gpuctl": None}], ids=["older", "without"])
def test_without_rules_the_status_is_as_it_was(folder, loop, told):
    """Not a word more, of an older daemon as well."""
    loop.answer = lambda _: {**BUSY, **told}
    assert memscaler(folder, "status").stdout == EXPECTED


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Gpuctl(1, gvm=True), []),
        (Gpuctl(problem="it died of signal 9; the next one starts in 2 s"), ["arbiter: it died of signal 9; the next one starts in 2 s"]),
        (Gpuctl(1, notes={"readings": "12 of 99 are left out"}), ["readings: 12 of 99 are left out"]),
    ],
    ids=["gvm-alone", "down", "notes"],
)  # fmt: skip
def test_what_is_said_without_rules(folder, loop, told, words):
    """Of the arbiter itself."""
    loop.answer = lambda _: {**BUSY, "gpuctl": document(told)}
    shown = memscaler(folder, "status").stdout.splitlines()
    before = EXPECTED.splitlines()
    assert [line.strip() for line in shown if line not in before] == words


def test_the_order_is_the_same_each_time():
    """By process, what went wrong first, however the arbiter tells it; a name that is empty is not left out."""
    told = document(WHOLE)
    colour = Paint(on=False)
    freezes = [each for each in told["controlled"] if each["knob"] == "compute.freeze"]
    shown = [gpuctl_parts({**told, "controlled": each}, colour) for each in (freezes, freezes[::-1])]
    assert shown[0] == shown[1]
    assert gpuctl_text.process_text({**freezes[0], "name": ""}).startswith("4711 - (batch.service): stopped")


def test_in_one_line_that_may_be_cut_the_trouble_comes_first():
    """80 columns of `top` have room for a few words of it."""
    told = document(WHOLE)
    text = gpuctl_text.rule_text(told["rules"][0], told["controlled"], problems_first=True)
    assert text.startswith("1 process could not be stopped; failed once; for 8080, chat; 4 stopped")


def test_rules_in_top(folder):
    """Below the GPU, those in force first; on a small screen fewer of them, or none."""
    quiet = [RuleState(f"r{number}", "quiet") for number in range(12)]
    many = dataclasses.replace(WHOLE, rules=(*quiet, RULE), problem="killed\x1b[2J")
    with answering(folder) as loop, screen(folder, columns=100, rows=50) as terminal:
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "gpuctl": document(WHOLE)}
        terminal.start(folder)
        terminal.wait_for("^  RULE +NOW +SINCE +ACTS IN$")
        terminal.wait_for(r"^  batch-waits +in force +12s +3.1 ms +1 process could not be stopped; failed")
        loop.answer = lambda _: {**MANY, "gpus": MANY["gpus"][:2], "gpuctl": document(many)}
        terminal.wait_for(r"^  arbiter: killed\?\[2J$")
        terminal.wait_for(r"ACTS IN  \(\+\d+\)$")
        assert terminal.shows(r"^  batch-waits +in force ")
        for columns, rows in ((40, 12), (20, 5), (80, 24)):
            terminal.resize(columns, rows)
            eventually(lambda: len(terminal.text().splitlines()) == rows)
        terminal.type("q")
        terminal.wait_for("^exit=0$")
