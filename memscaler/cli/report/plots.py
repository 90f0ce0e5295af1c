"""The plots of a report, by matplotlib: as files of their own, and as pieces of a page that follow its colours.

Their look: memscaler/cli/plots.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memscaler.cli.output import span
from memscaler.cli.plots import COLOURS, rendered, styled
from memscaler.cli.report import words
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.core.model import Public
from memscaler.core.summary import HOUR_S
from memscaler.core.text import JOULES_PER_WH, WH_PER_KWH
from memscaler.core.what_if import BINS_S, Row, distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (8.6, 2.9)  # inches
DAY_TICKS = (0, 6, 12, 18, 24)
SMALL = (5.2, 2.9)
HIGH = (8.6, 3.9)
LEAST_SHARE = -0.2  # what costs more than that is shown as that
MOST_TICKS = 12
MOST_BINS = 9
YEAR = len("2026-")
LATENCY_BINS = 24


@dataclass(frozen=True, slots=True)
class Plot:
    """name: of its file. title: what it shows. summary: what is to be seen, for those who cannot."""

    name: str
    title: str
    summary: str
    figure: Figure

    def png(self) -> bytes:
        """On white."""
        return rendered(self.figure, "png")

    def svg(self) -> bytes:
        """A file of its own, on white."""
        return rendered(self.figure, "svg")

    def inline(self) -> str:
        """For a page: without a ground, in the colours of the page, with ids that are nobody else's."""
        text = rendered(self.figure, "svg", transparent=True).decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for name, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{name})")
        return re.sub(
            r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', text, count=1
        )


def overview(report: Report) -> list[Plot]:
    """Of all GPUs together."""
    return _drawn([_energy(report)]) if report.total.recorded_s else []


def of_gpu(report: Report, gpu: GpuReport, name: str) -> list[Plot]:
    """Of one GPU. name: begins the names of its plots."""
    if not gpu.total.recorded_s:
        return []
    names = [day.name for day in report.period.days]
    makers = [_hours(names, gpu, name)]
    if gpu.gaps:
        makers.append(_gaps(gpu, name))
    if words.has_table(gpu.what_if):
        makers.append(_what_if(gpu, name))
    if gpu.latencies_s:
        makers.append(_latency(gpu, name))
    return _drawn(makers)


def all_of(report: Report) -> list[Plot]:
    """Every plot there is, each under a name of its own."""
    found, labels = overview(report), [gpu.gpu for gpu in report.gpus]
    for gpu in report.gpus:
        name = gpu.gpu if labels.count(gpu.gpu) == 1 else f"{gpu.gpu}-{re.sub(r'[^0-9A-Za-z-]', '', gpu.uuid)}"
        found += of_gpu(report, gpu, name)
    return found


Draft = tuple[str, str, str, tuple[float, float], Callable[["Figure"], None]]  # name, title, summary, size, drawing


def _drawn(drafts: Sequence[Draft]) -> list[Plot]:
    with styled():
        from matplotlib.figure import Figure

        found = []
        for name, title, summary, size, draw in drafts:
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            found.append(Plot(name, title, summary, figure))
        return found


# ---- plots ----------------------------------------------------------------------------------------------------------


def _energy(report: Report) -> Draft:
    names = [day.name for day in report.period.days]
    used_wh = [(sums.energy_j or 0.0) / JOULES_PER_WH for sums in report.days]
    saved_wh = [max(0.0, sums.saved_j) / JOULES_PER_WH for sums in report.days]
    large = max(u + s for u, s in zip(used_wh, saved_wh, strict=True)) >= WH_PER_KWH
    unit, size = ("kWh", WH_PER_KWH) if large else ("Wh", 1.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        series = {"used": ("awake", used_wh), "saved by parking": ("parked", saved_wh)}
        _stack(axes, names, {k: (c, [v / size for v in vs]) for k, (c, vs) in series.items()})
        axes.set_title(unit)

    title = "Energy used and saved"
    return "energy", title, f"{words.used(report.total)} used, {words.saved_text(report)} saved", SIZE, draw


def _hours(names: Sequence[str], gpu: GpuReport, name: str) -> Draft:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        series = {
            str(state): (str(state), [sums.state_s[state] / HOUR_S for sums in gpu.days])
            for state in (Public.AWAKE, Public.COOLING, Public.PARKED, Public.HELD, Public.UNMANAGED)
        }
        series["no record"] = ("none", [sums.unrecorded_s / HOUR_S for sums in gpu.days])
        _stack(axes, names, {k: v for k, v in series.items() if max(v[1]) > 0})
        axes.set_title("hours")
        if axes.get_ylim()[1] > DAY_TICKS[-2]:
            axes.set_yticks(DAY_TICKS)

    spent = ", ".join(f"{words.hours(s)} h {state}" for state, s in gpu.total.state_s.items() if words.some(s))
    return f"{name}-hours", "Hours in each state", spent, SIZE, draw


def _stack(axes: Axes, names: Sequence[str], series: Mapping[str, tuple[str, Sequence[float]]]) -> None:
    """Bars on bars. Of many names only some are written."""
    below = [0.0] * len(names)
    for label, (colour, values) in series.items():
        axes.bar(range(len(names)), values, 0.72, bottom=below, color=COLOURS[colour], label=label)
        below = [low + value for low, value in zip(below, values, strict=True)]
    step = -(-len(names) // MOST_TICKS)
    shown = range(0, len(names), step)
    axes.set_xticks(list(shown), [names[at][YEAR:] for at in shown])
    axes.set_xlim(-0.6, max(len(names), 3) - 0.4)
    _legend(axes, len(series))


def _gaps(gpu: GpuReport, name: str) -> Draft:
    found = distribution(gpu.gaps)
    gaps, quiet_s = sum(count for count, _ in found.values()), sum(together for _, together in found.values())
    shown = [at for at, (count, _) in enumerate(found.values()) if count]
    bins = BINS_S[shown[0] : shown[-1] + 1]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        parts = [found[float(least_s)] for least_s in bins]
        for offset, label, colour, values in (
            (-0.2, "of the gaps", "awake", [100 * count / gaps for count, _ in parts]),
            (0.2, "of the quiet time", "parked", [100 * together / quiet_s for _, together in parts]),
        ):
            axes.bar([at + offset for at in range(len(bins))], values, 0.38, color=COLOURS[colour], label=label)
        step = -(-len(bins) // MOST_BINS)
        axes.set_xticks(range(0, len(bins), step), [_bin(least_s) for least_s in bins[::step]])
        axes.set_xlim(-0.6, max(len(bins), 4) - 0.4)
        axes.set_title("%")
        axes.set_xlabel("gaps at least so long")
        _legend(axes, 2)

    longest = max(length_s for _, length_s in gpu.gaps)
    return (
        f"{name}-gaps",
        "How long nobody asked anything",
        f"{gaps} gaps, the longest {span(longest)}",
        SMALL,
        draw,
    )


def _bin(least_s: float) -> str:
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    unit, size = next(((unit, size) for unit, size in units if least_s >= size), ("s", 1))
    return f"{least_s / size:g} {unit}"


def _what_if(gpu: GpuReport, name: str) -> Draft:
    found = gpu.what_if
    timers = [row for row in found.rows if row.idle_s is not None]
    auto = next((row for row in found.rows if row.name), None)

    def share(row: Row) -> float:
        return 100 * max(row.share or 0.0, LEAST_SHARE)

    def wakes(row: Row) -> float:
        return row.a_day(row.outcome.wakes)

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        idle_s = [row.idle_s or 0.0 for row in timers]
        for axes, title, value, colour in (
            (top, "% of the possible saving", share, "parked"),
            (bottom, "wakes a day", wakes, "awake"),
        ):
            axes.plot(idle_s, [value(row) for row in timers], "o-", color=COLOURS[colour], label="a timer")
            if found.used is not None:
                style = {"ms": 12, "mfc": "none", "mec": COLOURS["text"], "label": "used"}
                axes.plot([found.used.idle_s], [value(found.used)], "o", **style)
            if auto is not None:
                axes.axhline(value(auto), color=COLOURS["held"], ls="--", label="auto")
            axes.set_title(title)
        top.set_ylim(min(map(share, timers)) - 5, 102)
        bottom.set_ylim(bottom=0)
        bottom.set_xscale("log")
        bottom.set_xticks(idle_s, [words.policy(row) for row in timers])
        bottom.minorticks_off()
        bottom.set_xlabel("idle time")
        _legend(top, 3)

    return f"{name}-what-if", "What other idle times would have saved", words.advice_text(found), HIGH, draw


def _latency(gpu: GpuReport, name: str) -> Draft:
    shown_ms = [max(latency_s, 1e-6) * 1e3 for latency_s in gpu.latencies_s]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = min(shown_ms) / 1.2, max(shown_ms) * 1.2
        edges = [low * (high / low) ** (at / LATENCY_BINS) for at in range(LATENCY_BINS + 1)]
        axes.hist(shown_ms, bins=edges, color=COLOURS["awake"], rwidth=0.9)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
        axes.xaxis.set_minor_formatter(lambda at, _: f"{at:g}" if f"{at:e}"[0] in "25" and high / low < 100 else "")  # noqa: PLR2004
        axes.locator_params(axis="y", integer=True)
        axes.set_title("wakes")
        axes.set_xlabel("milliseconds from the connection until it is woken")

    return f"{name}-wakes", "How fast it was woken", words.latency_text(gpu.latency, gpu.total.wakes), SMALL, draw


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(ncols=entries, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, handlelength=1.2)
