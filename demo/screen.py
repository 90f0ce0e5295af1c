"""What one sees: a story, line by line, and on a terminal the two GPUs live below it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from demo.evidence import Sample
from demo.watching import Shown

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
WIDTH = 80
COLOURS = {"parked": "green", "cooling": "cyan", "awake": "yellow", "unmanaged": "red"}
SAMPLES_PER_BAR = 5  # of the live picture: a quarter of a second


class Screen:
    """Prints. On a terminal with colours and a moving part, else plain lines without any control characters."""

    def __init__(self, steps: int) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, markup=False, emoji=False, width=WIDTH, no_color=True)
        self._unicode = "utf" in (self._console.encoding or "").lower()
        self._start = time.monotonic()
        self._gpus: Callable[[], list[tuple[Shown, Sequence[Sample]]]] = list
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task("starting", total=steps)
        self._live: Live | None = None

    # ---- the story

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        """One line, wrapped at the width of the terminal."""
        wrapped = Text(self._readable(text), style=style).wrap(self._console, self._console.width - indent)
        for part in wrapped:
            part.rstrip()
            self._console.print(Text(" " * indent) + part, soft_wrap=True)

    def heading(self, text: str) -> None:
        """A step of the story begins."""
        self.line()
        self.line(text, "bold")
        self._progress.update(self._task, description=textwrap.shorten(text, 36, placeholder="..."))

    def step_done(self) -> None:
        """Move the progress bar."""
        self._progress.advance(self._task)

    def event(self, text: str, style: str = "") -> None:
        """Something happened; with the time since the start."""
        self.line(f"{time.monotonic() - self._start:5.1f} s  {text}", style, indent=2)

    def check(self, held: bool, text: str, detail: str) -> None:  # noqa: FBT001
        """One expectation."""
        mark = ("✔" if held else "✘") if self._unicode else ("ok " if held else "NO ")
        self.line(f"{mark} {text}", "green" if held else "bold red", indent=2)
        if detail:
            self.line(detail, "" if held else "red", indent=4)

    # ---- pictures

    def sparkline(self, watts: Sequence[float], most_w: float, width: int) -> str:
        """The watts as bars, `width` of them, each the highest of its share of the time."""
        bars = BARS if self._unicode else PLAIN_BARS
        if not watts or width < 1:
            return ""
        edges = [round(i * len(watts) / width) for i in range(width + 1)]
        shares = [watts[low : max(high, low + 1)] for low, high in pairwise(edges)]
        heights = [max(share) / most_w for share in shares if share]
        return "".join(bars[min(len(bars) - 1, int(height * len(bars)))] for height in heights)

    def watch(self, gpus: Callable[[], list[tuple[Shown, Sequence[Sample]]]]) -> None:
        """Where the live part gets its figures from."""
        self._gpus = gpus

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=6, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> RenderableType:
        rows = [self._row(shown, samples) for shown, samples in self._gpus()]
        return Group(Text(), *rows, self._progress)

    def _row(self, shown: Shown, samples: Sequence[Sample]) -> Text:
        watts = [sample.power_w for sample in samples]
        now_w = f"{watts[-1]:3.0f} W" if watts else ""
        row = Text(f"  {shown.name:4} :{shown.port:<5} {shown.connections} conn. ")
        row.append(f"{shown.state or 'awake':8}", style=COLOURS.get(shown.state, ""))
        row.append(f"{now_w:>6}  ", style="bold")
        room = max(10, self._console.width - len(row) - 2)
        recent = watts[-room * SAMPLES_PER_BAR :]
        row.append(self.sparkline(recent, 300, min(room, len(recent) // SAMPLES_PER_BAR)), style="cyan")
        return row

    def _readable(self, text: str) -> str:
        return text if self._unicode else text.encode("ascii", "replace").decode()
