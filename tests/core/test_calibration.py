"""Figures out of samples: what a made-up GPU is known to do is found, however it is sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.calibration import (
    AVERAGE,
    INSTANT,
    Calibration,
    Marks,
    Sample,
    Spread,
    measured,
    spread,
    summary,
)
from memscaler.core.costs import ASSUMED

ABOUT = Calibration("GPU-1", "made up", 1e9, "0", "550.1", "memory-clock", 405, power_source=INSTANT)
HOLD_S, CALM_S = 4.0, 2.0


def watts_at(at_s: float, marks: Marks, awake_w: float, parked_w: float) -> float:
    return parked_w if marks.down_s <= at_s < marks.up_s else awake_w


def energy_at(at_s: float, marks: Marks, awake_w: float, parked_w: float) -> float:
    """Joules from time 0 on, to the millijoule as NVML counts them."""
    parked_s = min(max(at_s, marks.down_s), marks.up_s) - marks.down_s
    return round(awake_w * (at_s - parked_s) + parked_w * parked_s, 3)


def marks_of(down_s: float, up_s: float) -> Marks:
    park_s, wake_s = 2.0, 2.0 + down_s + HOLD_S
    back_s = wake_s + up_s
    return Marks(park_s, park_s + down_s, wake_s, back_s, back_s, back_s + HOLD_S, CALM_S, 0.001)


def samples_of(marks: Marks, awake_w: float, parked_w: float, every_s: float, *, counter: bool) -> list[Sample]:
    times_s = [index * every_s for index in range(int(marks.end_s / every_s) + 2)]
    return [
        Sample(
            at_s,
            watts_at(at_s, marks, awake_w, parked_w),
            energy_at(at_s, marks, awake_w, parked_w) if counter else None,
        )
        for at_s in times_s
    ]


@given(
    st.floats(0.001, 2.0),
    st.floats(0.001, 2.0),
    st.floats(5.0, 400.0),
    st.floats(0.0, 1.0),
    st.floats(0.01, 0.1),
    st.booleans(),
)
def test_the_truth_is_found(
    down_s: float, up_s: float, awake_w: float, share: float, every_s: float, counter: bool
) -> None:
    """Watts exactly, the joules of the switch within what is said of them."""
    marks, parked_w = marks_of(down_s, up_s), awake_w * share
    found = measured(samples_of(marks, awake_w, parked_w, every_s, counter=counter), marks)
    assert (found.awake_w, found.parked_w) == (awake_w, parked_w)
    assert found.switch_j is not None
    told = summary([found], ABOUT)
    assert told.switch_error_j is not None
    assert abs(found.switch_j - (awake_w - parked_w) * down_s) <= told.switch_error_j + 0.01
    costs = told.costs()
    assert (costs.awake_w, costs.parked_w, costs.source) == (awake_w, parked_w, "measured")
    assert (costs.settle_s, costs.slow_s) == (pytest.approx(down_s), pytest.approx(up_s))
    assert costs.switch_j >= 0


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=9))
def test_spread(values: list[float | None]) -> None:
    """The median is one of them, and between the ends."""
    known = [value for value in values if value is not None]
    found = spread(values)
    assert (found is None) == (not known)
    if found is not None:
        assert found.median in known
        assert (found.low, found.high) == (min(known), max(known))


def test_a_counter_that_moves_ten_times_a_second() -> None:
    """It stands still between two of its steps: only when it moves it tells something."""
    marks = marks_of(0.5, 0.3)
    samples = [
        replace(each, energy_j=energy_at(int(each.at_s * 10) / 10, marks, 80.0, 18.0))
        for each in samples_of(marks, 80.0, 18.0, 0.01, counter=True)
    ]
    told = summary([measured(samples, marks)], ABOUT)
    assert told.switch_j is not None
    assert told.switch_error_j is not None
    assert abs(told.switch_j.median - 31.0) <= told.switch_error_j < 8.0


def test_a_counter_that_falls_tells_nothing() -> None:
    """The driver was reloaded in between: no joules, the watts all the same."""
    marks = marks_of(0.5, 0.3)
    samples = samples_of(marks, 80.0, 18.0, 0.02, counter=True)
    samples = [replace(each, energy_j=(each.energy_j or 0.0) - (600.0 if each.at_s > 5 else 0.0)) for each in samples]
    told = summary([measured(samples, marks)], ABOUT)
    assert (told.switch_j, told.switch_error_j, told.awake_w) == (None, None, Spread(80.0, 80.0, 80.0))
    assert told.costs().source == "assumed"


def test_nothing_but_clocks() -> None:
    """A card that tells no power: times, and assumed watts."""
    marks = marks_of(0.5, 0.3)
    told = summary([measured([Sample(at_s / 10) for at_s in range(120)], marks)], ABOUT)
    assert (told.awake_w, told.parked_w, told.switch_j, told.settled_s) == (None, None, None, None)
    costs = told.costs()
    assert (costs.source, costs.awake_w, costs.settle_s, costs.slow_s) == (
        "assumed",
        ASSUMED.awake_w,
        pytest.approx(0.5),
        pytest.approx(0.3),
    )


def test_a_wake_that_takes_more_than_the_work_after_it() -> None:
    """It is part of the price; one that takes less is not credited."""
    marks = marks_of(0.5, 1.0)
    plain = samples_of(marks, 80.0, 18.0, 0.01, counter=False)
    surging = [replace(each, power_w=180.0) if marks.up_s <= each.at_s < marks.up_s + 0.5 else each for each in plain]
    price_j = [measured(samples, marks).switch_j for samples in (plain, surging)]
    assert price_j[0] == pytest.approx(31.0, abs=1.0)
    # 62 J less until the clocks were back, then 50 J more: what is over counts, and here nothing is
    assert price_j[1] == pytest.approx(31.0, abs=1.0)
    quicker = replace(marks, up_s=marks.wake_s + 0.1, back_s=marks.wake_s + 0.1)
    surging = [
        replace(each, power_w=180.0) if quicker.up_s <= each.at_s < quicker.up_s + 0.5 else each
        for each in samples_of(quicker, 80.0, 18.0, 0.01, counter=False)
    ]
    assert measured(surging, quicker).switch_j == pytest.approx(31.0 + 50.0 - 6.2, abs=2.0)


def test_the_uncertainty_knows_of_averages() -> None:
    """Joules from power readings that may be averages over a second are that uncertain."""
    marks = marks_of(0.5, 0.3)
    found = measured(samples_of(marks, 80.0, 18.0, 0.02, counter=False), marks)
    now, averaged = summary([found], ABOUT), summary([found], replace(ABOUT, power_source=AVERAGE))
    assert now.switch_error_j is not None
    assert averaged.switch_error_j == pytest.approx(now.switch_error_j + 62.0)


def test_power_that_comes_up_again() -> None:
    """Settled is what stays so until the wake."""
    marks = marks_of(0.1, 0.1)
    samples = samples_of(marks, 80.0, 18.0, 0.02, counter=False)
    late_s = marks.down_s + 1.0
    swinging = [replace(each, power_w=60.0) if late_s < each.at_s < late_s + 0.2 else each for each in samples]
    settled_s = measured(swinging, marks).settled_s
    assert settled_s == pytest.approx(late_s + 0.2 - marks.park_s, abs=0.03)
