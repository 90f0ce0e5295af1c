"""A report as one page: no script, nothing from elsewhere; light and dark, readable without seeing, printable."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from memscaler import __version__
from memscaler.cli.output import span
from memscaler.cli.plots import INSTALL, drawing
from memscaler.cli.report import plots, stages, words
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.core.summary import Sums
from memscaler.core.text import fine_energy as energy

MARK = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="memscaler'
"""How every page of ours begins."""
STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f4f6f8; --card: #fff; --line: #d9dfe5; --text: #16202a; --muted: #50606f; --accent: #0b6e4f;
  --awake: #2f7fc1; --cooling: #e0a030; --parked: #1f9d76; --held: #8f63c7; --unmanaged: #cc4b43; --none: #c9d2da;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f151b; --card: #18212a; --line: #2d3a46; --text: #e8edf2; --muted: #a3b1bf; --accent: #5fd3a7;
    --awake: #6cb2f2; --cooling: #f0b95a; --parked: #4cc79a; --held: #c09af5; --unmanaged: #ff8a80; --none: #465562;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.25rem clamp(.75rem, 3vw, 2rem) 2rem; max-width: 66rem;
  background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
h2 small { font-weight: 400; color: var(--muted); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .25rem 0; }
.muted, figcaption, footer { color: var(--muted); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tiles > div, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles > div { padding: .7rem 1rem; }
.tiles > .main { border-top: 4px solid var(--parked); }
dt { font-size: .8125rem; color: var(--muted); }
dd { margin: 0; }
.tiles dd { font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.tiles dd + dd { font-size: .8125rem; font-weight: 400; color: var(--muted); line-height: 1.4; }
.card { padding: .9rem 1rem; margin: 0 0 1rem; }
.advice { border-left: 4px solid var(--parked); }
.advice p { margin: .1rem 0; }
figure { margin: 0 0 1rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th, td { padding: .35rem .6rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { border-top: 0; font-size: .8125rem; color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; }
tr.all > * { font-weight: 700; border-top-width: 2px; }
tr.used > *, tr.was > * { background: color-mix(in srgb, var(--parked) 12%, transparent); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .6rem 0 0; }
.facts { font-size: .875rem; }
.facts dt { font-size: inherit; }
footer { margin-top: 2rem; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
@media (max-width: 32rem) { .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: .35rem; } }
@media print {
  :root { color-scheme: light; --ground: #fff; }
  body { max-width: none; padding: 0; font-size: .8125rem; }
  .card, figure, .tiles { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
}
"""
STATES = ("awake", "cooling", "parked", "held", "unmanaged")


def report_page(report: Report) -> str:
    """The whole page; without plots where there is no matplotlib."""
    period = report.period
    day = time.strftime("%Y-%m-%d", time.localtime(period.start_unix_s))
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(period.end_unix_s))
    told = words.until_text(report)
    body = [f"<h1>What parking saved</h1>\n<p class=muted>{day} to {until}{f'; {told}' if told else ''}</p>"]
    if report.gpus:
        body += [_tiles(report), _advice(report.gpus), *_figures(plots.overview(report) if drawing() else [])]
        body += [] if drawing() else [f"<p class=muted>Plots need matplotlib: {escape(INSTALL)}</p>"]
        if len(report.gpus) > 1:
            rows = [(gpu.gpu, gpu.total) for gpu in report.gpus]
            body.append(_card("All GPUs", _sums("GPU", [*rows, ("all", report.total)], "All GPUs")))
        body += _stages(report)
        body += [_gpu(report, gpu, f"g{at}") for at, gpu in enumerate(report.gpus)]
    else:
        body.append("<p>No GPU was ever governed: there is nothing to report.</p>")
    return "\n".join([_head(f"memscaler: {day} to {until}"), "<main>", *body, "</main>", _foot(), "</body>\n</html>\n"])


def _head(title: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        f'{MARK} {__version__}">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>"
    )


def _foot() -> str:
    return (
        "<footer><p>Saved: the watts of each GPU just before its parks, less what it drew while parked. "
        "&plusmn;: the spread of those watts, and 5 % for the card's power sensor. A day without a record is unknown, "
        f"not zero.</p><p>Made by memscaler {escape(__version__)} from its history on this machine.</p></footer>"
    )


def _tiles(report: Report) -> str:
    total, latency = report.total, report.latency
    would_j = total.saved_j + (total.energy_j or 0.0)
    share = f", {words.percent(total.saved_j / would_j)} of what it would have been" if total.saved_j > 0 else ""
    tiles = [("saved", words.signed(total.saved_j), f"± {energy(report.margin_j)}{share}")]
    if report.price:
        tiles.append(("saved, in money", report.price.text(total.saved_j), f"at {report.price}"))
    cost = report.price.text(total.energy_j) if report.price and total.energy_j is not None else ""
    tiles.append(("used", words.used(total), cost))
    tiles.append(("parked", words.percent(total.parked_ratio), f"of the quiet time: {span(total.state_s['parked'])}"))
    fast = f"{words.brief(latency.median_s)} median, {words.brief(latency.worst_s)} worst" if latency else ""
    fast += words.of_all(latency, total.wakes)
    tiles.append(("wakes", str(total.wakes), fast))
    written = (
        f"<div{' class=main' if at == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f"<dd>{escape(more)}</dd>" if more else "")
        + "</div>"
        for at, (name, value, more) in enumerate(tiles)
    )
    return f"<dl class=tiles>{''.join(written)}</dl>"


def _advice(gpus: Sequence[GpuReport]) -> str:
    told = "".join(
        f"<p><b>{escape(gpu.gpu)}</b>: {escape(words.advice_text(gpu.what_if))}</p>"
        for gpu in filter(words.is_known, gpus)
    )
    return f'<section class="card advice"><h2 style="margin:0;font-size:1rem">Advice</h2>{told}</section>'


def _gpu(report: Report, gpu: GpuReport, name: str) -> str:
    gone = time.strftime(" (not seen since %Y-%m-%d)", time.localtime(gpu.last_unix_s)) if gpu.gone else ""
    title = f"<h2>{escape(gpu.gpu)} {escape(gpu.name)} <small>{escape(gpu.uuid)}{gone}</small></h2>"
    if not words.is_known(gpu):
        return f"{title}\n<p>Nothing was recorded of it in this time.</p>"
    days = [day.name for day in report.period.days]
    rows = words.rows_of(days, gpu.days)
    drawn = {}
    if drawing():
        drawn = {plot.name.removeprefix(f"{name}-"): plot for plot in plots.of_gpu(report, gpu, name)}
    of_days = _sums("month" if words.by_month(days) else "day", [*rows, ("all", gpu.total)], f"{gpu.gpu} by day")
    found = gpu.what_if
    parts = [title, *_figures(drawn[key] for key in ("hours",) if key in drawn)]
    parts.append(_card("Day by day", of_days + _facts(report, gpu)))
    if words.has_table(found):
        parts += _figures([drawn["what-if"]] if "what-if" in drawn else [])
        notes = (
            f"<p class=muted>{escape(words.costs_text(found.costs))}</p><p class=muted>{escape(words.OPTIMUM_IS)}</p>"
        )
        heading = f"Other idle times, for its {words.counted(found.gaps, 'gap')} in {span(found.recorded_s)}"
        parts.append(_card(heading, _compared(gpu) + notes))
    if stages.has_what_if(report, gpu):
        parts.append(_deeper(gpu))
    small = _figures(drawn[key] for key in ("gaps", "wakes") if key in drawn)
    parts += ["<div class=pair>", *small, "</div>"] if small else []
    return "\n".join(parts)


def _stages(report: Report) -> list[str]:
    """Nothing where no server ever went deeper."""
    if not report.stages:
        return []
    found = _table(stages.named(stages.HEADINGS), [("", row) for row in stages.rows(report)], "Deeper stages")
    return [_card("Deeper stages", found + _notes([*stages.notes(report), *stages.machine_texts(report)]))]


def _deeper(gpu: GpuReport) -> str:
    rows = [("", row) for row in stages.what_if_rows(gpu)]
    found = _table(stages.named(stages.WHAT_IF), rows, f"{gpu.gpu}: deeper stages") if rows else ""
    return _card("A deeper stage, beyond parking, in the same gaps", found + _notes(stages.what_if_notes(gpu)))


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=muted>{escape(note)}</p>" for note in notes)


def _facts(report: Report, gpu: GpuReport) -> str:
    facts = {
        "baseline": words.ground_text(gpu),
        "margin": f"± {energy(gpu.ground.margin_j)}",
        "records": words.before_text(report, gpu),
        "unknown": words.unknown_text(gpu.total),
        "wakes": words.latency_text(gpu.latency, gpu.total.wakes),
        "ended": words.ends_text(gpu),
    }
    told = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    return f"<dl class=facts>{told}</dl>"


def _figures(drawn: Iterable[plots.Plot]) -> list[str]:
    return [
        f'<figure class=card><h3>{escape(plot.title)}</h3><div role="img" aria-label="{escape(plot.summary)}">'
        f"{plot.inline()}</div></figure>"
        for plot in drawn
    ]


def _card(title: str, inside: str) -> str:
    return f"<section class=card><h3>{escape(title)}</h3>{inside}</section>"


# ---- tables ---------------------------------------------------------------------------------------------------------


def _sums(heading: str, rows: Sequence[tuple[str, Sums]], label: str) -> str:
    states = [s for s in STATES if s in STATES[:3] or any(words.some(sums.state_s[s]) for _, sums in rows)]
    missing, written = any(words.some(sums.unrecorded_s) for _, sums in rows), words.times_of(rows)
    unit = ", h" if written is words.hours else ""
    heads = [
        heading,
        "used",
        "saved",
        *(f"{state}{unit}" for state in states),
        *([f"no record{unit}"] if missing else []),
        "wakes",
    ]
    cells = []
    for name, sums in rows:
        none = not sums.recorded_s
        spent = [words.NONE if none else written(sums.state_s[state]) for state in states]
        unrecorded = [written(sums.unrecorded_s)] if missing else []
        energies = [words.NONE] * 2 if none else [words.used(sums), words.signed(sums.saved_j)]
        wakes = words.NONE if none else str(sums.wakes)
        cells.append(("all" if name == "all" else "", [name, *energies, *spent, *unrecorded, wakes]))
    return _table(heads, cells, label)


def _compared(gpu: GpuReport) -> str:
    kinds = {id(gpu.what_if.used): "used", id(gpu.what_if.was): "was"}
    rows = [(kinds.get(id(row), ""), [name, *words.figures(row)]) for name, row in words.compared(gpu.what_if)]
    return _table(["idle time", *map(str.lower, words.FIGURES)], rows, f"{gpu.gpu}: other idle times")


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], label: str) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = []
    for kind, (first, *others) in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        of_kind = f" class={kind}" if kind else ""
        body.append(f'<tr{of_kind}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class=wide role="region" tabindex="0" aria-label="{escape(label)}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
