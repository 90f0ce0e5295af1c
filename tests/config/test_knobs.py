"""What people write for a knob's value, and what is written back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.amounts import bytes_text
from memscaler.config.knobs import parsed, spoken
from memscaler.core.gpuctl import NO_LIMIT, Knob
from memscaler.core.knobs import DEFAULTS, RANGES

GIB = 1 << 30


@pytest.mark.parametrize(
    ("knob", "raw", "value"),
    [
        (Knob.COMPUTE_PRIORITY, "0", 0),
        (Knob.COMPUTE_PRIORITY, 15, 15),
        (Knob.COMPUTE_FREEZE, "on", 1),
        (Knob.COMPUTE_FREEZE, "0", 0),
        (Knob.CPU_NICE, "-20", -20),
        (Knob.CPU_NICE, "+19", 19),
        (Knob.CPU_WEIGHT, "10000", 10000),
        (Knob.MEMORY_LIMIT, "max", NO_LIMIT),
        (Knob.MEMORY_LIMIT, "18446744073709551615", NO_LIMIT),
        (Knob.MEMORY_LIMIT, "6G", 6 * GIB),
        (Knob.MEMORY_LIMIT, "0", 0),
    ],
)
def test_values(knob, raw, value):
    """The ends of each range."""
    assert parsed(knob, raw) == value


@pytest.mark.parametrize(
    ("knob", "raw"),
    [
        (Knob.COMPUTE_PRIORITY, "16"),
        (Knob.COMPUTE_PRIORITY, "-1"),
        (Knob.COMPUTE_PRIORITY, "high"),
        (Knob.COMPUTE_FREEZE, "2"),
        (Knob.CPU_NICE, "20"),
        (Knob.CPU_NICE, "-21"),
        (Knob.CPU_WEIGHT, "0"),
        (Knob.MEMORY_LIMIT, "18446744073709551616"),
        (Knob.MEMORY_LIMIT, "0x10"),
        (Knob.MEMORY_LIMIT, "-1"),
        (Knob.CPU_WEIGHT, True),
        (Knob.CPU_WEIGHT, "9" * 5000),
    ],
)
def test_what_is_out_of_range(knob, raw):
    """The range is told."""
    with pytest.raises(ValueError, match=r"whole number from|neither 0 nor 1|amount of memory|more than"):
        parsed(knob, raw)


def test_the_priority_beyond_the_readme():
    """GVM's code takes 16; it has to be asked for."""
    assert parsed(Knob.COMPUTE_PRIORITY, "16", beyond=True) == 16
    with pytest.raises(ValueError, match="lower is higher priority"):
        parsed(Knob.COMPUTE_PRIORITY, "17", beyond=True)


def test_defaults_are_in_range():
    """What a reset writes can be written."""
    for knob, value in DEFAULTS.items():
        lowest, highest = RANGES[knob]
        assert lowest <= value <= highest
        assert parsed(knob, value) == value


@given(st.integers(0, NO_LIMIT))
def test_every_number_of_bytes_comes_back(count):
    """Also those that a float would round."""
    assert parsed(Knob.MEMORY_LIMIT, str(count)) == parsed(Knob.MEMORY_LIMIT, count) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (17, "17 B"), (4096, "4 KiB"), (6 * GIB, "6 GiB"), (3 * GIB // 2, "1.5 GiB"), (NO_LIMIT, "max")],
)
def test_amounts_for_people(count, text):
    """In the largest unit."""
    assert bytes_text(count) == spoken(Knob.MEMORY_LIMIT, count) == text
