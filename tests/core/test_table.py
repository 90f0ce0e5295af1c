"""The table of transitions in governor.py's docstring, row by row; and the start and the public words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from memscaler.core import governor, public, quiet
from memscaler.core.governor import step
from memscaler.core.membership import initial
from memscaler.core.model import (
    Counters,
    Doubt,
    GovernorState,
    GpuPolicy,
    GpuState,
    Hold,
    LeverResult,
    Observation,
    Outcome,
    ParkNow,
    Phase,
    Policy,
    Public,
    Reading,
    Stop,
    Surveyed,
    Unhold,
)
from memscaler.core.public import public_state

POLICY = Policy({"g": GpuPolicy(frozenset({0}), idle_after_ns=10)})
NOW_NS = 1000
QUIET = {0: Reading(0, 0, armed=True)}
LIVE = {0: Reading(1, NOW_NS, armed=False)}
RANG = {0: Reading(0, 0, armed=False)}
HOLD = Hold("g", "operator", NOW_NS + 5)


def answered(outcome: Outcome) -> LeverResult:
    return LeverResult("g", 0, outcome)


# (phase, seen) of a row -> the observations that it speaks of, and what else is true of the GPU.
CASES: dict[tuple[str, str], tuple[list[Observation], dict[str, Any]]] = {
    ("AWAKE", "counters: nothing live"): ([Counters({0: Reading(0, NOW_NS - 1)})], {}),
    ("COOLING", "counters: something live"): ([Counters(LIVE), Counters({})], {}),
    ("COOLING", "counters: quiet for idle_after"): ([Counters(QUIET), Counters(RANG)], {}),
    ("COOLING", "hold"): ([HOLD], {}),
    ("COOLING", "park now"): ([ParkNow("g")], {}),
    ("ARMING", "counters: something live"): ([Counters(LIVE)], {"asked": True, "due_ns": NOW_NS + 1}),
    ("ARMING", "survey: quiet, every doorbell armed"): ([Surveyed("g", 0, QUIET)], {}),
    ("ARMING", "survey: something live"): ([Surveyed("g", 0, LIVE)], {}),
    ("ARMING", "survey: a doorbell rang"): ([Surveyed("g", 0, RANG)], {}),
    ("ARMING", "survey: something happened since"): ([Surveyed("g", 0, {0: Reading(0, NOW_NS - 1, armed=True)})], {}),
    ("ARMING", "no answer in time"): ([Counters(QUIET)], {"asked": True, "due_ns": NOW_NS}),
    ("ARMING", "doubt"): ([Doubt("overflow"), Doubt("overflow", "g")], {}),
    ("ARMING", "hold"): ([HOLD], {}),
    ("PARKING", "applied"): ([answered(Outcome.APPLIED), answered(Outcome.VERIFIED)], {}),
    ("PARKING", "busy, nothing to gain"): ([answered(Outcome.BUSY), answered(Outcome.NOTHING_TO_GAIN)], {}),
    ("PARKING", "next lever"): ([answered(Outcome.NEXT_LEVER)], {}),
    ("PARKING", "failed, wedged, lost"): (
        [answered(Outcome.FAILED), answered(Outcome.WEDGED), answered(Outcome.LOST)],
        {},
    ),
    ("PARKING", "something live, or a doorbell rang"): ([Counters(LIVE), Counters(RANG), HOLD], {}),
    ("PARKED", "something live, or a doorbell rang"): ([Counters(LIVE), Surveyed("g", 0, RANG), HOLD], {}),
    ("PARKED", "its last watch is gone"): ([Counters({})], {}),
    ("PARKED", "an earlier wake had no effect"): ([LeverResult("g", -1, Outcome.NO_EFFECT)], {}),
    ("PARKED", "a prepared wake is done"): ([LeverResult("g", 1, Outcome.WOKEN)], {}),
    ("PARKED", "look is due"): ([Counters(QUIET)], {"due_ns": NOW_NS}),
    ("PARKED", "survey: quiet"): ([Surveyed("g", 0, QUIET)], {"asked": True}),
    ("PARKED", "no answer in time"): ([Counters(QUIET)], {"asked": True, "due_ns": NOW_NS}),
    ("WAKING", "woken"): ([answered(Outcome.WOKEN)], {}),
    ("WAKING", "woken, but distrusted"): ([answered(Outcome.WOKEN)], {"distrust": "wedged"}),
    ("WAKING", "failed, wedged, lost"): (
        [answered(Outcome.FAILED), answered(Outcome.WEDGED), answered(Outcome.LOST), answered(Outcome.NO_EFFECT)],
        {},
    ),
    ("WAKING", "an earlier wake had no effect"): ([LeverResult("g", -1, Outcome.NO_EFFECT)], {}),
    ("WAKING", "pause is over"): ([Counters(QUIET), Counters(LIVE)], {"due_ns": NOW_NS}),
    ("AWAKE", "the wake had no effect"): ([answered(Outcome.NO_EFFECT)], {}),
    ("UNMANAGED", "the wake had no effect"): ([answered(Outcome.NO_EFFECT)], {"distrust": "in vain", "retries": 1}),
    ("UNMANAGED", "the quarantine is over"): ([Counters(QUIET)], {"distrust": "lost", "due_ns": NOW_NS}),
    ("AWAKE", "stop"): ([Stop(), Stop("g")], {}),
    ("PARKED", "stop"): ([Stop(), Stop("g")], {"touched": True}),
    ("WAKING", "woken, while stopping"): ([answered(Outcome.WOKEN)], {"stopping": True}),
}


def rows() -> list[tuple[str, str, str, str]]:
    """Phase, seen, next and the rest of each line of the table."""
    table = re.findall(r"^    ([A-Z]+)  +(?:\* )?(\S.*?)  +([A-Z]+)(.*)$", governor.__doc__ or "", re.MULTILINE)
    return [(phase, seen, following, asks) for phase, seen, following, asks in table]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_table_in_the_docstring_is_true(row: tuple[str, str, str, str]) -> None:
    """Each row leads where it says and asks for what it says."""
    phase, seen, following, asks = row
    wanted = re.findall(r"\b(?:Arm|Look|Park|Wake|Reconcile|Alarm)\b", asks)
    observations, known = CASES[phase, seen]
    for observation in observations:
        gpu = GpuState(phase=Phase[phase], **known)
        answer = step(GovernorState({"g": gpu}, 10**12, -(10**12)), observation, NOW_NS, POLICY)
        assert answer.state.gpus["g"].phase is Phase[following]
        assert [type(action).__name__ for action in answer.actions] == wanted
        if "never parked again" in asks:
            assert answer.state.gpus["g"].distrust
            assert not answer.state.gpus["g"].trusted_again_ns
        if "in quarantine" in asks:
            assert answer.state.gpus["g"].trusted_again_ns == NOW_NS + POLICY.gpus["g"].retry_after_ns
        if "(due at once)" in asks:
            assert answer.state.gpus["g"].due_ns == NOW_NS


def test_every_case_is_in_the_table() -> None:
    """The table has exactly the rows that are tested, each once."""
    assert sorted((phase, seen) for phase, seen, _, _ in rows()) == sorted(CASES)


def test_start() -> None:
    """At the start every GPU is awake and looked at soon; one without a lever is left alone, with the reason."""
    policy = Policy({"g": GpuPolicy(frozenset({0})), "h": GpuPolicy(frozenset({0}))})
    state = initial(policy, NOW_NS, {"h": "vGPU guest"})
    assert public_state(state.gpus["g"]) is Public.AWAKE
    assert public_state(state.gpus["h"]) is Public.UNMANAGED
    for observation in (Counters(QUIET), HOLD, Doubt("overflow"), LeverResult("i", 0, Outcome.LOST), Stop()):
        answer = step(state, observation, NOW_NS, policy)
        assert not [action for action in answer.actions if getattr(action, "gpu", None) == "h"]


def test_public_words() -> None:
    """A hold shows unless the GPU is still down; distrust shows above all."""
    assert public_state(GpuState(phase=Phase.COOLING, holds={"operator": 1})) is Public.HELD
    assert public_state(GpuState(phase=Phase.PARKED)) is Public.PARKED
    assert public_state(GpuState(phase=Phase.WAKING, distrust="wedged", holds={"operator": 1})) is Public.UNMANAGED
    assert set(public.PUBLIC) == set(Phase)


def test_holds_end() -> None:
    """A hold keeps a GPU awake until it expires or is given back; giving back what was not held changes nothing."""
    state = step(initial(POLICY, NOW_NS), Hold("g", "operator", NOW_NS + 50), NOW_NS, POLICY).state
    answer = step(state, Counters(LIVE), NOW_NS + 45, POLICY)
    assert answer.deadline_ns == NOW_NS + 50
    assert public_state(answer.state.gpus["g"]) is Public.HELD
    answer = step(answer.state, Counters(LIVE), NOW_NS + 50, POLICY)
    assert public_state(answer.state.gpus["g"]) is Public.AWAKE
    assert step(answer.state, Unhold("g", "nobody"), NOW_NS + 51, POLICY).state == answer.state
    assert step(state, Unhold("g", "operator"), NOW_NS + 1, POLICY).state.gpus["g"].holds == {}


def test_errors_carry_their_hint() -> None:
    """A hint given with an error stands before the one of its kind."""
    from memscaler.core import errors

    assert errors.GpuPermission("refused", code=4).hint == "run as root, or grant CAP_SYS_ADMIN"
    assert errors.GpuError("no", code=3, hint="wait").hint == "wait"
    assert errors.GpuError("no", code=3).code == 3


@pytest.mark.parametrize(("idle_after_ns", "waits_ns"), [(3 * quiet.UNSURE_NS, quiet.UNSURE_NS), (50, 50)])
def test_an_answer_that_may_go_on_is_waited_for(idle_after_ns: int, waits_ns: int) -> None:
    """A touch that may have been the beginning of an answer: silence for a while, but never longer than after work."""
    policy = Policy({"g": GpuPolicy(frozenset({0}), idle_after_ns=idle_after_ns, touch_cooldown_ns=5)})
    now_ns = 10**12
    seen = Counters({0: Reading(0, 0, armed=False, last_touch_ns=now_ns, last_unsure_ns=now_ns)})
    state = GovernorState({"g": GpuState(phase=Phase.AWAKE)}, 10**15, 0)
    answer = step(state, seen, now_ns, policy)
    assert (answer.state.gpus["g"].phase, answer.state.gpus["g"].due_ns) == (Phase.COOLING, now_ns + waits_ns)
