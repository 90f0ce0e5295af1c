"""A report for people: 80 columns, the sums first, then each GPU day by day."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from memscaler.cli.output import WIDTH, plain, span
from memscaler.cli.paint import Paint
from memscaler.cli.report import stages, words
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.core.model import Public
from memscaler.core.summary import Sums
from memscaler.core.text import fine_energy as energy

LABEL = 9
# Columns of hours, with the state or the attribute that they show; those in brackets only where there is something.
STATES = {"AWAKE": Public.AWAKE, "COOL": Public.COOLING, "PARKED": Public.PARKED}
AT_TIMES = {"HELD": Public.HELD, "LEFT": Public.UNMANAGED}
NO_RECORD = "NO REC"
LEGEND = {
    "AWAKE": "time in each state, in hours where nothing else stands",
    "HELD": "held: kept awake by an operator or a time of the week",
    "LEFT": "left: left alone (unmanaged)",
    NO_RECORD: "no rec: no daemon governed it",
    words.OPTIMUM: words.OPTIMUM_IS,
}


def report_text(report: Report, colour: Paint) -> str:
    """Everything."""
    parts = ["\n".join(_head(report, colour))]
    if len(report.gpus) > 1:
        parts.append(_together(report, colour))
    parts += _stages(report, colour)
    parts += ["\n\n".join(_gpu(report, gpu, colour)) for gpu in report.gpus]
    return "\n\n".join([*parts, *_legend("\n".join(parts[1:]), colour)])


def _head(report: Report, colour: Paint) -> list[str]:
    period, total = report.period, report.total
    lines = [colour("strong", f"{words.moment(period.start_unix_s)} to {words.moment(period.end_unix_s)}")]
    lines += [colour("faint", told) for told in [words.until_text(report)] if told]
    lines.append("")
    if not report.gpus:
        return [*lines, "no GPU was ever governed: there is nothing to report"]
    lines += _said("saved", words.saved_text(report), colour, "parked" if total.saved_j > 0 else "")
    lines += _said("used", words.used(report.total), colour)
    lines += _said("cost", words.cost_text(report), colour)
    lines += _said("parked", words.quiet_text(total), colour)
    wakes = f"{total.wakes}; {words.latency_text(report.latency, total.wakes)}" if report.latency else str(total.wakes)
    lines += _said("wakes", wakes, colour)
    for gpu in filter(words.is_known, report.gpus):
        lines += _said("advice", f"{plain(gpu.gpu)}: {words.advice_text(gpu.what_if)}", colour)
    return lines


def _said(label: str, text: str, colour: Paint, style: str = "") -> list[str]:
    if not text:
        return []
    first, *more = wrap(text, WIDTH - LABEL)
    return [colour("faint", label.ljust(LABEL)) + colour(style, first), *(" " * LABEL + line for line in more)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def _together(report: Report, colour: Paint) -> str:
    rows = [(plain(gpu.gpu), gpu.total) for gpu in report.gpus]
    return colour("strong", "All GPUs") + "\n" + sums_table("GPU", [*rows, ("all", report.total)], colour)


def _stages(report: Report, colour: Paint) -> list[str]:
    """Nothing where no server ever went deeper."""
    if not report.stages:
        return []
    lines = [colour("strong", "Deeper stages"), table([stages.HEADINGS, *stages.rows(report)], colour)]
    notes = [*stages.notes(report), *stages.machine_texts(report)]
    return ["\n".join([*lines, *(colour("faint", line) for note in notes for line in wrap(note, WIDTH))])]


def sums_table(heading: str, rows: Sequence[tuple[str, Sums]], colour: Paint) -> str:
    """A row for each of these, with a legend of what is not there every day."""
    at_times = {head: state for head, state in AT_TIMES.items() if any(words.some(s.state_s[state]) for _, s in rows)}
    unrecorded = any(words.some(sums.unrecorded_s) for _, sums in rows)
    states, written = STATES | at_times, words.times_of(rows)
    headings = [heading, "USED", "SAVED", *states, *([NO_RECORD] if unrecorded else []), "WAKES"]
    cells = []
    for name, sums in rows:
        spent = [written(sums.state_s[state]) for state in states.values()]
        missing = [written(sums.unrecorded_s)] if unrecorded else []
        known = [words.used(sums), words.signed(sums.saved_j), *spent, *missing, str(sums.wakes)]
        nothing = [words.NONE] * (2 + len(states)) + missing + [words.NONE]
        cells.append([name, *(known if sums.recorded_s else nothing)])
    return table([headings, *cells], colour)


def table(rows: Sequence[Sequence[str]], colour: Paint) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([colour("faint", lines[0]), *lines[1:]])


def _legend(text: str, colour: Paint) -> list[str]:
    """What the columns and rows in the text mean."""
    told = "; ".join(meaning for word, meaning in LEGEND.items() if word in text)
    return [colour("faint", line) for line in ["\n".join(wrap(told, WIDTH))] if told]


# ---- a GPU ----------------------------------------------------------------------------------------------------------


def _gpu(report: Report, gpu: GpuReport, colour: Paint) -> list[str]:
    gone = f"; not seen since {words.moment(gpu.last_unix_s)}" if gpu.gone else ""
    title = colour("strong", f"{plain(gpu.gpu)}  {plain(gpu.name)}") + f"  {plain(gpu.uuid)}{gone}"
    if not words.is_known(gpu):
        return [f"{title}\nnothing was recorded of it in this time"]
    days = [day.name for day in report.period.days]
    rows, names = words.rows_of(days, gpu.days), "MONTH" if words.by_month(days) else "DAY"
    if len(rows) > 1:
        rows.append(("all", gpu.total))
    facts = _said("baseline", words.ground_text(gpu), colour)
    facts += _said(
        "margin", f"± {energy(gpu.ground.margin_j)}: spread of the baselines, and ± 5 % of the card's sensor", colour
    )
    facts += _said("records", words.before_text(report, gpu), colour)
    facts += _said("unknown", words.unknown_text(gpu.total), colour)
    facts += _said("wakes", words.latency_text(gpu.latency, gpu.total.wakes), colour) if len(report.gpus) > 1 else []
    facts += _said("ended", words.ends_text(gpu), colour)
    return [
        f"{title}\n{sums_table(names, rows, colour)}",
        "\n".join(facts),
        *_what_if(gpu, colour),
        *_deeper(report, gpu, colour),
    ]


def _what_if(gpu: GpuReport, colour: Paint) -> list[str]:
    found = gpu.what_if
    if not words.has_table(found):
        return []
    title = (
        f"What other idle times would have made of its {words.counted(found.gaps, 'gap')} in {span(found.recorded_s)}"
    )
    rows = [("IDLE TIME", *words.FIGURES)]
    rows += [(name, *words.figures(row)) for name, row in words.compared(found)]
    notes = [colour("faint", line) for line in wrap(words.costs_text(found.costs), WIDTH)]
    return ["\n".join([colour("strong", title), table(rows, colour), *notes])]


def _deeper(report: Report, gpu: GpuReport, colour: Paint) -> list[str]:
    if not stages.has_what_if(report, gpu):
        return []
    lines = [colour("strong", "What a deeper stage would have saved beyond parking, in the same gaps")]
    if gpu.deeper.rows:
        lines.append(table([stages.WHAT_IF, *stages.what_if_rows(gpu)], colour))
    notes = [line for note in stages.what_if_notes(gpu) for line in wrap(note, WIDTH, subsequent_indent="  ")]
    return ["\n".join([*lines, *(colour("faint", line) for line in notes)])]
