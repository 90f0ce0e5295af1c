"""The deeper stages in a report: rows and sentences, as its text and its page both write them, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memscaler.cli.output import span
from memscaler.cli.report import words
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.core.stage_summary import StageRow, StageSum
from memscaler.core.stages import Stage
from memscaler.core.summary import DAY_S

HEADINGS = ("STAGE", "ENTERED", "FAILED", "TIME", "SAVED", "WAKE: MEDIAN", "P99", "WORST")
WHAT_IF = ("STAGE", "AFTER", "SAVED A DAY", "TIMES A DAY", "WAIT EACH", "WAITED A DAY")
BEYOND = "saved: what a stage spared beyond parking alone, less what entering and leaving it took"
NOT_MEASURED = "suspend: a machine that sleeps cannot be measured; what it saves is in no figure here"
MACHINE_AFTERS_S = (1800.0, 3600.0, 7200.0)

Document = dict[str, Any]


def rows(report: Report) -> list[tuple[str, ...]]:
    """One for each stage that there was."""
    return [_row(each) for each in report.stages]


def _row(each: StageSum) -> tuple[str, ...]:
    wake = each.wake
    took = (wake.median_s, wake.p99_s, wake.worst_s) if wake is not None else (None,) * 3
    return (
        str(each.stage),
        str(each.entered),
        str(each.failed),
        span(each.seconds) if each.seconds else words.NONE,
        words.NONE if _saved_j(each) is None else words.signed(_saved_j(each) or 0.0),
        *(words.NONE if seconds is None else words.brief(seconds) for seconds in took),
    )


def _saved_j(each: StageSum) -> float | None:
    """None where it is not known."""
    return each.spent.saved_j if each.spent is not None and each.spent.compared_s else None


def notes(report: Report) -> list[str]:
    """What the figures lack."""
    found = [BEYOND] if any(_saved_j(each) is not None for each in report.stages) else []
    for each in report.stages:
        spent = each.spent
        if spent is not None and spent.seconds - spent.compared_s >= 60:  # noqa: PLR2004  # a minute
            found.append(f"{each.stage}: of {span(spent.seconds - spent.compared_s)} it is not known what it saved")
        if each.by_others_s:
            found.append(f"{each.stage}: {span(each.by_others_s)} more because of other managers, claimed by nobody")
        if each.unended:
            found.append(f"{each.stage}: nobody saw the end of {words.counted(each.unended, 'time')} in it")
    return [*found, *([NOT_MEASURED] if any(each.stage is Stage.SUSPEND for each in report.stages) else [])]


# ---- what if --------------------------------------------------------------------------------------------------------


def has_what_if(report: Report, gpu: GpuReport) -> bool:
    """Whether there is anything to say."""
    return bool(report.stages) and words.has_table(gpu.what_if) and bool(gpu.deeper.rows or gpu.deeper.unknown)


def what_if_rows(gpu: GpuReport) -> list[tuple[str, ...]]:
    """One for each stage that was measured on it, and time after which it might be entered."""
    return [_what_if_row(row) for row in gpu.deeper.rows]


def _what_if_row(row: StageRow) -> tuple[str, ...]:
    from memscaler.config.values import write_duration

    return (
        str(row.stage),
        write_duration(row.after_s),
        words.signed(row.a_day(row.saved_j)),
        f"{row.a_day(row.times):.1f}",
        words.brief(row.waited_s / row.times) if row.times else words.NONE,
        span(row.a_day(row.waited_s)),
    )


def what_if_notes(gpu: GpuReport) -> list[str]:
    """What is not known."""
    if not gpu.deeper.rows:
        return ["nothing of it is known: this GPU was in no stage long enough to measure it"]
    watts = ", ".join(f"{spent.watts:.1f} W in {stage}" for stage, spent in gpu.deep.items() if spent.watts is not None)
    unknown = [f"{stage}: {what} on this GPU" for stage, what in gpu.deeper.unknown.items()]
    return [f"as measured: {watts}; the wait is that of the first client after each pause", *unknown]


def machine_texts(report: Report) -> list[str]:
    """How long the machine could have slept: all GPUs were quiet, as far as their gaps tell. Nothing of its watts."""
    recorded_s = max((gpu.what_if.recorded_s for gpu in report.gpus), default=0.0)
    if not report.stages or recorded_s < DAY_S or not report.quiet_together:
        return []
    told = []
    for after_s in MACHINE_AFTERS_S:
        times, seconds = _could_sleep(report, after_s)
        days = recorded_s / DAY_S
        told.append(f"after {span(after_s)}: {span(seconds / days)} a day in {times / days:.1f} times")
    return [f"all GPUs were quiet together, so that the machine could have slept {'; '.join(told)}"]


def _could_sleep(report: Report, after_s: float) -> tuple[int, float]:
    long_s = [length_s - after_s for _, length_s in report.quiet_together if length_s > after_s]
    return len(long_s), sum(long_s)


# ---- JSON -----------------------------------------------------------------------------------------------------------


def stages_document(report: Report) -> list[Document]:
    """One for each stage that there was."""
    return [
        {
            "stage": str(each.stage),
            "entered": each.entered,
            "failed": each.failed,
            "seconds": each.seconds,
            "by_others_s": each.by_others_s,
            "unended": each.unended,
            "wake": None if each.wake is None else asdict(each.wake),
            "saved_j": _saved_j(each),
            "compared_s": None if each.spent is None else each.spent.compared_s,
            "switch_j": None if each.spent is None else each.spent.switch_j,
        }
        for each in report.stages
    ]


def machine_document(report: Report) -> list[Document]:
    """How long the machine could have slept, had it been suspended so much after all GPUs were quiet."""
    if not report.stages:
        return []
    found = []
    for after_s in MACHINE_AFTERS_S:
        times, seconds = _could_sleep(report, after_s)
        found.append({"after_s": after_s, "times": times, "seconds": seconds, "saved_j": None})
    return found


def gpu_document(gpu: GpuReport) -> Document:
    """Its stages, and what a deeper one would have saved."""
    return {
        "measured": [{"stage": str(stage), **asdict(spent)} for stage, spent in gpu.deep.items()],
        "what_if": [
            {
                "stage": str(row.stage),
                "after_s": row.after_s,
                "saved_j_per_day": row.a_day(row.saved_j),
                "times_per_day": row.a_day(row.times),
                "waited_s_per_day": row.a_day(row.waited_s),
                "seconds_per_day": row.a_day(row.seconds),
            }
            for row in gpu.deeper.rows
        ],
        "unknown": {str(stage): what for stage, what in gpu.deeper.unknown.items()},
    }


def named(cells: Sequence[str]) -> tuple[str, ...]:
    """Headings as a page writes them."""
    return tuple(cell.lower() for cell in cells)
