"""What a kilowatt hour costs, as people write it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.cli.report.price import read_price
from memscaler.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "per_kwh", "currency", "written"),
    [
        ("0.30", 0.3, "", "0.30/kWh"),
        ("0.30/kWh", 0.3, "", "0.30/kWh"),
        ("0.30 EUR/kWh", 0.3, "EUR", "0.30 EUR/kWh"),
        ("0.30EUR / kwh", 0.3, "EUR", "0.30 EUR/kWh"),
        ("$0.12", 0.12, "$", "0.12 $/kWh"),
        ("€0.30/kWh", 0.3, "€", "0.30 €/kWh"),
        (" 30 ct/kWh ", 30.0, "ct", "30 ct/kWh"),
        ("0", 0.0, "", "0/kWh"),
    ],
)
def test_what_is_a_price(text, per_kwh, currency, written):
    """The amount, its label, and how it is written again."""
    price = read_price(text)
    assert (price.per_kwh, price.currency, str(price)) == (per_kwh, currency, written)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no price"),
        ("free", "no price"),
        ("-0.30", "no price"),
        ("0,30", "no price"),
        ("0.3 EUR/MWh", "no price"),
        ("1e3", "no price"),
        ("inf", "no price"),
        ("0.3.1", "no price"),
        ("٣", "no price"),
        ("$0.30 EUR", "two currencies"),
        ("30 kWh", "energy"),
        ("99999999", "more than"),
        ("0.30 EUR\x1b[31m", "no price"),
    ],
)
def test_what_is_none(text, says):
    """The message says why, the hint how to write it."""
    with pytest.raises(UsageError, match=says) as caught:
        read_price(text)
    assert "0.30 EUR/kWh" in caught.value.hint


def test_a_comma_is_named():
    """Half of the world writes one."""
    with pytest.raises(UsageError) as caught:
        read_price("0,30 EUR/kWh")
    assert "no comma" in caught.value.hint


def test_sums():
    """A kilowatt hour costs its price, and small sums keep their digits."""
    price = read_price("0.30 EUR/kWh")
    assert price.text(3.6e6) == "0.30 EUR"
    assert price.text(3.6e4) == "0.0030 EUR"
    assert price.text(0.0) == "0.00 EUR"
    assert price.text(-3.6e6) == "-0.30 EUR"


@given(st.text(max_size=20))
def test_any_text_is_a_price_or_an_error(text):
    """Nothing else is raised, and what is a price is finite."""
    with contextlib.suppress(UsageError):
        assert 0 <= read_price(text).per_kwh <= 1e6
