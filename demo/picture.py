"""The power of both GPUs over time, with the connections below, as an SVG for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from demo.evidence import SECOND_NS, Sample
from demo.expectations import Card, Evidence

WIDTH, LEFT, RIGHT = 880, 62, 18
TOP, PANEL, GAP, STRIP = 66, 132, 46, 8
CEILING_W = 300
SUBTITLE = (
    "a run of the demo, parking after 3 s of silence: real llama.cpp and clients, simulated GPUs; square-root scale"
)
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de } .ink { fill: #1f2328 } .faint { fill: #59636e }
  .grid { stroke: #d8dee4; stroke-width: 1 } .watts { fill: none; stroke: #9a5b00; stroke-width: 1.8 }
  .area { fill: #d98200; opacity: .16 } .parked { fill: #1a7f37; opacity: .13 } .parkedtext { fill: #1a7f37 }
  .link { fill: #0969da } .mark { stroke: #cf222e; stroke-width: 1.2; stroke-dasharray: 4 3 }
  .marktext { fill: #cf222e }
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
  .title { font-size: 15px; font-weight: 600 }
  .name { font-weight: 600; font-size: 13px }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .grid { stroke: #2a313c }
    .watts { stroke: #f0a83a } .area { fill: #f0a83a } .parked { fill: #3fb950; opacity: .2 }
    .parkedtext { fill: #56d364 }
    .link { fill: #58a6ff } .mark { stroke: #ff7b72 } .marktext { fill: #ff7b72 }
  }
"""


def draw(seen: Evidence) -> str:
    """The picture of one run."""
    start_ns = min(samples[0].at_ns for samples in seen.samples)
    end_ns = max(samples[-1].at_ns for samples in seen.samples)
    height = TOP + len(seen.cards) * (PANEL + GAP) + 6
    across = _Across(start_ns, end_ns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t">',
        f'<title id="t">{escape(_summary(seen.cards))}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(LEFT, 26, "Power of two GPUs while clients come and go", "ink title"),
        _text(LEFT, 45, SUBTITLE, "faint"),
    ]
    for gpu, card in enumerate(seen.cards):
        parts += _panel(seen, gpu, card, TOP + gpu * (PANEL + GAP), across)
    bottom = TOP + len(seen.cards) * (PANEL + GAP) - GAP + STRIP + 8
    parts += _events(seen, bottom, across)
    parts += _axis(bottom + 18, across)
    return "\n".join([*parts, "</svg>", ""])


class _Across:
    """Time to x."""

    def __init__(self, start_ns: int, end_ns: int) -> None:
        self.start_ns, self.end_ns = start_ns, end_ns

    def __call__(self, at_ns: int) -> float:
        inside = min(max(at_ns, self.start_ns), self.end_ns)
        return LEFT + (WIDTH - LEFT - RIGHT) * (inside - self.start_ns) / (self.end_ns - self.start_ns)


def _up(power_w: float, top: float) -> float:
    return top + PANEL * (1 - math.sqrt(min(power_w, CEILING_W) / CEILING_W))


def _panel(seen: Evidence, gpu: int, card: Card, top: float, across: _Across) -> list[str]:
    bottom = top + PANEL
    parts = []
    for span in seen.spans[gpu]:
        left, right = across(span.from_ns), across(span.to_ns or across.end_ns)
        parts.append(f'<rect class="parked" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{PANEL}"/>')
    for power_w in (card.parked_w, card.idle_w, 200):
        y = _up(power_w, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{power_w:.0f} W", "faint", "end"))
    line = " ".join(f"{across(each.at_ns):.1f},{_up(each.power_w, top):.1f}" for each in _thinned(seen.samples[gpu]))
    parts.append(f'<polygon class="area" points="{LEFT},{bottom} {line} {WIDTH - RIGHT},{bottom}"/>')
    parts.append(f'<polyline class="watts" points="{line}"/>')
    parts.append(_text(LEFT + 6, top + 14, card.name, "ink name"))
    longest = max(seen.spans[gpu], key=lambda span: (span.to_ns or across.end_ns) - span.from_ns, default=None)
    if longest is not None:
        middle = (across(longest.from_ns) + across(longest.to_ns or across.end_ns)) / 2
        parts.append(_text(middle, top + 14, "parked", "parkedtext", "middle"))
    parts.append(_text(LEFT - 6, bottom + STRIP + 4, "clients", "faint", "end"))
    for each in seen.connections:
        if each.gpu == gpu and each.connected_ns:
            left, right = across(each.connected_ns), across(each.ended_ns)
            width = max(1.6, right - left)
            place = f'x="{left:.1f}" y="{bottom + 5}" width="{width:.1f}" height="{STRIP}"'
            parts.append(f'<rect class="link" {place} rx="1" opacity=".75"/>')
    return parts


def _events(seen: Evidence, bottom: float, across: _Across) -> list[str]:
    moments = [(seen.killed_ns, "kill -9")] if seen.killed_ns else []
    ends = [span.to_ns for spans in seen.spans for span in spans if span.to_ns]
    if ends and seen.stop_status is not None:
        moments.append((max(ends), "SIGTERM"))
    parts = []
    for at_ns, name in moments:
        x = across(at_ns)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom}"/>')
        parts.append(_text(x - 5, TOP + 14, name, "marktext", "end"))
    return parts


def _axis(y: float, across: _Across) -> list[str]:
    seconds = (across.end_ns - across.start_ns) / SECOND_NS
    step = 10 if seconds > 40 else 5
    ticks = range(0, int(seconds) + 1, step)
    return [_text(across(across.start_ns + tick * SECOND_NS), y, f"{tick} s", "faint", "middle") for tick in ticks]


def _thinned(samples: Sequence[Sample]) -> Iterable[Sample]:
    """Without those in the middle of a flat piece."""
    for index, each in enumerate(samples):
        around = samples[max(0, index - 1) : index + 2]
        if len(around) < 3 or any(abs(other.power_w - each.power_w) > 0.05 for other in around):
            yield each


def _summary(cards: Sequence[Card]) -> str:
    told = (f"{card.name} from {card.idle_w:.0f} W to {card.parked_w:.0f} W when quiet" for card in cards)
    return "Power over time: " + ", ".join(told)


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
