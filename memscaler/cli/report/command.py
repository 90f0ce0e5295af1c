"""`memscaler report`: what was used and saved, day by day, and what other idle times would have saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.options import Gpus, Json, RuntimeDir, Simulate, setting

if TYPE_CHECKING:
    from memscaler.cli.report.gather import Report

SINCE = "7d"
STDOUT = "-"


def report(
    gpus: Gpus = None,
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME|DATE", help="From when on: a time back from now, or a day, e.g. 12h, 2026-11-01."
        ),
    ] = SINCE,
    price: Annotated[
        str | None,
        typer.Option(
            "--price", metavar="PRICE", help="Of a kWh, e.g. 0.30, '0.30 EUR/kWh', '$0.12'.", show_default=False
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page with plots there; - prints it.", show_default=False),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", metavar="DIR", help="Write the plots there, as SVG and PNG.", show_default=False),
    ] = None,
    state_dir: Annotated[str | None, setting("state_dir", "--state-dir", metavar="DIR")] = None,
    runtime_dir: RuntimeDir = None,
    simulate: Simulate = None,
    as_json: Json = False,
) -> None:
    """Report from the history: energy used and saved, hours per state, wakes, and what other idle times would save.

    Needs no running daemon. For root and members of group memscaler. A time of a day or more counts in whole local
    days, a shorter one in whole hours. Plots need matplotlib.
    """
    import time

    from memscaler.cli.options import settings_anyway
    from memscaler.cli.report.gather import gather
    from memscaler.cli.report.period import read_period
    from memscaler.cli.report.price import read_price
    from memscaler.core.errors import UsageError

    if html == STDOUT and as_json:
        raise UsageError("--html - and --json both want standard output", hint="give --html a file")
    period = read_period(since, time.time())
    cost = None if price is None else read_price(price)
    if html not in (None, STDOUT):
        from memscaler.cli.report.files import check_page

        check_page(Path(html))  # before all the work
    if state_dir:
        state_dir = str(Path(state_dir).absolute())  # the settings know no current directory
    if state_dir and Path(state_dir).exists() and not Path(state_dir).is_dir():
        raise UsageError(f"--state-dir: {state_dir} is no directory", hint="name the one in which history.sqlite is")
    settings = settings_anyway({"state_dir": state_dir, "runtime_dir": runtime_dir, "simulate": simulate})
    found = gather(settings.kept_in, gpus or [], period, cost, settings)
    notes = _write(found, html, plots)
    _print(found, notes, silent=html == STDOUT, as_json=as_json)


def _write(found: Report, html: str | None, plots: Path | None) -> list[str]:
    """What was asked for in files; answers with what to say about it."""
    from memscaler.cli.output import plain, show

    notes = []
    if html is not None:
        from memscaler.cli.report.files import write_page
        from memscaler.cli.report.page import report_page

        page = report_page(found)
        if html == STDOUT:
            show(page.rstrip("\n"))
        else:
            write_page(Path(html), page)
            notes.append(f"wrote {plain(html)}")
    if plots is not None:
        from memscaler.cli.report.files import write_plots
        from memscaler.cli.report.plots import all_of

        written = write_plots(plots, all_of(found))
        notes.append(f"wrote {len(written)} plots into {plain(plots)}")
    return notes


def _print(found: Report, notes: list[str], *, silent: bool, as_json: bool) -> None:
    from memscaler.cli.output import print_json, show

    if as_json:
        from memscaler.cli.report.document import report_document

        print_json(report_document(found))
    elif notes and not silent:
        show("\n".join(notes))
    elif not silent:
        from memscaler.cli.paint import paint
        from memscaler.cli.report.text import report_text

        show(report_text(found, paint()))
