"""Figures and sentences of a report, as its text and its page both write them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from memscaler.cli.output import plain, span
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.core.costs import Costs
from memscaler.core.model import Public
from memscaler.core.summary import HOUR_S, Latency, Sums
from memscaler.core.text import fine_energy as energy
from memscaler.core.what_if import Row, Verdict, WhatIf

NONE = "-"
FRESH_S = 60.0  # a record that is not older is of now
MONTHS_FROM_DAYS = 46  # so many days or more are told by month
_MONTH = len("2026-11")
OPTIMUM = "at best"
OPTIMUM_IS = "at best: parks at once, and only where it pays, for it knows beforehand how long a gap will be"
CALIBRATE = "`memscaler calibrate` measures it"
COSTS = {
    "measured": "measured by `memscaler calibrate`",
    "observed": f"observed while governing; what a switch costs is assumed, {CALIBRATE}",
    "assumed": f"assumed: nothing is known of this GPU yet, {CALIBRATE}",
}


def rows_of(names: Sequence[str], days: Sequence[Sums]) -> list[tuple[str, Sums]]:
    """A row for each day, or for each month of a long period; none for those before and after all records."""
    from memscaler.core.summary import add

    both = list(zip(names, days, strict=True))
    if by_month(names):
        months = sorted({name[:_MONTH] for name in names})
        both = [(month, add(sums for name, sums in both if name.startswith(month))) for month in months]
    return [(name, sums) for name, sums in both if sums.recorded_s or some(sums.unrecorded_s)]


def by_month(names: Sequence[str]) -> bool:
    """Whether the rows are months."""
    return len(names) >= MONTHS_FROM_DAYS


def moment(unix_s: float) -> str:
    """In local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


def until_text(report: Report) -> str:
    """How old the youngest record is; "" if it is of this minute."""
    until_s, end_s = report.recorded_until_unix_s, report.period.end_unix_s
    if until_s is None or end_s - until_s <= FRESH_S:
        return ""
    told, now = moment(until_s), moment(end_s)
    told = told.rpartition(" ")[2] if told.split()[0] == now.split()[0] else told
    return f"recorded until {told}: the daemon writes every ten minutes, and when it ends"


def before_text(report: Report, gpu: GpuReport) -> str:
    """Since when there are records, if that is not all the period."""
    late = gpu.first_unix_s >= report.period.start_unix_s + HOUR_S
    return f"none before {moment(gpu.first_unix_s)}" if late else ""


def ends_text(gpu: GpuReport) -> str:
    """The ends of parks that are no wakes."""
    return ", ".join(f"{count} by {plain(reason) or 'nobody knows what'}" for reason, count in gpu.other_ends.items())


def of_all(latency: Latency | None, wakes: int) -> str:
    """What the times of wakes are of, if not of all of them."""
    return f", known of {latency.count} of {wakes}" if latency is not None and latency.count < wakes else ""


def times_of(rows: Sequence[tuple[str, Sums]]) -> Callable[[float], str]:
    """How to write the times of a table: in hours, or where all are shorter than one as "2m 29s"."""
    return hours if any(sums.recorded_s >= HOUR_S for _, sums in rows) else span


def counted(number: int, what: str) -> str:
    """For example "1 gap", "2 gaps"."""
    return f"{number} {what}" + "s" * (number != 1)


def used(sums: Sums) -> str:
    """The energy that was used; "-" if nobody knows."""
    return NONE if sums.energy_j is None else energy(sums.energy_j)


def signed(joules: float) -> str:
    """Energy that may be negative: a park can cost."""
    return f"-{energy(-joules)}" if joules < 0 and energy(-joules) != energy(0.0) else energy(abs(joules))


def hours(seconds: float) -> str:
    """For example "23.9"; "0" for none at all."""
    return f"{seconds / HOUR_S:.1f}" if seconds else "0"


def some(seconds: float) -> bool:
    """Whether it shows in hours."""
    return seconds / HOUR_S >= 0.05  # noqa: PLR2004  # less is written as 0.0


def percent(ratio: float | None) -> str:
    """For example "93 %". What is not all is not 100 %."""
    if ratio is None:
        return NONE
    return "99 %" if 0.99 < ratio < 0.995 else f"{round(ratio * 100):d} %"  # noqa: PLR2004


def brief(seconds: float) -> str:
    """A short time: "0.35 ms", "1.2 s"."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s" if seconds < 10 else span(seconds)  # noqa: PLR2004


def latency_text(latency: Latency | None, wakes: int) -> str:
    """From the connection to the end of the driver call. wakes: how many there were."""
    if latency is None:
        return ""
    three = f"{brief(latency.median_s)} median, {brief(latency.p99_s)} p99, {brief(latency.worst_s)} worst"
    return f"{three}{of_all(latency, wakes)} (from the connection until the driver has woken the GPU)"


def saved_text(report: Report) -> str:
    """How much, how sure, what part of what would have been used."""
    saved_j, text = report.total.saved_j, f"{signed(report.total.saved_j)} ± {energy(report.margin_j)}"
    if report.total.energy_j and saved_j > 0:
        text += f", {percent(saved_j / (saved_j + report.total.energy_j))} of what it would have been"
    return text


def cost_text(report: Report) -> str:
    """In money; "" without a price."""
    price, total = report.price, report.total
    if price is None:
        return ""
    used = f", {price.text(total.energy_j)} used" if total.energy_j is not None else ""
    return f"{price.text(total.saved_j)} saved{used}, at {price}"


def quiet_text(sums: Sums) -> str:
    """The share of the quiet time that was parked."""
    if sums.parked_ratio is None:
        return ""
    return f"{span(sums.state_s[Public.PARKED])}, {percent(sums.parked_ratio)} of the quiet time"


def is_known(gpu: GpuReport) -> bool:
    """Whether anything was recorded of it in this time."""
    return bool(gpu.total.recorded_s or gpu.gaps)


# ---- a GPU ----------------------------------------------------------------------------------------------------------


def ground_text(gpu: GpuReport) -> str:
    """What the saving rests on."""
    ground = gpu.ground
    if not ground.parks:
        return "nothing was parked"
    if ground.baseline_w is None:
        return f"none of {ground.parks} parks has a baseline: no saving is claimed"
    spread = f"half of them {ground.low_w:.1f} to {ground.high_w:.1f} W"
    text = f"{ground.baseline_w:.1f} W before a park in the median ({spread})"
    if ground.based < ground.parks:
        text += f"; {ground.parks - ground.based} of {ground.parks} parks have none and claim nothing"
    how = {"counter": "the card's counter", "integrated": "power readings"}
    sources = " and ".join(how.get(source, plain(source)) for source in gpu.sources)
    return f"{text}; energy by {sources}" if sources else text


def unknown_text(sums: Sums) -> str:
    """What the figures lack."""
    parts = []
    if some(sums.unrecorded_s):
        parts.append(f"no record of {span(sums.unrecorded_s)}, in which no daemon governed it")
    if some(sums.unknown_s):
        parts.append(f"the energy of {span(sums.unknown_s)} is not known")
    return "; ".join(parts)


# ---- what if --------------------------------------------------------------------------------------------------------


def policy(row: Row) -> str:
    """For example "10s", "auto"."""
    from memscaler.config.values import write_duration

    return row.name or write_duration(row.idle_s or 0.0)


def advice_text(found: WhatIf) -> str:
    """One sentence."""
    advice = found.advice
    match advice.verdict:
        case Verdict.CHANGE if advice.better is not None and found.used is not None:
            return f"{policy(advice.better)} instead of {policy(found.used)}: {_difference(found)}"
        case Verdict.KEEP if found.used is not None:
            return f"no idle time is known that is better than {policy(found.used)}"
        case Verdict.NOTHING:
            return "parking could not have saved anything: no gap was long enough to pay for its wake"
        case Verdict.ASSUMED:
            return f"none: the watts of this GPU are not known yet; {CALIBRATE}"
    return _too_little(found)


def _difference(found: WhatIf) -> str:
    more, wakes = found.advice.more_ratio, found.advice.more_wakes
    saved = "as much saved" if abs(more) < 0.005 else f"{percent(abs(more))} {'more' if more > 0 else 'less'} saved"  # noqa: PLR2004
    if more == float("inf"):
        saved = "saves something"
    many = f"{abs(wakes):.0f}" if abs(wakes) >= 1 else f"{abs(wakes):.1f}"
    if float(many) == 0:
        return f"{saved}, as many wakes"
    return f"{saved}, {many} {'more' if wakes > 0 else 'fewer'} wakes a day"


def _too_little(found: WhatIf) -> str:
    advice, verb = found.advice, "is" if found.gaps == 1 else "are"
    have = f"{counted(found.gaps, 'gap')} in {span(found.recorded_s)} {verb} too little to advise from"
    if not advice.wanted_s and not advice.wanted_gaps:
        return "none yet: nothing was parked in this time"
    if found.gaps == 0:
        return "none yet: no gap was recorded in this time"
    rate = found.recorded_s / found.gaps
    wait_s = max(advice.wanted_s, advice.wanted_gaps * rate)
    return f"none yet: {have}; enough in about {span(wait_s)}"


def has_table(found: WhatIf) -> bool:
    """Whether there is enough to say what it would be in a day."""
    return bool(found.gaps) and found.recorded_s >= HOUR_S


def costs_text(costs: Costs) -> str:
    """What the table is calculated from."""
    figures = f"{costs.awake_w:.1f} W awake and quiet, {costs.parked_w:.1f} W parked, {costs.switch_j:.0f} J a wake"
    return f"{figures} ({COSTS.get(costs.source, plain(costs.source))})"


def compared(found: WhatIf) -> list[tuple[str, Row]]:
    """All rows with their names: the timers, auto, what was, the optimum."""
    named = [(policy(row) + (" (used)" if row is found.used else ""), row) for row in found.rows]
    return [*named, ("as it was", found.was), (OPTIMUM, found.optimum)]


def figures(row: Row) -> tuple[str, str, str, str]:
    """Saved a day, share of the possible, wakes a day, seconds of slowed answers a day."""
    wakes = row.a_day(row.outcome.wakes)
    return (
        signed(row.a_day(row.outcome.saved_j)),
        percent(row.share),
        f"{wakes:.0f}" if wakes >= 10 else f"{wakes:.1f}",  # noqa: PLR2004
        f"{row.a_day(row.outcome.slowed_s):.1f} s",
    )


FIGURES = ("SAVED A DAY", "OF POSSIBLE", "WAKES A DAY", "SLOWED A DAY")
