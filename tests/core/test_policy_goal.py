"""The goal of idle_after = "auto", on a part of the traces of bench/policy: `make policy` replays them all."""

from __future__ import annotations

import pytest

from bench.policy.policies import AUTO, OFFLINE, RIVAL, judge, ways
from bench.policy.traces import Trace, azure, daily, synthetic

TRACES = {
    "conv 4/h": lambda: azure("conv", 1.0, 4.0, 1000),
    "conv 12/h": lambda: azure("conv", 0.1, 12.0, 300),
    "conv 30/h": lambda: azure("conv", 1.0, 30.0, 500),
    "code 12/h": lambda: azure("code", 1.0, 12.0, 300),
    "code 30/h": lambda: azure("code", 0.1, 30.0, 400),
    "conv 30/h, held out": lambda: azure("conv", 0.5, 30.0, 400, seed=7, after=0.6),
    "home": lambda: synthetic("home (synthetic), 8-23 h", 6, 8, 23, 8),
}


@pytest.mark.parametrize("name", TRACES)
def test_the_goal(name):
    """95 % of what could be saved, with fewer wakes than a timer of 5 s."""
    trace: Trace = TRACES[name]()
    found = judge(trace, timers=False)
    assert found.within_reach, "no timer can: choose another trace"
    assert found.met, (found.share(AUTO), found.wakes_ratio(AUTO), found.why)


def test_where_no_timer_can():
    """Dense traffic: it does not pretend, and still saves more than the rival."""
    found = judge(azure("conv", 1.0, 60.0, 400), timers=False)
    assert not found.within_reach
    assert found.share(AUTO) > found.share(RIVAL)


def test_the_hour_pays():
    """Days and nights that differ, and gaps that say little about the next: parted by the hour much more is saved."""
    trace = daily("10 s by day, 15% of them and the nights 60 s", 10, 60, 0.15, 3000)
    found = ways(trace, "RTX 3090")
    possible_j = found[OFFLINE].saved_j
    assert found["by the hour too"].saved_j > found["by spells too"].saved_j + 0.05 * possible_j
