"""The table and the plot of docs/policy.md."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.policy.policies import AUTO, BREAK_EVEN, CARDS, GOAL, OFFLINE, RIVAL, TIMERS_S, WAYS, Result, judge, ways
from bench.policy.traces import Trace, azure

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- made by python -m bench.policy --write-docs -->\n", "<!-- end -->\n"
POLICIES = (*TIMERS_S, BREAK_EVEN, AUTO)
SPARSE, DENSE = 4.0, 60.0  # requests per hour
COLOURS = {RIVAL: "#888888", "60 s": "#c08030", AUTO: "#1f77b4"}


def table(found: Sequence[Result], most: int) -> str:
    """Everything, as Markdown."""
    head = ["trace", "requests/h", "days", *POLICIES, "best timer", "clairvoyant", "goal"]
    shares = [
        [
            *_about(each),
            *(f"{each.share(name):.1%}" for name in POLICIES),
            f"{each.best_share:.1%}",
            f"{each.clairvoyant_share:.1%}",
            _goal(each),
        ]
        for each in found
    ]
    wakes = [[*_about(each), *(_costs(each, name) for name in POLICIES)] for each in found]
    parts = [
        f"Share of the possible saving, on an A40; at most {most} requests of each trace:",
        _markdown(head, shares),
        "Wakes a day, and seconds a day in which the clocks were not back yet:",
        _markdown(["trace", "requests/h", "days", *POLICIES], wakes),
        _speed(found),
    ]
    return "\n\n".join(parts) + "\n"


def _speed(found: Sequence[Result]) -> str:
    """It goes by the gap, so that sparse traces are fast and dense ones slow."""

    def hours_per_s(some: Sequence[Result]) -> str:
        return f"{sum(each.hours for each in some) / sum(each.cpu_s for each in some):,.0f}"

    hours, gaps = sum(each.hours for each in found), sum(each.gaps for each in found)
    sparse = [each for each in found if each.trace.requests_per_hour <= SPARSE]
    dense = [each for each in found if each.trace.requests_per_hour >= DENSE]
    return (
        f"{hours:,.0f} simulated hours, {hours_per_s(found)} for each second of CPU time: {hours_per_s(sparse)} where"
        f" there are {SPARSE:g} requests an hour or fewer, {hours_per_s(dense)} where there are {DENSE:g} or more;"
        f" {gaps / sum(each.cpu_s for each in found):,.0f} gaps a second."
    )


def held_out(found: Sequence[Result]) -> str:
    """Traces that had no part in the choice of parameters."""
    names = (RIVAL, "60 s", BREAK_EVEN, AUTO)
    rows = [
        [
            *_about(each),
            *(f"{each.share(name):.1%}" for name in names),
            f"{each.best_share:.1%}",
            f"{each.wakes_ratio(AUTO):.3f}",
            _goal(each),
        ]
        for each in found
    ]
    head = ["trace", "requests/h", "days", *names, "best timer", "wakes, 5 s = 1", "goal"]
    return "Held out, on an A40:\n\n" + _markdown(head, rows) + "\n"


def by_hour(traces: Sequence[Trace]) -> str:
    """What it gives to part gaps, where days and nights differ: share of the saving, and wakes a day."""
    rows = []
    for trace in traces:
        for card in ("A40", "RTX 3090"):
            found = ways(trace, card)
            cells = [
                f"{each.saved_j / found[OFFLINE].saved_j:.1%}, {each.wakes / trace.days:.0f}"
                for each in (found[name] for name in WAYS)
            ]
            rows.append([trace.name, f"{trace.days:.1f}", card, *cells])
    return (
        "Days and nights, share of the possible saving and wakes a day, with gaps parted in some ways only:\n\n"
        + _markdown(["gaps", "days", "card", *WAYS], rows)
        + "\n"
    )


def cards(most: int) -> str:
    """One trace on every card."""
    found = [judge(azure("conv", 1.0, 12.0, most), card, timers=False) for card in CARDS]
    found += [judge(azure("code", 1.0, 30.0, most), card, timers=False) for card in CARDS]
    rows = [
        [
            each.card,
            f"{CARDS[each.card].awake_w:g} W, {CARDS[each.card].parked_w:g} W",
            each.trace.name,
            f"{each.trace.requests_per_hour:g}",
            f"{each.share(RIVAL):.1%}",
            f"{each.share(AUTO):.1%}",
            f"{each.wakes_ratio(AUTO):.3f}",
            _goal(each),
        ]
        for each in found
    ]
    head = ["card", "awake, parked", "trace", "requests/h", "5 s", "auto", "wakes, 5 s = 1", "goal"]
    return "Other cards:\n\n" + _markdown(head, rows) + "\n"


def write(found: Sequence[Result], tables: str, most: int) -> None:
    """Into docs/policy.md, between the two marks, and docs/policy.svg."""
    path = DOCS / "policy.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + BEGIN + "\n" + tables + "\n" + cards(most) + "\n" + END + after)
    (DOCS / "policy.svg").write_text(plot(found))


def _about(each: Result) -> list[str]:
    return [each.trace.name, f"{each.trace.requests_per_hour:.3g}", f"{each.trace.days:.1f}"]


def _goal(each: Result) -> str:
    if each.met:
        return "met"
    if each.within_reach and each.share(AUTO) >= GOAL and each.wakes_ratio(AUTO) == 1:
        return "missed: as many wakes"
    return "**missed**" if each.within_reach else "no timer can"


def _costs(each: Result, name: str) -> str:
    outcome = each.outcomes[name]
    return f"{outcome.wakes / each.trace.days:.0f}, {outcome.slowed_s / each.trace.days:.0f} s"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def plot(found: Sequence[Result]) -> str:
    """Share of the saving against wakes; one row a trace, so that one sees both at once."""
    width, row, left, scale = 860, 20, 330, 4.2
    height = 60 + row * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<style>text {font-size: 12px}</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for percent in (0, 25, 50, 75, 95, 100):
        x = left + scale * percent
        dash = ' stroke-dasharray="4 3"' if percent == 95 else ""
        parts.append(f'<line x1="{x}" y1="40" x2="{x}" y2="{height - 10}" stroke="#cccccc"{dash}/>')
        parts.append(f'<text x="{x}" y="34" text-anchor="middle">{percent} %</text>')
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = left + 130 * number
        parts.append(f'<circle cx="{x}" cy="12" r="5" fill="{colour}"/><text x="{x + 10}" y="16">{name}</text>')
    for number, each in enumerate(found):
        y = 56 + row * number
        label = html.escape(f"{each.trace.name}, {each.trace.requests_per_hour:.3g}/h")
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{label}</text>')
        for name, colour in COLOURS.items():
            x = left + scale * 100 * max(0.0, each.share(name))
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}" fill-opacity="0.8"/>')
        parts.append(f'<text x="{left + scale * 100 + 14}" y="{y + 4}">{each.wakes_ratio(AUTO):.2f}</text>')
    parts.append(f'<text x="{left + scale * 100 + 14}" y="34">wakes of auto, 5 s = 1</text></svg>')
    return "\n".join(parts) + "\n"
