"""What a kilowatt hour costs: AMOUNT, with a currency before or behind it and "/kWh" at the end, as one likes.

    0.30    0.30/kWh    0.30 EUR/kWh    $0.12    30 ct/kWh

The currency is a label: it is written behind every sum, and nothing is converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memscaler.core.errors import UsageError
from memscaler.core.text import JOULES_PER_WH, WH_PER_KWH

HIGHEST = 1e6
_LABEL = r"[^\W\d_]{1,8}|[$\u00a2\u00a3\u00a5\u20a0-\u20cf]"
_PRICE = re.compile(rf"({_LABEL})?\s*([0-9]+(?:\.[0-9]+)?)\s*({_LABEL})?\s*(/\s*kwh)?", re.IGNORECASE)
_HINT = "write 0.30, 0.30/kWh, 0.30 EUR/kWh or '$0.12/kWh'"
_CENT = 0.1  # smaller sums get more digits


@dataclass(frozen=True, slots=True)
class Price:
    """Of a kilowatt hour. amount: as it was written. currency: "" if none was named."""

    amount: str
    currency: str = ""

    @property
    def per_kwh(self) -> float:
        """As a number."""
        return float(self.amount)

    def cost(self, joules: float) -> float:
        """In the currency."""
        return joules / JOULES_PER_WH / WH_PER_KWH * self.per_kwh

    def text(self, joules: float) -> str:
        """For example "1.24 EUR", "0.0031"."""
        amount = self.cost(joules)
        digits = 2 if abs(amount) >= _CENT or not amount else 4
        return f"{amount:.{digits}f} {self.currency}".rstrip()

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}".rstrip() + "/kWh"


def read_price(text: str) -> Price:
    """Raise UsageError."""
    found = _PRICE.fullmatch(text.strip())
    if found is None:
        comma = re.fullmatch(r"\D*[0-9]+,[0-9]+\D*", text)
        raise UsageError(
            f"--price: {text!r} is no price of a kWh", hint=f"a point, no comma; {_HINT}" if comma else _HINT
        )
    before, amount, behind, _ = found.groups()
    if before and behind:
        raise UsageError(f"--price: {text!r} names two currencies", hint=_HINT)
    currency = before or behind or ""
    if currency.lower() in ("kwh", "wh", "mwh"):
        raise UsageError(f"--price: {text!r} is an amount of energy", hint=_HINT)
    if not float(amount) <= HIGHEST:
        raise UsageError(f"--price: {text!r} is more than {HIGHEST:g} per kWh", hint=_HINT)
    return Price(amount, currency)
