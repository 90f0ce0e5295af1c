"""What other idle times would have saved: bounded, honest about what is not known, and near what really was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.cli.report import words
from memscaler.cli.report.gather import gather
from memscaler.cli.report.period import read_period
from memscaler.config.load import load
from memscaler.core.costs import ASSUMED, Costs, Outcome
from memscaler.core.summary import DAY_S
from memscaler.core.what_if import BINS_S, ENOUGH_GAPS, Verdict, distribution, what_if, within
from tests.report.conftest import NOW_S
from tests.report.recorded import Card, Recording, record, requests

A40 = Costs(80.0, 18.0, 0.3, 0.3, 25.0, "measured")
GAPS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.25, 1e6)), max_size=60)


def told(gaps, costs=A40, days=10.0, used_s=60.0, auto=None):
    return what_if(gaps, costs, days * DAY_S, Outcome(), used_s, auto)


@given(GAPS, st.sampled_from([None, 0.5, 10.0, 60.0, 777.0]))
def test_nobody_saves_more_than_who_knows_all(gaps, used_s):
    """Shares are at most 1; a longer idle time wakes no more often and parks no longer."""
    found = told(gaps, used_s=used_s)
    for row in found.rows:
        assert row.share is None or row.share <= 1 + 1e-9
        assert row.outcome.saved_j <= found.optimum.outcome.saved_j + 1e-6
    for shorter, longer in zip(found.rows, found.rows[1:], strict=False):
        assert shorter.idle_s < longer.idle_s
        assert shorter.outcome.wakes >= longer.outcome.wakes
        assert shorter.outcome.parked_s >= longer.outcome.parked_s
    assert (found.used is None) == (used_s is None)
    assert isinstance(words.advice_text(found), str)


def test_no_advice_without_data():
    """No gap, one gap, few gaps, few days: it says what is missing, and when there will be enough."""
    assert "no gap was recorded" in words.advice_text(told([]))
    one = told([(0.0, 5000.0)])
    assert one.advice.verdict is Verdict.TOO_LITTLE
    assert one.advice.wanted_gaps == ENOUGH_GAPS - 1
    few_days = told([(at * 100.0, 30.0) for at in range(100)], days=0.5)
    assert few_days.advice.verdict is Verdict.TOO_LITTLE
    assert "100 gaps in 12h are too little to advise from; enough in about 1d 12h" in words.advice_text(few_days)


def test_no_advice_from_assumed_watts():
    """What it saves in joules would be made up."""
    found = told([(at * 1000.0, 900.0) for at in range(100)], costs=ASSUMED)
    assert found.advice.verdict is Verdict.ASSUMED
    assert "calibrate" in words.advice_text(found)


def test_a_shorter_idle_time_is_advised_where_it_saves():
    """Gaps of 90 s: a minute's wait leaves a third of them."""
    found = told([(at * 100.0, 90.0) for at in range(1000)])
    assert found.advice.verdict is Verdict.CHANGE
    assert found.advice.better.idle_s == 1.0
    assert words.advice_text(found).startswith("1s instead of 60s: ")
    assert words.advice_text(found).endswith("more saved, as many wakes")


def test_a_longer_idle_time_is_advised_where_it_spares_wakes():
    """Most gaps of 6 s are worth nearly nothing, and cost a wake each: 10 s save as much with a tenth of the wakes."""
    gaps = [(at * 1000.0, 6.0) for at in range(900)] + [(at * 1000.0 + 500, 4000.0) for at in range(100)]
    found = told(gaps, used_s=5.0)
    assert found.advice.verdict is Verdict.CHANGE
    assert found.advice.better.idle_s > 5.0
    assert found.advice.more_wakes == pytest.approx(-90.0)
    assert "fewer wakes a day" in words.advice_text(found)


def test_what_is_good_is_left_alone():
    """Hours of silence: 60 s or 5 s make no difference."""
    found = told([(at * 9000.0, 8000.0) for at in range(100)])
    assert found.advice.verdict is Verdict.KEEP
    assert words.advice_text(found) == "no idle time is known that is better than 60s"


def test_nothing_to_gain():
    """No gap pays for its wake: then nobody saves anything, and nobody divides by it."""
    found = told([(float(at), 0.3) for at in range(100)])
    assert found.advice.verdict is Verdict.NOTHING
    assert all(row.share is None for row in found.rows)


def test_the_model_of_the_timer_that_was_used_is_what_was_measured(tmp_path, zone):
    """A week by the real writer: what its gaps say about 60 s is what its hours say."""
    zone("UTC")
    start_s, recording, card = NOW_S - 7 * DAY_S, Recording(), Card(noise_w=0.0)
    record(recording, card, requests(start_s, NOW_S), NOW_S, idle_after_s=60.0, lasts=True)
    recording.write(tmp_path, {card.uuid: (start_s, NOW_S)})
    (gpu,) = gather(tmp_path, [], read_period("7d", NOW_S), None).gpus
    found = gpu.what_if
    assert found.costs.source == "observed"
    assert found.used is not None
    assert found.used.idle_s == 60.0
    assert found.used.outcome.saved_j == pytest.approx(found.was.outcome.saved_j, rel=0.01)
    assert found.used.outcome.wakes == pytest.approx(found.was.outcome.wakes, abs=1)
    assert found.used.outcome.parked_s == pytest.approx(found.was.outcome.parked_s, rel=0.001)
    assert sum(length_s for _, length_s in gpu.gaps) == pytest.approx(gpu.total.quiet_s, rel=0.001)


def test_auto_goes_by_the_configuration(tmp_path, zone):
    """The limit of wakes that a daemon would keep: that of the GPU goes before the general one."""
    zone("UTC")
    start_s, recording, card = NOW_S - DAY_S, Recording(), Card(noise_w=0.0)
    work = [(start_s + 60 * number, start_s + 60 * number + 20) for number in range(1440)]
    record(recording, card, work, NOW_S, idle_after_s=5.0)
    recording.write(tmp_path, {card.uuid: (start_s, NOW_S)})
    config = tmp_path / "config.toml"

    def wakes_a_day(text: str) -> float:
        config.write_text(text)
        settings = load({}, {}, config)
        (gpu,) = gather(tmp_path, [], read_period("2d", NOW_S), None, settings).gpus
        auto = gpu.what_if.rows[-1]
        assert auto.name == "auto"
        return auto.a_day(auto.outcome.wakes)

    few = f"[gpu.gpu{card.index}]\nwakes_per_hour = 4\n"
    assert wakes_a_day("wakes_per_hour = 120\n") > 1000
    assert wakes_a_day("wakes_per_hour = 120\n" + few) < 100


@given(GAPS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_gaps_are_cut_off_at_the_period(gaps, start_s, length_s):
    """What is left lies in it."""
    for at_s, left_s in within(gaps, start_s, start_s + length_s):
        assert start_s <= at_s <= at_s + left_s <= start_s + length_s + 1e-6


@given(GAPS)
def test_every_gap_is_in_one_bin(gaps):
    """Counts and seconds add up."""
    found = distribution(gaps)
    assert [*found] == [float(least_s) for least_s in BINS_S]
    assert sum(count for count, _ in found.values()) == len(gaps)
    assert sum(together for _, together in found.values()) == pytest.approx(sum(length for _, length in gaps))
