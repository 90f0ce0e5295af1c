"""What was measured, as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memscaler.cli.calibrate.plot import curve_w
from memscaler.cli.output import INDENT, WIDTH, columns, labelled, plain
from memscaler.cli.top.history import BARS, sparkline
from memscaler.core.calibration import AVERAGE, Calibration, Round, Spread

if TYPE_CHECKING:  # these open the driver's binding; `--help` shall not
    from memscaler.daemon.calibrate.measure import Result

NONE = "-"
FEW_S = 0.1  # a time below it is told in milliseconds
Row = tuple[str, str, str, str]


def document(result: Result) -> dict[str, object]:
    """One GPU. What could not be measured is null."""
    who, known = result.identity, result.calibration
    told: dict[str, object] = {
        "gpu": f"gpu{who.index}",
        "uuid": who.uuid,
        "name": who.name,
        "ok": not result.problem,
        "problem": result.problem,
        "remedy": result.remedy,
        "clients_looked_for": result.clients_looked_for,
        "calibration": None,
    }
    if known is not None:
        costs = known.costs() if known.rounds else None
        measured = costs is not None and costs.source == "measured"
        told["calibration"] = {
            **dataclasses.asdict(known),
            "spared_w": costs.spared_w if costs and measured else None,
            "slow_s": costs.slow_s if costs else None,
            "break_even_s": costs.break_even_s if costs and measured and costs.spared_w else None,
        }
    return told


def text(result: Result) -> str:
    """One GPU: a table, what it means, and what is wrong."""
    who, known = result.identity, result.calibration
    lines = [f"gpu{who.index}  {plain(who.name)}"]
    if known is not None:
        if known.rounds:
            at = f"P{known.target}" if known.lever == "pstate" else f"{known.target} MHz"
            rounds = f"{known.rounds} round{'s' * (known.rounds != 1)}"
            lines[0] += f", {known.lever} at {at}, {rounds}"
        lines += [INDENT + line for line in columns(_rows(known)).splitlines()]
        lines += _sketch(result.last)
        if meaning := _meaning(known):
            lines += textwrap.wrap(meaning, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    if result.clients_looked_for is False:
        lines += labelled("no watched port is known:", "clients were not looked for; name it: --port 8080:gpu0")
    lines += labelled("NOT MEASURED:" if known is None else "NOT ALL:", plain(result.problem))
    lines += labelled("->", plain(result.remedy) if result.problem else "")
    return "\n".join(lines)


def _rows(known: Calibration) -> Sequence[Row]:
    bare = NONE if known.bare_w is None else f"{known.bare_w:.1f} W"
    when = "stop the server and run again"
    if known.bare_unix_s is not None:
        when = f"no process has a context; {time.strftime('%Y-%m-%d', time.localtime(known.bare_unix_s))}"
    rows: list[Row] = [("bare", bare, "", when)]
    if not known.rounds:
        return rows
    power = "" if known.power_source != AVERAGE else " (1 s average)"
    error = "" if known.switch_error_j is None else f"+- {known.switch_error_j:.1f} J"
    switch = NONE if known.switch_j is None else f"{max(0.0, known.switch_j.median):.1f} J"
    back = known.back_s or known.up_s
    return [
        ("awake", *_watts(known.awake_w), "quiet, with a model loaded"),
        ("parked", *_watts(known.parked_w), ""),
        *rows,
        ("park", *_times(known.down_s), "until its clocks are down"),
        ("", *_times(known.settled_s), f"until its power settles{power}"),
        ("wake", *_times(back), "until its clocks are back" if known.back_s else "until its clocks rise"),
        ("switch", switch, error, "a park and its wake, beyond parked"),
    ]


def _watts(of: Spread | None) -> tuple[str, str]:
    return (NONE, "") if of is None else (f"{of.median:.1f} W", f"{of.low:.1f} to {of.high:.1f}")


def _times(of: Spread | None) -> tuple[str, str]:
    return (NONE, "") if of is None else (_time(of.median), _range(_time(of.low), _time(of.high)))


def _range(low: str, high: str) -> str:
    """For example "20 to 23 ms", "0.9 ms to 1.2 s"."""
    number, unit = low.split(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def _time(seconds: float) -> str:
    """For example "0.4 ms", "12 ms", "1.2 s"."""
    if seconds >= 10 * FEW_S:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= FEW_S / 10 else f"{seconds * 1000:.1f} ms"


def _sketch(shown: Round | None) -> list[str]:
    """The power of the last round as bars."""
    if shown is None or not any(each.power_w for each in shown.samples):
        return []
    powers = curve_w(shown)
    encoding = (sys.stdout.encoding or "ascii").lower()
    can = encoding.startswith("utf") and bool(BARS)
    highest = max(power or 0.0 for power in powers)
    bars = sparkline(powers, len(powers), highest=highest, unicode=can)
    took_s = shown.samples[-1].at_s - shown.samples[0].at_s
    return [f"{INDENT}{bars}  {highest:.0f} W, {took_s:.0f} s"]


def _meaning(known: Calibration) -> str:
    """What it is good for."""
    costs = known.costs()
    if not known.rounds:
        return ""
    exact = "" if known.resolution_s is None else f" (looked at every {_time(known.resolution_s)} or more often)"
    wake = f"A wake costs the first answer about {_time(costs.slow_s)}{exact}."
    if costs.source != "measured":
        return f"{wake} Its power cannot be read, so what a park saves cannot be told."
    if known.awake_w is None or known.parked_w is None or known.awake_w.median - known.parked_w.median < 1:
        return f"{wake} Parking spares less than a watt here."
    spares = f"Parking spares {costs.spared_w:.0f} W. Its break-even in energy is a silence of {_break_even(known)}"
    return f'{spares}; idle_after = "auto" counts the price of waiting, too. {wake}'


def _break_even(known: Calibration) -> str:
    """In energy alone: no wake is said to cost what it is not known to cost."""
    costs, error_j = known.costs(), known.switch_error_j or 0.0
    if costs.switch_j > error_j:
        return _time(costs.break_even_s)
    return f"less than about {_time((costs.switch_j + error_j) / costs.spared_w)}"
