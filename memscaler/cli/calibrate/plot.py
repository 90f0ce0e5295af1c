"""One round as a picture: power and clocks over time, with what happened when."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from memscaler.cli import plots
from memscaler.core.calibration import Round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (8.0, 5.0)  # inches
MOST_BARS = 48


def curve_w(shown: Round, width: int = MOST_BARS) -> list[float | None]:
    """The power in equal steps of time, the last known reading of each; None where there is none."""
    first_s, last_s = shown.samples[0].at_s, shown.samples[-1].at_s
    steps: list[float | None] = [None] * width
    for each in shown.samples:
        step = min(width - 1, int((each.at_s - first_s) / max(last_s - first_s, 1e-9) * width))
        steps[step] = each.power_w if each.power_w is not None else steps[step]
    return steps


def draw(path: Path, title: str, shown: Round) -> None:
    """Into the file. Raise MemscalerError."""
    with plots.styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=SIZE, layout="constrained")
        _draw(figure, title, shown)
    plots.save(figure, path)


def _draw(figure: Figure, title: str, shown: Round) -> None:
    marks = shown.marks
    power, clocks = figure.subplots(2, sharex=True)
    times_s = [each.at_s - marks.park_s for each in shown.samples]
    power.plot(times_s, _known(each.power_w for each in shown.samples), color=plots.COLOURS["awake"])
    power.set_ylabel("power (W)")
    power.set_ylim(0, 1.5 * max((each.power_w or 0.0 for each in shown.samples), default=0.0) or 1)
    power.set_title(title, loc="left")
    clocks.step(
        times_s, _known(each.memory_clock_mhz for each in shown.samples), where="post", color=plots.COLOURS["parked"]
    )
    clocks.step(
        times_s,
        _known(each.graphics_clock_mhz for each in shown.samples),
        where="post",
        color=plots.COLOURS["muted"],
        linestyle="--",
    )
    clocks.legend(["memory", "graphics"])
    clocks.set_ylabel("clock (MHz)")
    clocks.set_ylim(bottom=0)
    clocks.set_xlabel("seconds after the driver call of the park")
    events = [("park", marks.park_s), ("clocks down", marks.down_s)]
    if shown.settled_s is not None:
        events.append(("power settled", marks.park_s + shown.settled_s))
    events += [("wake", marks.wake_s), ("clocks back", marks.back_s or marks.up_s)]
    for level, (what, at_s) in enumerate(events):
        for axes in (power, clocks):
            axes.axvline(at_s - marks.park_s, color=plots.COLOURS["muted"], linewidth=0.7)
        at = (at_s - marks.park_s, 0.98 - 0.09 * (level % 3))
        power.annotate(what, at, xycoords=("data", "axes fraction"), xytext=(3, -8), textcoords="offset points")


def _known(values: Iterable[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
